"""Contributions are exact under a norm after the feed-forward, and in mixtures: with the rest they add up to the logit.

The rest (embedding, attention, biases), the final norm and the logits come from plain hooks on the transformers model.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Olmo2ForCausalLM

import actstore
from actstore.engine.capture import corpus_run
from actstore.engine.edit.forms.least_norm_problem import Problem
from actstore.engine.edit.settings import LeastNormSettings
from actstore.engine.models.load import LoadedModel
from actstore.engine.verify.refill import refill_blocks
from actstore.store import layout
from actstore.store.capture.tokens.write_scale import NORMED_TYPES, scale_sentences
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from actstore.store.reader import Capture

ATTENTION = {
    "gemma2": "post_attention_layernorm",
    "gemma3_text": "post_attention_layernorm",
    "olmo2": "post_attention_layernorm",
    "glm4": "post_self_attn_layernorm",
    "centred": "post_attention_layernorm",
    "mixtral": "self_attn",
    "qwen2_moe": "self_attn",
    "gpt_oss": "self_attn",
    "granite": "self_attn",
    "flex_olmo": "post_attention_layernorm",
}
"""Model type → the module of a block whose output is what attention adds to the stream."""
SCALED_BY = {
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "glm4", "centred"), "norm"),
    **dict.fromkeys(("mixtral", "gpt_oss", "qwen2_moe"), "weight"),
    "granite": "",
    "flex_olmo": "weight,norm",
}
"""Qwen's shared expert is weighted as the routed ones are: by a gate of its own."""
IDS = random_ids(2, 12, seed=3)
TARGETS = [5, 90, 17]


class Olmo2WithLayerNormForCausalLM(Olmo2ForCausalLM):
    """A model whose feed-forward is followed by a norm that centres and has a bias."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.post_feedforward_layernorm = nn.LayerNorm(config.hidden_size)


def make(model_type: str, tied: bool) -> PreTrainedModel:
    config = tiny_config("olmo2" if model_type == "centred" else model_type)
    config.tie_word_embeddings = tied
    if model_type == "granite":
        config.residual_multiplier = 0.4
    torch.manual_seed(0)
    kind = Olmo2WithLayerNormForCausalLM if model_type == "centred" else AutoModelForCausalLM
    build = kind._from_config if model_type == "centred" else kind.from_config
    return scatter_weights(build(config))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """made(type, tied): a tiny model in memory, and a capture of its neurons over two documents of 12 ids."""
    known: dict[tuple[str, bool], tuple[PreTrainedModel, Capture]] = {}

    def of(model_type: str, tied: bool = False) -> tuple[PreTrainedModel, Capture]:
        if (model_type, tied) not in known:
            model = make(model_type, tied)
            store = tmp_path_factory.mktemp(model_type) / "store"
            known[model_type, tied] = model, capture_ids(model, store)
        return known[model_type, tied]

    return of


def capture_ids(model: PreTrainedModel, store: Path, **settings: Any) -> Capture:
    settings = {"sites": ("mlp.post", "resid.post"), "block_tokens": 64} | settings
    corpus = store.parent / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in IDS.tolist()))
    return actstore.capture(model, corpus, store, **settings)


class Plain:
    """What plain hooks see of one document: everything that is added to the stream but neurons, and the logits."""

    def __init__(self, model: PreTrainedModel, model_type: str, document: int) -> None:
        self._seen: dict[str, Any] = {}
        self.model, self.model_type = model, model_type
        base, factor = model.model, getattr(model.config, "residual_multiplier", 1.0)
        handles = [
            base.layers[0].register_forward_pre_hook(self._keep_input("first"), with_kwargs=True),
            base.norm.register_forward_pre_hook(self._keep_input("last"), with_kwargs=True),
            model.lm_head.register_forward_hook(self._keep("logits")),
        ]
        for i, layer in enumerate(base.layers):
            handles.append(
                layer.get_submodule(ATTENTION[model_type]).register_forward_hook(self._keep(f"attention {i}"))
            )
            if model_type == "gpt_oss":
                handles.append(layer.mlp.router.register_forward_hook(self._keep_all(f"router {i}")))
        with torch.inference_mode():
            model(IDS[document : document + 1])
        for handle in handles:
            handle.remove()
        self.logits, last = (self._seen[name].double()[0] for name in ("logits", "last"))
        self.rest = self._seen["first"].double()[0]  # [position, d_model]
        for i, layer in enumerate(base.layers):
            self.rest = self.rest + factor * self._seen[f"attention {i}"].double()[0] + self._biases(layer, i)
        weight = base.norm.weight.detach().double()
        gain = 1 + weight if model_type.startswith("gemma") else weight
        epsilon = getattr(base.norm, "eps", getattr(base.norm, "variance_epsilon", None))
        self.direction = gain / (last.square().mean(-1, keepdim=True) + epsilon).sqrt()  # [position, d_model]

    def _biases(self, layer: Any, i: int) -> Tensor | float:
        """What biases of the feed-forward add."""
        if self.model_type == "centred":
            return layer.post_feedforward_layernorm.bias.detach().double()
        if self.model_type != "gpt_oss":
            return 0.0
        _, weights, experts = self._seen[f"router {i}"]
        bias = layer.mlp.experts.down_proj_bias.detach().double()
        return (weights.double()[..., None] * bias[experts]).sum(-2).reshape(self._seen["first"].shape[1:])

    def _keep(self, name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _keep_all(self, name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            self._seen[name] = output

        return hook

    def _keep_input(self, name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            self._seen[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    def others(self, position: int, targets: list[int]) -> Any:
        """What all but the neurons add to the logits of some targets."""
        unembedding = self.model.lm_head.weight.detach().double()[targets]
        return ((self.rest[position] * self.direction[position]) @ unembedding.T).numpy()


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [(name, False) for name in ATTENTION] + [("gemma2", True), ("olmo2", True), ("mixtral", True)],
)
def test_neurons_and_the_rest_add_up_to_the_logit(model_type: str, tied: bool, made: Any) -> None:
    model, held = made(model_type, tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert {layer.scaled_by for layer in held.store.model.layers} == {SCALED_BY[model_type]}
    assert held.record.write_scale == (() if model_type == "granite" else tuple(held.record.layers("mlp.post")))
    assert scale_sentences(held) == []
    n_neurons = sum(held.record.layers("mlp.post").values())
    for document, position in ((0, 0), (0, 7), (1, 11)):
        plain = Plain(model, model_type, document)
        table = held.store.contributions(TARGETS, n_neurons, at=f"{document}:{position}", logits=True).to_arrow()
        sums = table.group_by("token", use_threads=False).aggregate([("score", "sum")]).to_pylist()
        assert [row["token"] for row in sums] == TARGETS
        of_neurons = np.array([row["score_sum"] for row in sums])
        assert np.abs(of_neurons).max() > 1e-2
        logits = plain.logits[position, TARGETS].numpy()
        np.testing.assert_allclose(of_neurons + plain.others(position, TARGETS), logits, atol=1e-4, rtol=0)


def write_vectors(model: PreTrainedModel, model_type: str, layer: Any) -> Tensor:
    """What a neuron of activation 1 adds to the stream at scale 1, by the model's own parameters [neuron, d_model]."""
    block = model.model.layers[layer.block]
    if model_type == "mixtral":
        return block.mlp.experts.down_proj.detach().double()[layer.expert].T
    gain = 1 + block.post_feedforward_layernorm.weight.detach().double()
    return block.mlp.down_proj.weight.detach().double().T * gain


@pytest.mark.parametrize("model_type", ["gemma2", "mixtral"])
def test_means_are_of_scaled_activations(model_type: str, made: Any) -> None:
    model, held = made(model_type)
    store, layers = held.store, held.store.model.layers
    n_neurons = sum(layer.neurons for layer in layers)
    weight = model.model.norm.weight.detach().double()
    unembedding = model.lm_head.weight.detach().double() * (1 + weight if model_type == "gemma2" else weight)
    following = np.append(IDS[:, 1:].numpy(), [[-1], [-1]], axis=1).reshape(-1)
    targets = {True: np.full(24, 5), False: following}
    for everywhere, target in targets.items():
        table = store.contributions(5 if everywhere else None, n_neurons, everywhere=everywhere)
        found = dict(zip(table["name"].to_pylist(), table["total"].to_pylist(), strict=True))
        for layer in layers:
            values = np.nan_to_num(held.block_values(layer.layer, 0)[:, :24].astype(np.float64))
            scaled = values * held.write_scale(layer.layer, 0)[:24] * (target >= 0)
            products = (write_vectors(model, model_type, layer) @ unembedding[np.maximum(target, 0)].T).numpy()
            expected = (scaled * products).sum(axis=1)
            # Of an expert that never saw a position, nothing is said.
            of_layer = [found.get(f"L{layer.layer}.N{neuron}", 0.0) for neuron in range(layer.neurons)]
            np.testing.assert_allclose(of_layer, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gemma2", "qwen2_moe", "flex_olmo"])
def test_sums_made_while_the_model_runs_have_the_scales(model_type: str, made: Any, tmp_path: Path) -> None:
    model, held = made(model_type)
    bulk = capture_ids(model, tmp_path / "bulk", precision="none", contributions="next", sites=("mlp.post",))
    assert (bulk.record.write_scale, scale_sentences(bulk, summed=True)) == ((), [])
    n_neurons = sum(held.record.layers("mlp.post").values())
    found, expected = (
        {row["name"]: row["total"] for row in one.store.contributions(k=n_neurons).to_pylist()} for one in (bulk, held)
    )
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[name] for name in expected], [*expected.values()], rtol=1e-4, atol=1e-5)


def test_the_scale_is_stored_as_the_format_says(made: Any) -> None:
    """One float32 per position and layer, readable with Zarr alone; 0 where an expert did not see the token."""
    import zarr

    _, held = made("mixtral")
    array = zarr.open_array(f"{held.folder.location}/{layout.write_scale_key('corpus', 1)}", mode="r")
    assert (array.dtype, array.shape) == (np.float32, (1, 64))
    scale, values = np.asarray(array)[0, :24], held.block_values(1, 0)[:, :24]
    assert ((scale == 0) == np.isnan(values).all(axis=0)).all()
    layers = [layer.layer for layer in held.store.model.layers if layer.block == 0]
    total = sum(held.write_scale(layer, 0)[:24] for layer in layers)
    np.testing.assert_allclose(total, 1, rtol=1e-6)  # Mixtral's routing weights add up to 1
    assert actstore.open(held.folder.location).verify() == []


def test_bundled_copied_and_recomputed_it_is_the_same(made: Any, tmp_path: Path) -> None:
    model, held = made("gemma2")
    bundled = capture_ids(model, tmp_path / "store", bundle=True, precision="int8")
    actstore.copy(tmp_path / "store", tmp_path / "copy")
    copied = Store(tmp_path / "copy").capture()
    for layer in held.record.write_scale:
        for other in (bundled, copied):
            np.testing.assert_array_equal(other.write_scale(layer, 0), held.write_scale(layer, 0))
    rows, damage = refill_blocks(copied, 1, model=model)
    assert ([row["largest_difference"] for row in rows], damage) == ([0], [])

    class Altered(type(copied)):  # type: ignore[misc]
        """Reads another scale than was written."""

        def write_scale(self, layer: int, block: int) -> Any:
            return super().write_scale(layer, block) * (1.5 if layer else 1)

    copied.__class__ = Altered
    _, damage = refill_blocks(copied, 1, model=model)
    assert [(one.block, one.site, one.layer) for one in damage] == [(0, "write_scale", 1)]


def test_the_paper_form_leaves_it_out(made: Any) -> None:
    model, held = made("gemma2")
    row = held.store.contributions(5, 1, at="0:4", gain=False).to_pylist()[0]
    values = held.block_values(row["layer"], 0)[row["neuron"], 4]
    vector = model.model.layers[row["layer"]].mlp.down_proj.weight.detach()[:, row["neuron"]]
    product = float(vector @ model.lm_head.weight.detach()[5])
    assert row["score"] == pytest.approx(float(values) * product, rel=1e-5)


def test_a_least_norm_write_reaches_the_stream_through_the_norm(made: Any) -> None:
    """What a neuron's row is given becomes v behind the norm's gain, and moves the logits by a · s · ‖v‖² / rms per unit."""
    model, held = made("gemma2")
    top = int(Plain(model, "gemma2", 0).logits[3].argmax())
    problem = Problem(held, top, (top + 1) % 50, LeastNormSettings())
    block, layer = problem.blocks[0], model.model.layers[1]
    seen: list[Tensor] = []
    norms = (layer.post_feedforward_layernorm, model.model.norm)
    handles = [norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0])) for norm in norms]
    with torch.inference_mode():
        model(IDS)
    for handle in handles:
        handle.remove()
    scale, inverse_rms = (
        (values.double().square().mean(-1) + norm.eps).rsqrt().reshape(-1).numpy()[block.slots]
        for values, norm in zip(seen, norms, strict=True)
    )
    gain = 1 + model.model.norm.weight.detach().double()
    unembedding = model.lm_head.weight.detach().double()
    v = gain * (unembedding[(top + 1) % 50] - unembedding[top])
    neurons = [2, 7, 30]
    moved = held.block_values(1, 0)[neurons][:, block.slots] * scale * float(v.square().sum()) * inverse_rms
    np.testing.assert_allclose(problem.inputs({1: neurons}, block), moved, rtol=1e-4, atol=1e-7)
    behind = problem.stream.written(1, v) * (1 + norms[0].weight.detach().double())
    np.testing.assert_allclose(behind.numpy(), v.numpy(), rtol=1e-6, atol=1e-9)
    values = held.block_values(1, 0)[:, block.slots[problem.targets(block)]]
    written = write_vectors(model, "gemma2", held.store.model.layers[1]) @ (gain * unembedding[top])
    expected = (values * (scale * inverse_rms)[problem.targets(block)]).mean(1) * written.numpy()
    np.testing.assert_allclose(problem.scores(1), expected, rtol=1e-4, atol=1e-7)


class TestWhatIsMissing:
    def test_a_capture_without_the_scale(
        self, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        model, _ = made("gemma2")  # which others read, too: its capture has the scale
        monkeypatch.setattr(corpus_run, "is_scaled", lambda scaled_by: False)
        held = capture_ids(model, tmp_path / "store")
        said = (
            "Contributions of layers 0 to 1 of capture 'corpus' are approximate: the capture does not hold what the norm after "
            "the feed-forward multiplies them with at each position. Capture again with values, under another `name`."
        )
        assert scale_sentences(held) == [said]
        held.store.contributions(5, 1, at="0:4")
        assert said in caplog.messages
        caplog.clear()
        held.store.contributions(5, 1, at="0:4", gain=False)
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("model_type", "what"), [("gemma2", "the norm after the feed-forward"), ("qwen2_moe", "routing weights")]
    )
    def test_a_store_of_an_earlier_version(self, made: Any, tmp_path: Path, model_type: str, what: str) -> None:
        model, _ = made(model_type)
        capture_ids(model, tmp_path / "store", precision="none")
        folder = Folder(tmp_path / "store", read_only=False)
        layers = [
            {key: value for key, value in layer.items() if key != "scaled_by"}
            for layer in folder.read_json("zarr.json")["attributes"]["actstore"]["model"]["layers"]
        ]
        root = folder.read_json("zarr.json")["attributes"]["actstore"]["model"] | {"layers": layers}
        planted_stores.change_root(folder, model=root)
        (sentence,) = scale_sentences(Store(tmp_path / "store").capture())
        assert f"an earlier version, which did not keep {what}. Capture again, into a new store." in sentence

    def test_what_is_no_scale_is_said_to_be_approximate(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        _, held = made("gemma2")
        layers = tuple(dataclasses.replace(layer, scaled_by="unknown") for layer in held.store.model.layers)
        monkeypatch.setattr(held.store, "model", dataclasses.replace(held.store.model, layers=layers))
        (sentence,) = scale_sentences(held)
        assert "has more than norms and weights" in sentence


def test_types_of_which_earlier_stores_lack_the_norm() -> None:
    for name in sorted({"gemma2", "olmo2", "glm4"}):
        assert name in NORMED_TYPES
        loaded = LoadedModel(make(name, tied=False))
        assert all("norm" in spec.scaled_by for spec in loaded.spec.layers)

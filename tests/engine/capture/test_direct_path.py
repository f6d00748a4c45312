"""The direct path is complete: what neurons, attention and embedding add to a logit is the logit, term by term.

Contributions are read from a store; the rest, and the logits, come from the model itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM

from actstore.engine.capture.api import RunOptions, capture
from actstore.engine.models.load import LoadedModel
from actstore.store.model.top_tokens import K, fill_top_tokens
from actstore.store.model.weights import read_final_norm, read_weights

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from actstore.store.reader import Capture

TYPES = ("llama", "gpt2", "gemma", "gpt_neox", "opt", "phi", "mpt")
CENTRED = {"gpt2", "gpt_neox", "opt", "phi", "mpt"}
IDS = random_ids(2, 12, seed=3)


def make(model_type: str) -> PreTrainedModel:
    return scatter_weights(AutoModelForCausalLM.from_config(tiny_config(model_type)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model type's tiny model, and a capture of its neurons and residual stream over two documents of 12 ids."""
    known: dict[str, tuple[PreTrainedModel, Capture]] = {}

    def of(model_type: str) -> tuple[PreTrainedModel, Capture]:
        if model_type not in known:
            folder = tmp_path_factory.mktemp(model_type)
            model = make(model_type)
            model.save_pretrained(folder / "model")
            rows = [json.dumps({"input_ids": ids}) + "\n" for ids in IDS.tolist()]
            (folder / "corpus.jsonl").write_text("".join(rows))
            sites = ("mlp.post", "resid.pre", "resid.post", "attn.out")
            options = RunOptions(memory=100_000)
            held = capture(
                str(folder / "model"), folder / "corpus.jsonl", folder / "store", options=options, sites=sites
            )
            known[model_type] = model, held
        return known[model_type]

    return of


def rest_of_the_stream(model: PreTrainedModel, held: Capture, window: int) -> torch.Tensor:
    """What is in the last residual stream but for neurons: embedding, attention, biases; [position, d_model]."""
    loaded = LoadedModel(model)
    place = held.windows()["document"].to_pylist().index(window) * 12
    slots = slice(place, place + 12)
    stream = held.block_values(0, 0, "resid.pre")[:, slots].astype(np.float64)
    for layer in held.record.layers("mlp.post"):
        stream = stream + held.block_values(layer, 0, "attn.out")[:, slots]
        bias = loaded.output_bias(layer)
        stream = stream + (0 if bias is None else bias.double().numpy()[:, None])
    return torch.from_numpy(stream.T)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("place", [(0, 0), (0, 7), (1, 11)])
def test_neurons_attention_and_embedding_add_up_to_the_logit(
    model_type: str, place: tuple[int, int], made: Any
) -> None:
    model, held = made(model_type)
    document, position = place
    targets = [5, 90, 17]
    with torch.inference_mode():
        logits = model(IDS[document : document + 1]).logits[0, position, targets].double()
        final = model(IDS[document : document + 1], output_hidden_states=True).hidden_states[-1]
    assert final.shape[-1] == held.store.model.d_model
    loaded = LoadedModel(model)
    norm = read_final_norm(held.store.folder)
    assert norm.centres == (model_type in CENTRED)
    last = max(held.record.layers("resid.post"))
    stream = torch.from_numpy(held.block_values(last, 0, "resid.post"))
    slot = held.windows()["document"].to_pylist().index(document) * 12 + position
    stream = stream[:, slot].double()
    rest = rest_of_the_stream(model, held, document)[position]
    if norm.centres:
        stream, rest = stream - stream.mean(), rest - rest.mean()
    rms = (stream.square().mean() + norm.epsilon).sqrt()
    unembedding = loaded.unembedding()
    assert unembedding is not None
    gain = torch.ones(1) if norm.gain is None else norm.gain.double()
    others = (rest / rms * gain) @ unembedding[targets].double().T
    norm_bias = loaded.final_norm_bias()
    others = others + (0 if norm_bias is None else norm_bias.double() @ unembedding[targets].double().T)
    head_bias = getattr(model.get_output_embeddings(), "bias", None)
    others = others + (0 if head_bias is None else head_bias[targets].double())

    n_neurons = sum(held.record.layers("mlp.post").values())
    found = held.store.contributions(targets, n_neurons, at=f"{document}:{position}", logits=True)
    scores = found.group_by("token", use_threads=False).aggregate([("score", "sum"), ("score", "count")]).to_pylist()
    assert [row["token"] for row in scores] == targets
    assert all(row["score_count"] == n_neurons for row in scores)
    summed = np.array([row["score_sum"] for row in scores]) + others.detach().numpy()
    np.testing.assert_allclose(summed, logits.numpy(), atol=1e-4, rtol=0)
    # The neurons' part is no rounding error, and neither is what centring or the gain changes of it.
    assert np.abs([row["score_sum"] for row in scores]).max() > 1e-2


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma"])
def test_top_tokens_are_those_whose_logits_a_neuron_moves_most(model_type: str, made: Any) -> None:
    """Adding a neuron's write vector to the stream, the norm's rms held still: the ten logits that rise most."""
    model, held = made(model_type)
    loaded, store = LoadedModel(model), held.store
    norm, vectors = loaded._final_norm(), loaded.write_vectors(1).double()
    gain, bias = loaded.final_norm_gain(), loaded.final_norm_bias()
    with torch.inference_mode():  # a norm is linear up to its rms: of ±x together, what is left after dividing by it
        normed = norm.double()(vectors * 1e6) - (0 if bias is None else bias.double())
        norm.float()
    centred = vectors - vectors.mean(1, keepdim=True) if model_type in CENTRED else vectors
    size = centred.square().mean(1, keepdim=True).sqrt()
    products = (normed * size) @ loaded.unembedding().double().T
    assert gain is not None
    for side, largest in (("top", True), ("bottom", False)):
        expected = products.topk(K, largest=largest)
        table = store.sql("select * from model where layer = 1 order by neuron")
        assert table[f"{side}_tokens"].to_pylist() == expected.indices.tolist()
        np.testing.assert_allclose(table[f"{side}_products"].to_pylist(), expected.values, rtol=1e-5)
        assert table[f"{side}_texts"][3].as_py() == [store.token_text(t) for t in expected.indices[3].tolist()]


def test_a_large_models_top_tokens_are_left_out_and_filled_in_later(
    tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actstore.engine.capture import root
    from actstore.store.reader import Store
    from actstore.store.storage.folder import Folder

    model, held = made("gpt2")
    folder = Folder(tmp_path / "store", read_only=False)
    n_neurons = 2 * 256
    monkeypatch.setattr(root, "AFFORDABLE", 2.0 * n_neurons * 128 * 64 - 1)
    root.write_store_root(folder, LoadedModel(model), "f" * 64, weights=True)
    store = Store(tmp_path / "store")
    assert store.sql("select count(top_tokens) n from model")["n"].to_pylist() == [0]
    seen: list[tuple[int, int]] = []
    assert fill_top_tokens(folder, lambda *layers: seen.append(layers)) == n_neurons
    assert seen == [(1, 2), (2, 2)]
    ours, theirs = (s.sql("select * from model order by layer, neuron") for s in (store, held.store))
    assert ours.schema == theirs.schema
    # transformers makes a tokenizer of one token for any GPT-2 without files: that capture knows the text of one id.
    for name in set(ours.column_names) - {"top_texts", "bottom_texts"}:
        assert ours[name].to_pylist() == theirs[name].to_pylist()
    assert store.sql("select count(top_tokens) n from model")["n"].to_pylist() == [n_neurons]


def test_the_final_norm_is_in_the_store(made: Any) -> None:
    model, held = made("gpt2")
    parts = read_weights(held.store.folder, "final_norm")
    assert torch.equal(parts["weight"], model.transformer.ln_f.weight)
    assert torch.equal(parts["bias"], model.transformer.ln_f.bias)
    assert float(parts["epsilon"]) == model.transformer.ln_f.eps
    assert bool(parts["centres"])
    _, held = made("gemma")
    assert "bias" not in (parts := read_weights(held.store.folder, "final_norm"))
    assert not bool(parts["centres"])
    assert float(parts["epsilon"]) == held.store.model.config["rms_norm_eps"]

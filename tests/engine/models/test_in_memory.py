"""Models in memory: captured like those of a folder, left as they were, and refused where they would not be what they say."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from actstore.engine.attribution.attribute import attribute
from actstore.engine.capture import api as capture_run
from actstore.engine.capture import corpus_run
from actstore.engine.capture.api import RunOptions, capture
from actstore.engine.models.in_memory import plain_model
from actstore.engine.models.load import inspect_model
from actstore.engine.verify.refill import refill_blocks
from actstore.store.errors import CaptureError, InvalidInputError, ModelError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from actstore.store.reader import Capture

SMALL: dict[str, Any] = {"context": 32, "max_tokens": 300}


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    """The tiny model, loaded anew."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded


@pytest.fixture(scope="module")
def expected(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """The capture by the folder's name."""
    return capture(str(tiny_model), corpus, tmp_path_factory.mktemp("expected") / "store", **SMALL)


def values_of(captured: Capture) -> list[torch.Tensor]:
    return [
        torch.from_numpy(captured.block_values(layer, block).copy())
        for layer in captured.record.layers("mlp.post")
        for block in captured.blocks
    ]


def assert_same(captured: Capture, expected: Capture) -> None:
    assert captured.record.model_fingerprint == expected.record.model_fingerprint
    assert captured.record.plan.fingerprint == expected.record.plan.fingerprint
    found, wanted = values_of(captured), values_of(expected)
    assert len(found) == len(wanted) > 0
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(found, wanted, strict=True))


def compiled(model: PreTrainedModel) -> Any:
    return torch.compile(model, backend="eager")


def piped(model: PreTrainedModel) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    model.name_or_path = ""
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)


WRAPPERS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "plain": lambda model: model,
    "compiled": compiled,
    "data parallel": lambda model: nn.DataParallel(model),
    "both": lambda model: nn.DataParallel(compiled(model)),
    "pipeline": piped,
}


class TestCapture:
    @pytest.mark.parametrize("wrapper", list(WRAPPERS))
    def test_is_the_capture_of_the_folder(
        self, model: PreTrainedModel, corpus: Path, tmp_path: Path, expected: Capture, wrapper: str
    ) -> None:
        captured = capture(WRAPPERS[wrapper](model), corpus, tmp_path / "store", **SMALL)
        assert_same(captured, expected)
        assert captured.store.model.name == (model.name_or_path or "LlamaForCausalLM")

    def test_a_path(self, tiny_model: Path, corpus: Path, tmp_path: Path, expected: Capture) -> None:
        assert_same(capture(tiny_model, corpus, tmp_path / "store", **SMALL), expected)

    def test_a_model_made_in_memory_is_known_again_when_it_is_saved(self, corpus: Path, tmp_path: Path) -> None:
        """Its configuration names no architecture before, and does once it is saved."""
        config = {"vocab_size": 400, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
        sizes = {"intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, **sizes))
        ids = tmp_path / "ids.jsonl"
        ids.write_text(json.dumps({"input_ids": list(range(4, 30))}) + "\n")
        captured = capture(made, ids, tmp_path / "store")
        assert made.config.architectures is None
        assert captured.store.model.name == "LlamaForCausalLM"
        with pytest.raises(InvalidInputError, match=r"was captured from memory, as a LlamaForCausalLM without a name"):
            refill_blocks(captured, 1)
        made.save_pretrained(tmp_path / "saved")
        for place in (made, tmp_path / "saved", str(tmp_path / "saved")):
            rows, damage = refill_blocks(captured, 1, model=place)
            assert ([row["largest_difference"] for row in rows], damage) == ([0], [])

    def test_is_resumed_with_the_same_weights_alone(
        self, model: PreTrainedModel, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corpus_run, "BLOCK_SLOTS", 64)
        done = capture(model, corpus, tmp_path / "whole", **SMALL)
        store, filled = tmp_path / "store", []

        class Stopped(capture_run.CaptureProgress):
            def filled(self, n_tokens: int) -> None:
                filled.append(n_tokens)
                if len(filled) == 3:
                    raise KeyboardInterrupt

        with pytest.raises(CaptureError, match="blocks of capture 'corpus' are in"):
            capture(model, corpus, store, progress=Stopped(), **SMALL)
        other = AutoModelForCausalLM.from_pretrained(tiny_model)
        with torch.no_grad():
            other.model.layers[0].mlp.down_proj.weight[0, 0] += 1
        with pytest.raises(InvalidInputError, match="holds another model"):
            capture(other, corpus, store, options=RunOptions(resume=True), **SMALL)
        resumed = capture(model, corpus, store, options=RunOptions(resume=True), **SMALL)
        assert_same(resumed, done)

    def test_attributions_of_one(self, model: PreTrainedModel, tiny_model: Path, tmp_path: Path) -> None:
        rows = [
            {"id": query, "prompts": [f"{query}?\n A. 1\n B. 2\nsay:"], "answers": ["B"]} for query in ("who", "le")
        ]
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = attribute(model.train(), path, tmp_path / "a", steps=2)
        wanted = attribute(str(tiny_model), path, tmp_path / "b", steps=2)
        assert model.training
        for (rows, a), (same, b) in zip(found.prompt_scores("ig"), wanted.prompt_scores("ig"), strict=True):
            assert (rows == same).all()
            assert (a == b).all()


class TestTokenizer:
    def test_of_the_options_by_name_or_in_memory(
        self, model: PreTrainedModel, tiny_model: Path, corpus: Path, tmp_path: Path, expected: Capture
    ) -> None:
        model.name_or_path = ""
        with pytest.raises(InvalidInputError, match=r"^This LlamaForCausalLM in memory has no name or path by which"):
            capture(model, corpus, tmp_path / "none", **SMALL)
        assert not (tmp_path / "none").exists()
        for i, tokenizer in enumerate((str(tiny_model), tiny_model, AutoTokenizer.from_pretrained(tiny_model))):
            options = RunOptions(tokenizer=tokenizer)
            assert_same(capture(model, corpus, tmp_path / f"store{i}", options=options, **SMALL), expected)
        with pytest.raises(
            InvalidInputError,
            match=r"^tokenizer is a text, a path, .*, found the integer 3",
        ):
            RunOptions(tokenizer=3)  # type: ignore[arg-type]


class TestLeftAsItWas:
    def test_modes_hooks_and_compiled_calls(self, model: PreTrainedModel, corpus: Path, tmp_path: Path) -> None:
        model.train()
        model.model.layers[0].eval()
        before = {name: module.training for name, module in model.named_modules()}
        model.model.layers[1].compile(backend="eager")
        model.forward = torch.compile(model.forward, backend="eager")
        calls = model.model.layers[1]._compiled_call_impl, model.forward
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        config = model.config.to_dict()
        assert inspect_model(model).d_model == 16
        capture(model, corpus, tmp_path / "store", **SMALL)
        assert {name: module.training for name, module in model.named_modules()} == before
        assert (model.model.layers[1]._compiled_call_impl, model.forward) == calls
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.config.to_dict() == config

    def test_the_way_its_experts_run(self, tmp_path: Path) -> None:
        sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
        mixture = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
        before = mixture.config._experts_implementation
        assert before != "eager"
        ids = tmp_path / "ids.jsonl"
        ids.write_text(json.dumps({"input_ids": list(range(4, 30))}) + "\n")
        captured = capture(mixture, ids, tmp_path / "store")
        assert len(captured.record.layers("mlp.post")) == 4
        assert mixture.config._experts_implementation == before

    def test_after_a_refusal_too(self, model: PreTrainedModel, corpus: Path, tmp_path: Path) -> None:
        model.train()
        with pytest.raises(InvalidInputError, match="no site"):
            capture(model, corpus, tmp_path / "store", sites=("mlp.nowhere",))
        assert all(module.training for module in model.modules())

    def test_compiled_layers_are_read(
        self, model: PreTrainedModel, corpus: Path, tmp_path: Path, expected: Capture
    ) -> None:
        """A compiled module passes over hooks that were set after its compilation."""
        for layer in model.model.layers:
            layer.compile(backend="eager")
        with torch.inference_mode():
            model(torch.arange(4, 12)[None])
        assert_same(capture(model, corpus, tmp_path / "store", **SMALL), expected)


class Wrapped(nn.Module):
    """A projection with an adapter beside it, as peft's are."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(24, 2, bias=False)


def wrap(model: PreTrainedModel, *, library: str = "") -> None:
    kind = type("Linear", (Wrapped,), {"__module__": f"{library}.layer"}) if library else Wrapped
    mlp = model.model.layers[0].mlp
    mlp.down_proj = kind(mlp.down_proj)


def quantise(model: PreTrainedModel) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)


def cut(model: PreTrainedModel) -> None:
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16, bias=False)
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.bias = None


def compile_inside(model: PreTrainedModel) -> None:
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")


REFUSED: dict[str, tuple[Callable[[PreTrainedModel], object], str]] = {
    "peft": (
        lambda m: wrap(m, library="peft.tuners.lora"),
        r"runs an adapter at model\.layers\.0\.mlp\.down_proj: capture",
    ),
    "adapters": (lambda m: wrap(m, library="adapters.methods"), r"runs an adapter at model\.layers\.0\.mlp\.down_proj"),
    "adapters of transformers": (lambda m: setattr(m, "_hf_peft_config_loaded", True), r"runs an adapter: capture"),
    "wrapped": (wrap, r"expected the blocks of this LlamaForCausalLM as its .*down_proj\.base_layer\.weight is added"),
    "compiled inside": (compile_inside, r"model\.layers\.0\._orig_mod\..* is added: parts of it were .* compiled"),
    "replaced": (lambda m: setattr(m.model.layers[1], "mlp", nn.Identity()), r"layers\.1\.mlp\..* is missing"),
    "cut": (cut, r"to hold 24 neurons of width 16, as its configuration says, and found the shape \(16, 20\)"),
    "quantised": (
        quantise,
        r"up_proj\.weight of this LlamaForCausalLM holds int8: quantised weights are not supported",
    ),
    "float64": (
        lambda m: m.double(),
        r"expected weights in float32, float16 or bfloat16, and .* holds float64, .*: convert the model first, model.float\(\)",
    ),
    "quantised by transformers": (lambda m: setattr(m, "is_quantized", True), "is quantised, which is not supported"),
    "offloaded": (
        lambda m: m.model.layers[1].mlp.to("meta"),
        r"all weights of this .*layers\.1\.mlp\..* is not: accelerate",
    ),
}


class TestRefused:
    @pytest.mark.parametrize("case", list(REFUSED))
    def test_what_would_not_run_as_its_weights_say(
        self, model: PreTrainedModel, corpus: Path, tmp_path: Path, case: str
    ) -> None:
        change, message = REFUSED[case]
        change(model)
        for call in (lambda: inspect_model(model), lambda: capture(model, corpus, tmp_path / "store", **SMALL)):
            with pytest.raises(ModelError, match=message):
                call()
        assert not (tmp_path / "store").exists()

    @pytest.mark.parametrize("is_in_config", [True, False])
    def test_a_checkpoint_in_float64(
        self, model: PreTrainedModel, tiny_model: Path, corpus: Path, tmp_path: Path, is_in_config: bool
    ) -> None:
        folder, store = tmp_path / "double", tmp_path / "store"
        shutil.copytree(tiny_model, folder)
        model.double().save_pretrained(folder)
        if not is_in_config:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
        with pytest.raises(ModelError, match=r"those of '.*double' are float64, .*: pass `dtype=\"float32\"`$"):
            capture(folder, corpus, store, **SMALL)
        assert not store.exists()
        assert capture(folder, corpus, store, options=RunOptions(dtype="float32"), **SMALL).record.dtype == "float32"

    def test_several_devices(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        class Elsewhere:
            is_meta, device = False, torch.device("cuda:1")

        named = [*model.named_parameters(), ("model.layers.1.mlp.down_proj.weight", Elsewhere())]
        monkeypatch.setattr(model, "named_parameters", lambda **_: named)
        with pytest.raises(ModelError, match=r"on one device, and it is spread over cpu, cuda:1: move it to one"):
            plain_model(model)

    @pytest.mark.parametrize(
        ("given", "found"),
        [(3, "found int"), (None, "found NoneType"), (b"gpt2", "found bytes"), (["gpt2"], "found list")],
    )
    def test_what_is_no_model(self, corpus: Path, tmp_path: Path, given: Any, found: str) -> None:
        with pytest.raises(InvalidInputError, match=rf"a transformers model in memory, {found}\.$"):
            capture(given, corpus, tmp_path / "store")

    def test_a_module_that_is_no_transformers_model(self, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"found Sequential, a torch module of another kind"):
            capture(nn.Sequential(nn.Linear(2, 2)), corpus, tmp_path / "store")

    def test_a_name_that_is_no_file_name(self, corpus: Path, tmp_path: Path) -> None:
        for name in ("x" * 5000, "a\0b"):
            with pytest.raises(ModelError, match="expected a model folder or a Hub id"):
                capture(name, corpus, tmp_path / "store")

    def test_another_dtype_or_device_than_its_own(self, model: PreTrainedModel, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"in memory in bfloat16, found float32\. Convert it first"):
            capture(model, corpus, tmp_path / "store", options=RunOptions(dtype="bfloat16"))
        with pytest.raises(InvalidInputError, match=r"in memory on cuda, found it on cpu\. Move it first"):
            capture(model, corpus, tmp_path / "store", options=RunOptions(device="cuda"))
        done = capture(model, corpus, tmp_path / "store", options=RunOptions(dtype="float32", device="cpu"), **SMALL)
        assert Store(tmp_path / "store").captures == (done.record.name,)

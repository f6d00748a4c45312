"""Interventions against the same arithmetic on hooks of one's own, with a cache and without, and against weights."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM

from actstore.engine.edit.interventions import intervening
from actstore.engine.edit.positions import POSITIONS, parse_positions
from actstore.engine.edit.specification import Operation, Specification
from actstore.engine.models.load import LoadedModel
from actstore.store.errors import FormatError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from actstore.store.reader import Store

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "output_logits": True,
    "return_dict_in_generate": True,
}  # fmt: skip


def tiny(model_type: str = "llama") -> LoadedModel:
    return LoadedModel(scatter_weights(AutoModelForCausalLM.from_config(tiny_config(model_type))))


def logits_of(model: LoadedModel, ids: Tensor, **arguments: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.model(ids, **arguments).logits
    return logits


def seen_by(model: LoadedModel, layer: int, run: Callable[[], Any]) -> Tensor:
    """What the output projection of a layer reads over the passes of `run`; [window, position, neuron]."""
    parts: list[Tensor] = []
    module = model.model.get_submodule(model.spec.layers[layer].module)
    handle = module.register_forward_pre_hook(lambda _module, args: parts.append(args[0].clone()))
    run()
    handle.remove()
    return torch.cat([p.reshape(-1, p.shape[-2], p.shape[-1]) for p in parts], dim=1)


@pytest.mark.parametrize("positions", [*(n for n in POSITIONS if n != "image"), (0, 3, -1, 7)])
@pytest.mark.parametrize("cached", [True, False])
def test_an_operation_happens_at_its_positions_and_nowhere_else(positions: Any, cached: bool) -> None:
    model, ids = tiny(), random_ids(2, 6)
    operations = [Operation("set", ("L0.N3",), positions, value=7.5)]
    with intervening(model, operations):
        seen = seen_by(model, 0, lambda: model.model.generate(ids, use_cache=cached, **SETTINGS))
    expected = {
        "all": range(9), "prompt": range(6), "last": [5], "generated": range(6, 9), "predicting": range(5, 9),
        (0, 3, -1, 7): [0, 3, 5, 7],
    }[positions]  # fmt: skip
    last = seen[:, -9:]  # without a cache, each pass reads all: the last pass has all 9 positions
    is_set = last[..., 3] == 7.5
    assert is_set.all(0).nonzero().flatten().tolist() == list(expected)
    assert is_set.any(0).nonzero().flatten().tolist() == list(expected)
    if not cached:
        prefill = seen[:, :6, 3] == 7.5
        assert prefill.all(0).nonzero().flatten().tolist() == [p for p in expected if p < 6]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_generation_with_a_cache_without_one_and_a_single_pass_agree(model_type: str) -> None:
    model, ids = tiny(model_type), random_ids(2, 7)
    operations = [
        Operation("boost", ("L0.N1", "L1.N3"), factor=-1.5),
        Operation("set", ("L1.N4",), "last", value=3.0),
        Operation("noise", ("L1.N5", "L0.N2"), "predicting", sigma=2.0, seed=3),
        Operation("suppress", ("L0.N7",), "prompt"),
    ]
    with intervening(model, Specification(tuple(operations))):
        cached = model.model.generate(ids, **SETTINGS)
        uncached = model.model.generate(ids, use_cache=False, **SETTINGS)
    assert torch.equal(cached.sequences, uncached.sequences)
    for logits, uncached_logits in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(logits, uncached_logits, rtol=1e-4, atol=1e-4)
    with intervening(model, operations, n_prompt=7):
        whole = logits_of(model, cached.sequences)
    torch.testing.assert_close(whole[:, 6:-1], torch.stack(cached.logits, 1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, logits_of(model, cached.sequences), atol=1e-2)


def test_padding_moves_no_position() -> None:
    model, ids = tiny(), random_ids(2, 6)
    operations = [Operation("boost", ("L0.N1",), "last", factor=9.0), Operation("noise", ("L1.N2",), (1,), sigma=5.0)]
    with intervening(model, operations):
        alone = logits_of(model, ids[:1, :4])
    right = torch.cat([ids[:1, :4], torch.zeros(1, 2, dtype=torch.int64)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with intervening(model, operations):
        padded = logits_of(model, right, attention_mask=mask)
    torch.testing.assert_close(padded[:, :4], alone)
    left = torch.cat([torch.zeros(1, 2, dtype=torch.int64), ids[:1, :4]], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    with intervening(model, operations):
        padded = logits_of(model, left, attention_mask=mask, position_ids=torch.tensor([[0, 0, 0, 1, 2, 3]]))
    torch.testing.assert_close(padded[:, 2:], alone, rtol=1e-4, atol=1e-5)


def test_operations_follow_one_another_and_nothing_stays_behind() -> None:
    model, ids = tiny(), random_ids()
    clean = logits_of(model, ids)
    with intervening(model, [Operation("set", ("L0.N1",), value=2.0), Operation("boost", ("L0.N1",), factor=3.0)]):
        both = logits_of(model, ids)
    with intervening(model, [Operation("set", ("L0.N1",), value=6.0)]):
        torch.testing.assert_close(logits_of(model, ids), both)
    assert torch.equal(logits_of(model, ids), clean)
    with pytest.raises(RuntimeError, match="stop"), intervening(model, [Operation("suppress", ("L0.N1",))]):
        raise RuntimeError("stop")
    assert torch.equal(logits_of(model, ids), clean)


def test_a_patch_of_a_value_that_overflowed_is_refused(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from actstore.engine.capture.api import capture
    from actstore.engine.models.load import load_model

    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5] *= 1e12
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    captured = capture(str(tmp_path / "model"), corpus, tmp_path / "store", precision="half", max_tokens=100)
    document = str(captured.windows()["document"][0].as_py())
    model = load_model(tiny_model)
    expected = (
        r"infinite activation of L1\.N5 from capture 'corpus', because it exceeds 65,504, .*`precision=\"exact\"`\."
    )
    with (
        pytest.raises(InvalidInputError, match=expected),
        intervening(model, [Operation("patch", ("L1.N4", "L1.N5"), source=document)], store=captured.store),
    ):
        pass
    with intervening(model, [Operation("patch", ("L1.N4",), source=document)], store=captured.store):
        pass


def test_a_patch_from_the_text_itself_changes_nothing_and_from_another_does(tiny_model: Path, captured: Any) -> None:
    from actstore.engine.models.load import load_model

    capture = captured()
    model = load_model(tiny_model)
    window = next(row for row in capture.windows().to_pylist() if row["n_inputs"] > 8)
    ids = capture.plan.array("inputs/ids")[window["input_start"] : window["input_start"] + window["n_inputs"]]
    neurons = tuple(f"L{layer}.N{n}" for layer in (0, 1) for n in range(24))
    read = torch.from_numpy(ids.astype("int64"))[None]
    store: Store = capture.store
    # A document in several windows has no one row of positions.
    documents = [row["document"] for row in capture.windows().to_pylist()]
    same_document = window["document"]
    other_document = next(d for d in documents if documents.count(d) == 1 and d != same_document)
    clean = logits_of(model, read)
    if documents.count(same_document) == 1:
        with intervening(model, [Operation("patch", neurons, source=str(same_document))], store=store):
            torch.testing.assert_close(logits_of(model, read), clean, rtol=1e-4, atol=1e-5)
    with intervening(model, [Operation("patch", neurons, source=str(other_document))], store=store):
        changed = seen_by(model, 1, lambda: logits_of(model, read))
    row = next(row for row in capture.windows().to_pylist() if row["document"] == other_document)
    size = capture.record.plan.block_slots
    values = capture.block_values(1, row["block"])[:, row["slot_start"] - row["block"] * size :][:, : row["n_slots"]]
    n = min(values.shape[1], read.shape[1])
    torch.testing.assert_close(changed[0, :n], torch.from_numpy(values.T[:n].copy()))
    with intervening(model, [Operation("patch", neurons[:2], "last", source=f"{other_document}:1")], store=store):
        patched = seen_by(model, 0, lambda: logits_of(model, read))
    first = capture.block_values(0, row["block"])[:2, row["slot_start"] - row["block"] * size + 1]
    torch.testing.assert_close(patched[0, -1, :2], torch.from_numpy(first.copy()))
    with (
        pytest.raises(InvalidInputError, match="Pass the `store`"),
        intervening(model, [Operation("patch", neurons, source="0")]),
    ):
        pass


def test_a_specification_is_what_its_json_is() -> None:
    specification = Specification(
        (
            Operation("set", ("L0.N1", "L1.N2"), (0, -1), value=2.5),
            Operation("noise", ("L1.N3",), "image", sigma=0.5, seed=9),
            Operation("patch", ("L0.N0",), "last", capture="corpus", source="3:17"),
        )
    )
    read = Specification.from_json(json.loads(json.dumps(specification.to_json())), "here")
    assert read == specification
    assert read.neurons() == {0: [0, 1], 1: [2, 3]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "shout"}, "one of suppress, boost, set, noise, patch"),
        ({"neurons": []}, "at least one neuron"),
        ({"neurons": ["L0N1"]}, "such as L3.N17"),
        ({"neurons": ["L9.N1"]}, "layers 0 to 1, found layer 9"),
        ({"neurons": ["L0.N99"]}, "neurons 0 to 47, found neuron 99"),
        ({"positions": "middle"}, "Positions are one of all"),
        ({"positions": [0.5]}, "Positions are a name or"),
        ({"kind": "boost", "factor": float("nan")}, "finite factor"),
        ({"kind": "patch"}, "needs the document"),
    ],
)
def test_a_wrong_operation_is_refused_in_a_sentence(change: dict[str, Any], expected: str) -> None:
    value = {"operations": [{"kind": "suppress", "neurons": ["L0.N1"], "positions": "all"} | change]}
    with (
        pytest.raises((InvalidInputError, FormatError), match=expected),
        intervening(tiny(), Specification.from_json(value, "here")),
    ):
        pass


def test_positions_are_read_from_text() -> None:
    assert parse_positions("0,3,-1") == (0, 3, -1)
    assert parse_positions("last") == "last"
    with pytest.raises(InvalidInputError, match="found '1;2'"):
        parse_positions("1;2")

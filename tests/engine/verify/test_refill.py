"""Recomputing blocks finds every value that is not what the model gives, and only those."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import actstore
from actstore.engine.verify.refill import refill_blocks, spread
from actstore.kernels.torch_threads import torch_threads
from actstore.store import layout
from actstore.store.errors import InvalidInputError
from actstore.store.files.shards import encode_shard, shard_seed
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "bfloat16"},
        {"precision": "half"},
        {"precision": "int8"},
        {"precision": "sparse", "keep": 0.1},
        {"sites": ("mlp.post", "mlp.gate", "resid.post")},
        {"positions": "last"},
    ],
)
def test_what_was_captured_is_recomputed_exactly(captured: Any, settings: dict[str, Any]) -> None:
    rows, damage = refill_blocks(captured(**settings), 2)
    assert damage == []
    assert 1 <= len(rows) <= 2
    assert {row["largest_difference"] for row in rows} == {0.0}


def test_blocks_are_recomputed_on_as_many_threads_as_they_were_captured_on(captured: Any) -> None:
    with torch_threads(2):
        rows, damage = refill_blocks(captured(), 2)
    assert damage == []
    assert {row["largest_difference"] for row in rows} == {0.0}


def altered(capture: Capture, folder: Path, layer: int, block: int, change: Any) -> Capture:
    """A copy of a capture in which one shard holds other values, index and checksums of the shard in order."""
    assert capture.folder.local_path() is not None
    shutil.copytree(capture.folder.local_path(), folder)
    key = layout.values_key("corpus", "mlp.post", layer)
    values = capture.raw_block(layer, block).copy()
    change(values)
    grid = layout.shard_grid(len(values), capture.record.plan.block_slots)
    data = encode_shard(values, grid, seed=shard_seed(capture.record.identity, key, block))
    Folder(folder, read_only=False).write(layout.shard_key(key, block), data)
    return actstore.open(folder).capture()


def double(values: Any) -> None:
    values[3, 20] = 2 * np.abs(values).max(where=~np.isnan(values), initial=0)


def forget(values: Any) -> None:
    values[3, 20] = np.nan


def shift(values: Any) -> None:
    values[:, :200] = np.roll(values[:, :200], 1, axis=1)


@pytest.mark.parametrize("change", [double, forget, shift])
def test_a_value_that_the_model_did_not_give_is_found(captured: Any, tmp_path: Path, change: Any) -> None:
    found = altered(captured(), tmp_path / "store", 1, 2, change)
    rows, damage = refill_blocks(found, 99)
    assert len(rows) == found.record.plan.n_blocks
    assert [(d.capture, d.block, d.site, d.layer, d.key) for d in damage] == [("corpus", 2, "mlp.post", 1, "values")]


def test_one_step_of_int8_more_than_rounding_is_found(captured: Any, tmp_path: Path) -> None:
    def nudge(values: Any) -> None:
        values[3, 20] = values[3, 20] + 60 if values[3, 20] < 0 else values[3, 20] - 60

    _, damage = refill_blocks(altered(captured(precision="int8"), tmp_path / "store", 0, 1, nudge), 99)
    assert [(d.block, d.layer) for d in damage] == [(1, 0)]


def test_blocks_known_to_be_damaged_are_passed_over(captured: Any, tmp_path: Path) -> None:
    found = altered(captured(), tmp_path / "store", 1, 2, double)
    rows, damage = refill_blocks(found, 99, without={2})
    assert damage == []
    assert 2 not in [row["block"] for row in rows]


def test_another_model_is_refused_and_a_moved_one_is_taken(captured: Any, tiny_model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    assert refill_blocks(captured(), 1, model=str(moved))[1] == []
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match="holds another model than"):
        refill_blocks(captured(), 1, model=str(moved))


def test_a_model_that_is_gone_is_not_looked_for_elsewhere(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "here" / "model"
    shutil.copytree(tiny_model, copy)
    monkeypatch.chdir(copy.parent)
    held = actstore.capture("model", corpus, tmp_path / "store", context=32, max_tokens=200)
    assert held.store.model.name == "model"
    monkeypatch.chdir(tmp_path)
    assert refill_blocks(held, 1)[1] == []
    shutil.rmtree(copy)
    with pytest.raises(
        InvalidInputError, match=r"model was captured from .*here/model, which no longer exists.*`model`"
    ):
        refill_blocks(held, 1)


def test_without_values_there_is_nothing_to_compare(captured: Any) -> None:
    with pytest.raises(InvalidInputError, match="keeps no values"):
        refill_blocks(captured(precision="none"), 1)


def test_blocks_are_spread_from_the_first_to_the_last() -> None:
    assert spread([2, 3, 5, 7, 11], 3) == [2, 5, 11]
    assert spread([2, 3], 9) == [2, 3]
    assert spread([2, 3, 5], 1) == [2]
    assert spread([], 3) == []


def test_infinities_are_recomputed_and_earlier_versions_of_int8_are_no_damage(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(tiny_model, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    for name in ("up_proj", "gate_proj"):  # in the last layer, so that nothing else is computed from it
        weights[f"model.layers.1.mlp.{name}.weight"][6] = 1e38
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    capture = actstore.capture(str(poisoned), corpus, tmp_path / "store", precision="int8", context=32, max_tokens=300)
    assert np.isinf(capture.activations(1, 6)).any()
    assert refill_blocks(capture, 1)[1] == []

    # They took ±127 for an infinity as they did for the largest value, and marked no scale.
    key = layout.block_parameters_key("corpus", "mlp.post", 1, "scale")
    marked = capture.block_parameter("scale", 1, 0)
    unmarked = (marked.view(np.uint32) & ~np.uint32(1)).view(np.float32)
    assert (marked.view(np.uint32) != unmarked.view(np.uint32)).any()
    folder = Folder(tmp_path / "store", read_only=False)
    grid, seed = layout.shard_grid(len(unmarked), 1), shard_seed(capture.record.identity, key, 0)
    folder.write(layout.shard_key(key, 0), encode_shard(unmarked[:, None], grid, seed=seed))
    earlier = actstore.open(tmp_path / "store").capture()
    assert np.isfinite(earlier.activations(1, 6)[~np.isnan(capture.activations(1, 6))]).all()
    assert refill_blocks(earlier, 1)[1] == []

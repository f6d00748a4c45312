"""A dry run: it counts what a capture then holds, measures a batch, refuses what a capture refuses, and writes nothing."""

from __future__ import annotations

import gc
import shutil
import weakref
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest

import actstore
from actstore.engine.capture import estimate as estimates
from actstore.engine.capture.api import RunOptions, capture
from actstore.engine.capture.plan_count import PlanCount
from actstore.engine.capture.sizes import estimate_nbytes
from actstore.engine.models.load import LoadedModel
from actstore.store.capture.plan import PlannedWindow
from actstore.store.errors import ActstoreError, InvalidInputError, ReadOnlyError
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own

if TYPE_CHECKING:
    from pathlib import Path

TINY_BLOCKS = RunOptions(memory=32_000)


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder with its content and when it was last changed."""
    return {
        str(path.relative_to(root)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [root, *root.rglob("*")]
    }


@pytest.fixture(scope="module")
def taken(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a capture."""
    target = tmp_path_factory.mktemp("taken") / "store"
    capture(str(tiny_model), corpus, target, options=TINY_BLOCKS, context=16, max_tokens=300)
    return target


@pytest.mark.parametrize(
    "settings",
    [
        {"max_documents": 50},
        {"context": 16, "max_tokens": 500, "label_columns": ("language",), "precision": "int8"},
        {"context": 24, "overlap": 5, "precision": "sparse", "max_documents": 40},
        {"context": 32, "positions": "last", "sites": ("mlp.post", "resid.post"), "gate_sign": False},
        {"context": 16, "batch_tokens": 64, "precision": "none", "max_tokens": 500},
    ],
)
def test_what_is_said_is_what_the_capture_then_holds(
    tiny_model: Path, corpus: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    before = snapshot(tmp_path)
    found = actstore.estimate(str(tiny_model), corpus, tmp_path / "store", options=TINY_BLOCKS, **settings)
    assert snapshot(tmp_path) == before
    record = capture(str(tiny_model), corpus, tmp_path / "store", options=TINY_BLOCKS, **settings).record
    plan = record.plan
    assert (found.n_documents, found.n_windows, found.n_tokens, found.n_blocks, found.block_slots) == (
        plan.n_documents, plan.n_windows, plan.n_tokens, plan.n_blocks, plan.block_slots,
    )  # fmt: skip
    assert (found.sites, found.precision, found.dtype, found.name) == (
        tuple(record.sites), record.precision, record.dtype, "corpus",
    )  # fmt: skip
    assert found.capture_nbytes == estimate_nbytes(record)
    weights = sum(path.stat().st_size for path in (tmp_path / "store" / "weights").rglob("*") if path.is_file())
    assert found.weights_nbytes == pytest.approx(weights, rel=0.1)
    assert found.nbytes == found.capture_nbytes + found.weights_nbytes


def test_the_time_is_that_of_a_batch_for_every_token_that_the_model_reads(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "measure", lambda *_: 2.0)
    settings: dict[str, Any] = {"context": 24, "overlap": 5, "positions": "last"}
    found = estimates.estimate(str(tiny_model), corpus, tmp_path / "store", options=TINY_BLOCKS, **settings)
    windows = capture(str(tiny_model), corpus, tmp_path / "store", options=TINY_BLOCKS, **settings).windows()
    n_inputs = int(np.sum(windows["n_inputs"].to_numpy()))
    assert found.capturing_s == pytest.approx(2.0 * n_inputs / found.batch_tokens)
    assert found.total_s == found.planning_s + found.loading_s + found.capturing_s
    assert found.planning_s > 0
    assert found.loading_s > 0


def test_a_small_batch_warms_up_one_is_measured_and_none_stays_in_memory(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    forward = LoadedModel.forward

    def seen(self: LoadedModel, ids: Any, *arguments: Any, **further: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return forward(self, ids, *arguments, **further)

    monkeypatch.setattr(LoadedModel, "forward", seen)
    before = set(fsspec.filesystem("memory").store)
    found = estimates.estimate(str(tiny_model), corpus, tmp_path / "store", options=TINY_BLOCKS, context=16)
    assert len(shapes) == 2
    assert shapes[0][0] * shapes[0][1] <= shapes[1][0] * shapes[1][1]
    assert 0 < found.batch_tokens <= shapes[1][0] * shapes[1][1]
    assert found.batch_s > 0
    assert set(fsspec.filesystem("memory").store) == before


def test_beside_another_capture_nothing_changes_and_the_weights_are_there(
    taken: Path, tiny_model: Path, corpus: Path
) -> None:
    before = snapshot(taken)
    found = actstore.estimate(str(tiny_model), corpus, taken, name="second", max_tokens=300)
    assert snapshot(taken) == before
    assert found.weights_nbytes == 0
    new = actstore.estimate(
        str(tiny_model), corpus, taken.with_name("new"), options=RunOptions(weights=False), max_tokens=300
    )
    assert (new.weights_nbytes, new.n_tokens) == (0, found.n_tokens)
    assert new.free_nbytes is not None
    assert new.fits


def test_a_store_that_is_not_on_a_disk_has_no_free_space_to_name(tiny_model: Path, corpus: Path) -> None:
    found = actstore.estimate(str(tiny_model), corpus, "memory://dry/store", max_tokens=300)
    assert (found.free_nbytes, found.fits) == (None, True)
    assert not fsspec.filesystem("memory").exists("dry")


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({}, {}),  # the capture is there already
        ({"name": "a/b"}, {}),
        ({"corpus": "nowhere.jsonl", "name": "new"}, {}),
        ({"model": "/nowhere/model", "name": "new"}, {}),
        ({"name": "new", "options": RunOptions(dtype="float8")}, {}),
        ({"name": "new"}, {"layers": (0, 99)}),
        ({"name": "new"}, {"sites": ("mlp.nowhere",)}),
        ({"name": "new"}, {"precision": "thirds"}),
        ({"name": "new"}, {"overlap": 90, "context": 32}),
        ({"name": "new"}, {"positions": "middle"}),
        ({"name": "new"}, {"label_columns": ("source",)}),
        ({"name": "new"}, {"text_column": "words"}),
        ({"name": "new"}, {"max_tokens": 300, "positions": "4000"}),
        (
            {"name": "new", "options": RunOptions(dtype="bfloat16")},
            {"max_tokens": 300},
        ),  # another model by its fingerprint
    ],
)
def test_what_a_capture_refuses_a_dry_run_refuses_in_the_same_words(
    taken: Path, tiny_model: Path, corpus: Path, changed: dict[str, Any], settings: dict[str, Any]
) -> None:
    given = {"model": str(tiny_model), "corpus": corpus, "store": taken} | changed
    before = snapshot(taken)
    with pytest.raises(ActstoreError) as dry:
        actstore.estimate(**given, **settings)
    assert snapshot(taken) == before
    with pytest.raises(ActstoreError) as real:
        actstore.capture(**given, **settings)
    assert str(dry.value) == str(real.value)
    assert type(dry.value) is type(real.value)


def test_a_folder_of_something_else_and_a_capture_being_written_are_refused(
    taken: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="is a folder with other content"):
        actstore.estimate(str(tiny_model), corpus, other)
    with own(Folder(taken, read_only=False), "beginning"):
        before = snapshot(taken)
        with pytest.raises(ReadOnlyError, match="being written by process"):
            actstore.estimate(str(tiny_model), corpus, taken, name="beginning")
        assert snapshot(taken) == before
    shutil.rmtree(taken / "captures" / "beginning")


def test_resuming_is_no_dry_run(taken: Path, tiny_model: Path, corpus: Path) -> None:
    with pytest.raises(InvalidInputError, match="Leave `resume` out"):
        actstore.estimate(str(tiny_model), corpus, taken, name="new", options=RunOptions(resume=True))


def test_counting_keeps_the_first_block_only() -> None:
    def window(n: int) -> PlannedWindow:
        ids = np.arange(n, dtype=np.int32)
        return PlannedWindow(0, ids, ids[: n // 2], np.zeros(n // 2, np.uint8), ())

    count = PlanCount()
    references = []
    for sizes in ([8, 4], [6, 6], [2]):
        windows = [window(n) for n in sizes]
        references.append([weakref.ref(one.ids) for one in windows])
        count.add_block([[one] for one in windows])
        del windows
    gc.collect()
    assert (count.n_blocks, count.n_windows, count.n_tokens, count.n_inputs) == (3, 5, 13, 26)
    assert [[reference() is not None for reference in block] for block in references] == [
        [True, True], [False, False], [False],
    ]  # fmt: skip


def test_the_typical_batch_is_the_one_nearest_to_the_mean() -> None:
    count = PlanCount()
    batches = [
        [PlannedWindow(0, np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(n, np.uint8), ())] for n in (90, 40, 2)
    ]
    count.add_block(batches)
    assert len(count.typical_batch()[0].ids) == 40
    assert len(count.smallest_batch()[0].ids) == 2

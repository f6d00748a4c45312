"""The steps of a run: plan, fill, finish, one after another, each as a process of its own would take it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.engine.capture.api import CaptureRequest, capture, open_run
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import Run, RunOptions
from actstore.store.errors import CaptureError, InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import is_unlocked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded_disk import RecordedDisk

SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 900, "label_columns": ("language",), "precision": "int8"}
MEMORY = 32_000
"""Bytes of buffers that make blocks of 64 slots."""


@pytest.fixture
def opened(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run on `tmp_path / "store"` that shares nothing with those opened before."""

    def open_one(progress: CaptureProgress | None = None) -> Run:
        options = RunOptions(memory=MEMORY, resume=True)
        request = CaptureRequest(str(tiny_model), corpus, tmp_path / "store", options=options, progress=progress)
        return open_run(request, SETTINGS)[0]

    return open_one


def files(store: Path) -> dict[str, bytes]:
    """What is written of every block, and of all blocks together."""
    paths = [p for p in store.rglob("*") if p.is_file() and (p.suffix != ".json" and p.name != ".lock")]
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(paths) if not p.name.startswith("folded.")}


def test_steps_of_several_runs_make_what_one_run_makes(
    opened: Callable[..., Run], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    whole = capture(str(tiny_model), corpus, tmp_path / "whole", options=RunOptions(memory=MEMORY), **SETTINGS)
    run = opened()
    with run.owned():
        record = run.plan(SETTINGS)
    assert record.plan == whole.record.plan
    n_blocks = record.plan.n_blocks
    assert n_blocks > 10
    run = opened()
    with run.owned():
        run.fill(range(n_blocks - 1, n_blocks // 2, -1))
    committed: list[int] = []
    run = opened()
    with run.owned():
        run.fill(range(n_blocks), committed.append)
        assert run.missing_blocks() == []
    assert committed == list(range(n_blocks // 2 + 1)), "what is committed is not filled again"
    run = opened()
    with run.owned():
        run.finish()
    done = actstore.open(tmp_path / "store").capture()
    assert done.is_complete
    assert done.neurons().equals(whole.neurons())
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_steps_are_refused_before_what_they_need(opened: Callable[..., Run]) -> None:
    run = opened()
    with pytest.raises(NotFoundError, match=r"has no capture 'corpus'\. Plan it first"), run.owned():
        run.fill([0])
    run = opened()
    with run.owned():
        n_blocks = run.plan(SETTINGS).plan.n_blocks
        with pytest.raises(InvalidInputError, match=rf"has blocks 0 to {n_blocks - 1}, found block {n_blocks}\."):
            run.fill([0, n_blocks])
        run.fill([0, 2])
        with pytest.raises(CaptureError, match=rf"^{n_blocks - 2} of {n_blocks} blocks .* are missing: 1, 3, 4, "):
            run.finish()


def test_a_capture_has_one_owner(opened: Callable[..., Run]) -> None:
    with opened().owned(), pytest.raises(ReadOnlyError, match="is being written by process"), opened().owned():
        pass


class Interrupted(CaptureProgress):
    """Ctrl-C when the first batch has been filled."""

    def filled(self, n_tokens: int) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_step_says_what_is_there_and_how_to_go_on(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = opened()
    with run.owned():
        n_blocks = run.plan(SETTINGS).plan.n_blocks
        run.fill([3])
    run = opened(Interrupted())
    with pytest.raises(CaptureError, match=rf"^Interrupted: 1 of {n_blocks} blocks .* with `resume=True`"), run.owned():
        run.fill([1])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    run = opened()
    monkeypatch.setattr(run, "_load_again", interrupt)
    with pytest.raises(CaptureError, match=rf"^Interrupted: 1 of {n_blocks} blocks"), run.owned():
        run.plan(SETTINGS)
    shutil.rmtree(tmp_path / "store")
    run = opened()
    monkeypatch.setattr(run, "_load", interrupt)
    with pytest.raises(CaptureError, match="before the plan of capture 'corpus' was complete: nothing"), run.owned():
        run.plan(SETTINGS)
    assert not (tmp_path / "store").exists()


def test_what_records_vouch_for_is_safe_before_them(
    tiny_model: Path, corpus: Path, tmp_path: Path, recorded_disk: RecordedDisk
) -> None:
    """In a power cut at any moment, what is there of a first capture is whole: plan, root, blocks, statistics."""
    store = tmp_path / "store"
    capture(str(tiny_model), corpus, store, options=RunOptions(memory=MEMORY), **SETTINGS)
    recorded_disk.check()
    of_capture = recorded_disk.safe_before(store / "captures/corpus/zarr.json")
    planned = {
        "windows.parquet",
        "documents.parquet",
        "inputs/ids/c/0",
        "tokens/ids/c/0",
        "values/mlp.post/0/zarr.json",
    }
    assert {
        str(path.relative_to(store / "captures/corpus")) for path in of_capture if "corpus" in path.parts
    } >= planned
    of_root = {"tokenizer/vocabulary.parquet", "weights/layer-0.safetensors", "neurons.parquet"}
    assert of_capture >= {store / "zarr.json"} | {store / name for name in of_root}
    assert recorded_disk.safe_before(store / "zarr.json") >= {store / name for name in of_root}
    finished = recorded_disk.safe_before(store / "captures/corpus/neurons.parquet")
    statistics = {path for path in (store / "captures/corpus/statistics").rglob("*") if path.is_file()}
    assert statistics
    assert finished >= statistics


def test_a_run_without_sync_does_not_wait_for_the_disk(
    tiny_model: Path, corpus: Path, tmp_path: Path, recorded_disk: RecordedDisk
) -> None:
    options = RunOptions(memory=MEMORY, sync=False)
    assert capture(str(tiny_model), corpus, tmp_path / "store", options=options, **SETTINGS).is_complete
    below = [path for kind, path, _ in recorded_disk.calls if kind == "sync" and path.is_relative_to(tmp_path)]
    assert below == []


@pytest.mark.parametrize("left", ["zarr.82dfa495fb2f48d4875d708f695f258b.partial", "neurons.parquet.partial"])
def test_a_run_that_was_killed_while_planning_leaves_room_for_the_next(
    tiny_model: Path, corpus: Path, tmp_path: Path, left: str
) -> None:
    store = tmp_path / "store"
    (store / "captures/corpus/tokens").mkdir(parents=True)
    (store / "captures/corpus/writer.lock").touch()
    (store / left).write_text("{")
    inside = store / "captures/corpus/tokens/zarr.82dfa495fb2f48d4875d708f695f258b.partial"
    inside.write_text("{")
    assert capture(str(tiny_model), corpus, store, options=RunOptions(memory=MEMORY), **SETTINGS).is_complete
    assert not inside.exists()
    assert (store / "captures/corpus/writer.lock").read_bytes() == b""


def test_a_run_that_gives_up_removes_its_capture_while_it_owns_it(
    opened: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between letting go and removing, another process might begin the same capture."""
    run, deleted, delete = opened(), [], Folder.delete

    def noted(folder: Folder, key: str) -> None:
        deleted.append((key, is_unlocked(folder, "corpus")))
        delete(folder, key)

    monkeypatch.setattr(Folder, "delete", noted)
    with pytest.raises(ZeroDivisionError), run.owned():
        1 / 0  # noqa: B018
    assert deleted[-1] == ("captures/corpus", False)
    assert not (tmp_path / "store").exists()

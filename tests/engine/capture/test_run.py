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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
        with pytest.raises(CaptureError, match=rf"^{n_blocks - 2} of {n_blocks} blocks .* the first of them block 1\."):
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

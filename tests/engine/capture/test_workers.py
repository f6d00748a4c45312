"""A capture that an executor's workers fill, and what is said when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForCausalLM
from written_captures import written

import actstore
from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.steps.worker import FillOptions
from actstore.engine.capture.steps.workers import fill_by_workers
from actstore.engine.workers.executor import WorkerEnded
from actstore.engine.workers.local import Local
from actstore.store.capture.workers.claims import BlockClaims
from actstore.store.errors import CaptureError, InvalidInputError, ModelError
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 500, "precision": "int8", "block_tokens": 64}


class Count(CaptureProgress):
    """Tokens that a bar shows."""

    n_tokens = n_done = 0

    def started(self, n_tokens: int, n_done: int, nbytes: int) -> None:
        self.n_tokens, self.n_done = n_tokens, n_done

    def filled(self, n_tokens: int) -> None:
        self.n_done += n_tokens


class Broken:
    """An executor whose worker 1 dies in block 5."""

    n_workers, threads_per_worker = 2, 1

    def __init__(self, claims: BlockClaims) -> None:
        self.claims = claims

    def map_unordered(self, function: Any, items: Any) -> Any:
        assert 1 in self.claims.take()
        raise WorkerEnded(1, -9)

    def map(self, function: Any, items: Any) -> Any:
        raise NotImplementedError


def test_workers_fill_and_a_failure_is_named_with_its_block(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model = tmp_path / "store", str(tiny_model)
    record = actstore.plan(model, corpus, store, **SETTINGS).record
    folder, progress = Folder(store, read_only=False), Count()
    arguments: tuple[Any, ...] = (folder, record, model, fill_blocks, FillOptions(lease_s=0.2), progress)
    dead = BlockClaims(folder, record, worker=1, n_workers=2)
    with pytest.raises(
        CaptureError, match=r"^Worker 1 of 2 ended by signal 9, with these blocks .* unfinished: 1\. What"
    ):
        fill_by_workers(Broken(dead), *arguments)
    dead.release(1)
    here = Local(1)
    here.threads_per_worker = 1  # as the capture in one process below

    def fail(*_: object) -> None:
        raise ModelError("the model cannot")

    with monkeypatch.context() as patch:
        patch.setattr("actstore.engine.capture.block_filler.BlockFiller._run", fail)
        with pytest.raises(CaptureError, match=r"^Worker 0 of 1 failed in block 0 of .*cannot"):
            fill_by_workers(here, *arguments)
    fill_by_workers(here, *arguments)
    assert progress.n_done == progress.n_tokens == record.plan.n_tokens
    assert actstore.finish(store).is_complete
    actstore.capture(model, corpus, tmp_path / "whole", **SETTINGS)
    assert written(store) == written(tmp_path / "whole")


def test_workers_that_cannot_be_had_are_refused(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    options = actstore.RunOptions(workers=2)
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(InvalidInputError, match=r"^Several `workers` load the model each"):
        actstore.capture(loaded, corpus, tmp_path / "store", options=options)
    with pytest.raises(InvalidInputError, match="found 0 `workers`"):
        actstore.capture(str(tiny_model), corpus, tmp_path / "store", options=actstore.RunOptions(workers=0))
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_two_processes_capture_what_one_does(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        options = actstore.RunOptions(workers=workers)
        assert actstore.capture(str(tiny_model), corpus, tmp_path / name, options=options, **SETTINGS).is_complete
    assert written(tmp_path / "one") == written(tmp_path / "two")

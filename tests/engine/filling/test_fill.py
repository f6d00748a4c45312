"""A capture in three steps, of which several workers take the second: they divide the blocks, and replace dead ones."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny_text import save_llama
from written_captures import downloaded, written

import actstore
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.sizes import estimate_objects
from actstore.engine.capture.steps.filler import Filler
from actstore.engine.workers import numerics
from actstore.store.capture.commits import committed_blocks
from actstore.store.capture.workers.claims import BlockClaims
from actstore.store.errors import CaptureError, InvalidInputError, NotFoundError, ReadOnlyError, StorageError
from actstore.store.layout import claim_key, claims_prefix, numerics_key
from actstore.store.storage import lock
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from counting_proxy import CountingProxy

    from actstore.store.files.records import CaptureRecord


OPTIONS = actstore.RunOptions(memory=32_000, device="cpu")
"""Buffers that make blocks of 64 slots."""
SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 700, "label_columns": ("language",), "precision": "int8"}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What one process writes."""
    store = tmp_path_factory.mktemp("whole") / "store"
    actstore.capture(str(tiny_model), corpus, store, options=OPTIONS, **SETTINGS)
    return written(store)


@pytest.fixture(scope="module")
def planned(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the planned capture of `SETTINGS`, to be copied."""
    store = tmp_path_factory.mktemp("planned") / "store"
    actstore.plan(str(tiny_model), corpus, store, options=OPTIONS, **SETTINGS)
    return store


@pytest.fixture
def store(planned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(planned, tmp_path / "store"))


def record_of(store: Path) -> CaptureRecord:
    """The record of the planned capture."""
    return actstore.open(store).peek("corpus").record


def test_steps_make_what_one_call_makes(store: Path, whole: dict[str, object]) -> None:
    n_blocks = record_of(store).plan.n_blocks
    with pytest.raises(
        CaptureError, match=rf"^{n_blocks} of {n_blocks} blocks .* are missing: 0, 1, 2, 3, 4, 5, 6, 7, …"
    ):
        actstore.finish(store)
    assert sorted(actstore.fill(store, worker=1, n_workers=2)) == list(range(n_blocks))
    assert actstore.fill(store) == ()
    with pytest.raises(InvalidInputError, match="Expected a device such as cpu, cuda or cuda:1, found 'gpu'"):
        actstore.fill(store, options=actstore.FillOptions(device="gpu"))  # also where nothing is left to do
    finished = actstore.finish(store)
    assert finished.is_complete
    assert written(store) == whole
    assert actstore.finish(store, "corpus").is_complete
    assert written(store) == whole
    assert (store / "captures/corpus/writer.lock").read_bytes() == b""


def test_workers_divide_the_blocks(store: Path, whole: dict[str, object]) -> None:
    n_blocks = record_of(store).plan.n_blocks
    results: dict[int, tuple[int, ...]] = {}

    def work(number: int) -> None:
        results[number] = actstore.fill(store, worker=number, n_workers=2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results[0] + results[1]) == list(range(n_blocks)), "no block is filled twice"
    actstore.finish(store)
    assert written(store) == whole


def test_workers_write_the_bundles_that_one_process_does(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captures that would have many files are bundled unless told, and resumed only as they were begun."""
    model, settings = str(tiny_model), SETTINGS | {"max_tokens": 250}
    monkeypatch.setattr("actstore.engine.capture.sizes.MOST_FILES", 30)
    assert actstore.estimate(model, corpus, tmp_path / "none", options=OPTIONS, **settings).bundled
    planned = actstore.plan(model, corpus, tmp_path / "divided", options=OPTIONS, **settings)
    assert planned.record.bundled
    resumed = dataclasses.replace(OPTIONS, resume=True)
    with pytest.raises(InvalidInputError, match=r"cannot be resumed: bundle is True there and False now\."):
        actstore.plan(model, corpus, tmp_path / "divided", options=resumed, bundle=False)
    threads = [threading.Thread(target=actstore.fill, args=(tmp_path / "divided",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    actstore.finish(tmp_path / "divided")
    whole = actstore.capture(model, corpus, tmp_path / "whole", options=OPTIONS, bundle=True, **settings)
    assert written(tmp_path / "divided") == written(tmp_path / "whole")
    # The files of its own, and some for all blocks together.
    objects = [key for key, _ in whole.folder.sizes("captures/corpus")]
    assert sum("/blocks/" in key or "/bundles/" in key for key in objects) == 2 * whole.record.plan.n_blocks
    assert 0 <= len(objects) - estimate_objects(whole.record) < 100
    plain = actstore.capture(model, corpus, tmp_path / "plain", options=OPTIONS, bundle=False, **settings)
    assert not plain.record.bundled
    assert plain.record.identity == whole.record.identity
    n_files = len(list(plain.folder.sizes("captures/corpus")))
    assert n_files - len(objects) == estimate_objects(plain.record) - estimate_objects(whole.record)
    np.testing.assert_array_equal(plain.activations(1, 3), whole.activations(1, 3))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_claim_of_a_dead_worker_is_taken_over_after_its_lease(store: Path) -> None:
    record, folder, clock = record_of(store), Folder(store, read_only=False), Clock()
    dead = BlockClaims(folder, record, worker=0, n_workers=2, lease_s=30)  # not entered: its heart does not beat
    assert next(dead.take()) == 0
    with BlockClaims(folder, record, worker=0, n_workers=2, lease_s=5, clock=clock) as claims:
        rest = range(1, record.plan.n_blocks)
        assert sorted(claims.take()) == list(rest), "all but what the dead one has"
        clock.now_s = 29.9
        assert list(claims.take()) == []
        assert dead.renew(0), "it was only slow"
        clock.now_s = 40.0
        assert list(claims.take()) == [], "seen to be alive at 29.9 at the latest"
        clock.now_s = 70.1
        assert list(claims.take()) == [0]
        assert not dead.renew(0)
        assert claims.renew(0)
        assert not any(claims.renew(block) for block in (record.plan.n_blocks, -1)), "never claimed"
    assert folder.names(claims_prefix("corpus")) == [], "whoever leaves lets go"


def test_a_worker_that_lost_a_block_does_not_write_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, object]
) -> None:
    lost, renew = [], BlockClaims.renew

    def lose(claims: BlockClaims, block: int) -> bool:
        if block == 3 and not lost:
            lost.append(block)
            (store / claim_key("corpus", 3)).write_bytes(b"another's")
        return renew(claims, block)

    monkeypatch.setattr(BlockClaims, "renew", lose)
    committed = actstore.fill(store, worker=0, n_workers=1, options=actstore.FillOptions(lease_s=0.05))
    assert committed[-1] == 3, "passed over at first, taken over after the lease"
    assert len(set(committed)) == len(committed)
    actstore.finish(store)
    assert written(store) == whole


def test_a_heart_beats_while_a_block_is_computed(store: Path) -> None:
    record, folder = record_of(store), Folder(store, read_only=False)
    with BlockClaims(folder, record, worker=0, n_workers=1, lease_s=0.04) as claims:
        block = next(claims.take())
        first = folder.read(claim_key("corpus", block))
        while json.loads(folder.read(claim_key("corpus", block)))["beat"] < 2:
            pass
        assert json.loads(first)["beat"] == 0


def test_what_is_not_to_be_filled_is_refused_in_a_sentence(
    store: Path, tmp_path: Path, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(**run: Any) -> None:
        actstore.plan(str(tiny_model), corpus, store, options=actstore.RunOptions(memory=32_000, **run), **SETTINGS)

    with pytest.raises(NotFoundError, match=r"`actstore\.plan\(…\)`"):
        actstore.fill(tmp_path / "elsewhere")
    for arguments, sentence in (
        ({"worker": 1}, "Pass both `worker` and `n_workers`, or neither"),
        ({"worker": 2, "n_workers": 2}, "found worker 2 of 2"),
        ({"options": actstore.FillOptions(lease_s=0)}, "longer than 0 seconds, found 0"),
        ({"capture": "other"}, r"no capture 'other'.*`actstore\.plan\(…\)`"),
    ):
        with pytest.raises((InvalidInputError, NotFoundError), match=sentence):
            actstore.fill(store, **arguments)
    with pytest.raises(InvalidInputError, match="already has a capture 'corpus'"):
        plan()
    other = save_other(tiny_model, tmp_path / "other")
    with pytest.raises(InvalidInputError, match="holds another model than"):
        actstore.fill(store, str(other))
    folder = Folder(store, read_only=False)
    monkeypatch.setattr(lock, "SHARE_TIMEOUT_S", 0.0)
    with lock.own(folder, "corpus"), pytest.raises(ReadOnlyError, match="is being written by process"):
        actstore.fill(store)
    with lock.share(folder, "corpus"), lock.share(folder, "corpus"):
        for step in (lambda: actstore.finish(store), lambda: plan(resume=True)):
            with pytest.raises(ReadOnlyError, match="is being written by workers that fill it"):
                step()
    assert committed_blocks(folder, "corpus") == []


def save_other(model: Path, folder: Path) -> Path:
    """A model of the same form with other weights."""
    save_llama(folder, seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


def test_other_numerics_are_refused_or_written_down(
    store: Path, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actstore.fill(store)
    folder = Folder(store, read_only=False)
    (own,) = folder.read_json(numerics_key("corpus"))["numerics"]
    assert {"torch", "numba", "actstore", "device", "dtype", "attention", "trial computation"} <= own.keys()
    for block in (1, 2):
        folder.delete(f"captures/corpus/blocks/{block}.json")
    other = own | {"torch": "2.0.0", "device": "cuda of compute capability 9.0"}
    monkeypatch.setattr(numerics, "numerics_of", lambda model: other)
    sentence = re.escape(f"(device is {other['device']}, not {own['device']}; torch is 2.0.0, not {own['torch']})")
    resumed = actstore.RunOptions(memory=32_000, resume=True)
    for refused in (
        lambda: actstore.fill(store),
        lambda: actstore.capture(str(tiny_model), corpus, store, options=resumed),
    ):
        with pytest.raises(InvalidInputError, match=f"{sentence}.*`allow_mixed=True`"):
            refused()
    assert actstore.fill(store, worker=0, n_workers=1, options=actstore.FillOptions(allow_mixed=True)) == (1, 2)
    assert folder.read_json(numerics_key("corpus"))["numerics"] == [own, other]
    assert actstore.finish(store).is_complete


class Threads(CaptureProgress):
    """How many threads torch has while blocks are computed."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def filled(self, n_tokens: int) -> None:
        self.seen.add(torch.get_num_threads())


def test_a_worker_has_as_many_threads_as_the_first(store: Path) -> None:
    """With another number, MKL may add up in another order."""
    before, progress = torch.get_num_threads(), Threads()
    torch.set_num_threads(3)
    try:
        actstore.fill(store, progress=progress)
        torch.set_num_threads(before)
        (store / "captures/corpus/blocks/2.json").unlink()
        assert actstore.fill(store, progress=progress) == (2,)
        assert (progress.seen, torch.get_num_threads()) == ({3}, before)
    finally:
        torch.set_num_threads(before)


class Interrupted(CaptureProgress):
    """Ctrl-C in the second block."""

    n_filled = 0

    def filled(self, n_tokens: int) -> None:
        self.n_filled += n_tokens
        if self.n_filled > 64:
            raise KeyboardInterrupt


def test_an_interrupted_worker_leaves_the_rest_to_others(
    store: Path, tiny_model: Path, corpus: Path, whole: dict[str, object]
) -> None:
    with pytest.raises(CaptureError, match=r"^Interrupted: 1 of \d+ blocks .*\. `actstore\.fill"):
        actstore.fill(store, worker=0, n_workers=1, progress=Interrupted())
    assert not list((store / "captures/corpus/claims").iterdir())
    resumed = actstore.RunOptions(memory=32_000, resume=True)
    assert actstore.capture(str(tiny_model), corpus, store, options=resumed).is_complete
    assert written(store) == whole


def test_workers_fill_a_capture_on_an_object_store(
    tiny_model: Path, corpus: Path, s3: CountingProxy, tmp_path: Path
) -> None:
    """Planned, claimed, filled and finished there, by two at once: the bytes are those of one process on a disk."""
    location, few = f"s3://bucket/{uuid.uuid4()}/store", SETTINGS | {"max_tokens": 130}
    actstore.capture(str(tiny_model), corpus, tmp_path / "whole", options=OPTIONS, **few)
    actstore.plan(str(tiny_model), corpus, location, options=OPTIONS, **few)
    filled: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda worker=i: filled.append(actstore.fill(location, worker=worker, n_workers=2)))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    capture = actstore.finish(location)
    assert sorted(block for blocks in filled for block in blocks) == list(range(capture.record.plan.n_blocks))
    assert written(downloaded(location, tmp_path / "copy")) == written(tmp_path / "whole")


@pytest.mark.parametrize("may_pass", [True, False])
def test_where_a_network_was_cut_it_is_said_how_to_go_on(
    store: Path, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, may_pass: bool
) -> None:
    """Where the same request may succeed later: a wrong name or key is corrected first."""

    def cut(*_: object, **__: object) -> None:
        error = StorageError("s3://bucket/store cannot be written: no server answers.")
        error.may_pass = may_pass
        raise error

    monkeypatch.setattr(Filler, "fill", cut)
    monkeypatch.setattr(Filler, "fill_claimed", cut)
    said = r"s3://bucket/store cannot be written: no server answers\."
    with pytest.raises(StorageError, match=said) as error:
        actstore.fill(store)
    assert ("What was committed stays; `actstore.fill(…)` goes on" in str(error.value)) == may_pass
    options = dataclasses.replace(OPTIONS, resume=True)
    with pytest.raises(StorageError, match=said) as error:
        actstore.capture(str(tiny_model), corpus, store, options=options)
    assert ("What was committed stays; the same call with `resume=True` goes on" in str(error.value)) == may_pass

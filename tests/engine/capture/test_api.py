"""A capture from beginning to end, and everything that can stop it: whatever does, resuming ends in the same store."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from zarr.storage import LocalStore

import actstore
from actstore.engine.capture.api import RunOptions, capture
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.sizes import estimate_nbytes
from actstore.engine.verify.refill import refill_blocks
from actstore.store.capture.statistics import running
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, sum_statistics
from actstore.store.errors import ActstoreError, CaptureError, InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.layout import folded_statistics_key
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.storage.writers import KeyWriter
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from counting_proxy import CountingProxy

    from actstore.store.reader import Capture

SMALL: dict[str, Any] = {"context": 16, "max_tokens": 900, "label_columns": ("language",), "precision": "int8"}
TINY_BLOCKS = 32_000
"""Bytes of buffers that make blocks of 64 slots."""


def contents(store: Path) -> dict[str, Any]:
    """Every file of a store by name, without what may differ between runs: times, ids, checkpoints, lock, leftovers."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        name = str(path.relative_to(store))
        if path.suffix in (".lock", ".partial") or path.name.startswith("folded."):
            continue
        if path.parent.name == "blocks" and path.suffix == ".json":
            found[name] = json.loads(path.read_text())["shards"]
        elif path.name == "zarr.json":
            found[name] = _timeless(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("created", "checksum", "id", "root")}
    return value


def assert_same_store(found: Path, expected: Path) -> None:
    a, b = contents(found), contents(expected)
    assert sorted(a) == sorted(b)
    assert [name for name in a if a[name] != b[name]] == []


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing interrupted."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    done = capture(str(tiny_model), corpus, store, options=RunOptions(memory=TINY_BLOCKS), **SMALL)
    assert done.is_complete
    assert done.record.plan.n_blocks > 10
    return store


@pytest.fixture
def run(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Capture]:
    """Capture into `tmp_path / "store"` as `undisturbed` was, but for what is given."""

    def go(
        model: Path = tiny_model, corpus: Path = corpus, progress: CaptureProgress | None = None, **changes: Any
    ) -> Capture:
        options = {"memory": TINY_BLOCKS} | {
            k: changes.pop(k) for k in ("resume", "dtype", "tokenizer") if k in changes
        }
        settings = changes if options.get("resume") else SMALL | changes
        return capture(
            str(model), corpus, tmp_path / "store", options=RunOptions(**options), progress=progress, **settings
        )

    return go


class Stop(CaptureProgress):
    """Interrupts a run in its n-th batch, as Ctrl-C would."""

    def __init__(self, n: int) -> None:
        self.n = n

    def filled(self, n_tokens: int) -> None:
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt


def test_a_capture_takes_two_requests_per_object_of_a_server(
    tiny_model: Path, corpus: Path, undisturbed: Path, s3: CountingProxy
) -> None:
    location = f"s3://bucket/{uuid.uuid4()}/store"
    done = capture(str(tiny_model), corpus, location, options=RunOptions(memory=TINY_BLOCKS), **SMALL)
    n_requests, n_objects = len(s3.requests), sum(1 for _ in done.folder.sizes())
    assert done.record.plan.n_blocks > 10
    assert n_requests <= 2 * n_objects
    assert {key for key, _ in done.folder.sizes()} == {
        str(path.relative_to(undisturbed))
        for path in undisturbed.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


# Stopped and resumed


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Processes that are forked from one in which everything is imported: a second each, not ten."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "TQDM_DISABLE"):
            patch.setenv(name, "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["actstore.engine.capture.api", "transformers.models.llama.modeling_llama", "transformers.models.auto"]
        )
        yield context


def kill_and_resume(
    processes: Any, moments: int, expected: Path, arguments: tuple[str, Path], settings: dict[str, Any], store: Path
) -> None:
    options = RunOptions(memory=TINY_BLOCKS)

    def start(name: str) -> Any:
        process = processes.Process(
            target=capture, args=(*arguments, store / name), kwargs={"options": options, **settings}
        )
        process.start()
        return process

    start("warm").join()
    began = time.monotonic()
    start("timed").join()
    duration = time.monotonic() - began
    chance, committed = random.Random(moments), []
    for i in range(moments):
        target = store / f"killed-{i}"
        process = start(target.name)
        process.join(chance.uniform(0.1, 1.0) * duration)
        process.kill()
        process.join()
        committed.append(len(list(target.glob("captures/corpus/blocks/*.json"))))
        capture(*arguments, target, options=RunOptions(memory=TINY_BLOCKS, resume=True), **settings)
        assert_same_store(target, expected)
        shutil.rmtree(target)
    print(f"killed after {duration:.2f} s or less, blocks committed: {committed}")


def test_killed_at_random_moments_a_capture_resumes_to_the_same_store(
    processes: Any, undisturbed: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    kill_and_resume(processes, 1, undisturbed, (str(tiny_model), corpus), SMALL, tmp_path)


@pytest.mark.slow
def test_killed_at_twenty_moments_over_many_blocks_and_checkpoints(
    processes: Any, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"context": 16, "label_columns": ("language",), "sites": ("mlp.post", "resid.post")}
    arguments = (str(tiny_model), corpus)
    done = capture(*arguments, tmp_path / "expected", options=RunOptions(memory=TINY_BLOCKS), **settings)
    assert done.record.plan.n_blocks > 65, "statistics are checkpointed at the 64th"
    kill_and_resume(processes, 20, tmp_path / "expected", arguments, settings, tmp_path)


@pytest.mark.parametrize("n_batches", [1, 9, 20])
def test_interrupted_a_capture_keeps_what_is_committed_and_resumes(
    run: Callable[..., Capture], undisturbed: Path, tmp_path: Path, n_batches: int
) -> None:
    with pytest.raises(
        CaptureError, match=r"^Interrupted: \d+ of \d+ blocks of capture 'corpus' .* `resume=True`"
    ) as caught:
        run(progress=Stop(n_batches))
    held, whole = actstore.open(tmp_path / "store").capture(), actstore.open(undisturbed).capture()
    assert f"{len(held.blocks)} of {whole.record.plan.n_blocks}" in str(caught.value)
    assert len(held.blocks) < whole.record.plan.n_blocks
    for block in held.blocks:
        np.testing.assert_array_equal(held.raw_block(1, block), whole.raw_block(1, block))
    assert verify_capture(held) == []
    assert held.neurons().num_rows == 48
    assert run(resume=True).is_complete
    assert_same_store(tmp_path / "store", undisturbed)


@pytest.mark.parametrize("lost", [(), (2,), (9,)])
def test_checkpoints_are_those_of_an_undisturbed_run(
    run: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
) -> None:
    """They are written in the background: a run may be stopped when all blocks are committed, and none is written."""
    monkeypatch.setattr(running, "CHECKPOINT_BLOCKS", 4)
    done = run()
    folder, checkpoint = tmp_path / "store/captures/corpus", tmp_path / "store" / folded_statistics_key("corpus")
    written, whole = checkpoint.read_bytes(), done.statistics().encode()
    total, n_blocks = CaptureStatistics.decode(written, done.record, "here")
    assert n_blocks == len(done.blocks) // 4 * 4
    assert total.encode() == sum_statistics(done.folder, done.record, range(n_blocks)).encode()
    for name in ("neurons.parquet", "committed.json", *(f"blocks/{block}.json" for block in lost)):
        (folder / name).unlink()
    checkpoint.unlink()
    done = run(resume=True)
    assert done.statistics().encode() == whole
    assert lost or checkpoint.read_bytes() == written, "it is bound to the records of blocks, which have a time"
    assert CaptureStatistics.decode(checkpoint.read_bytes(), done.record, "here")[0].encode() == total.encode()


def test_resuming_a_finished_capture_changes_nothing(run: Callable[..., Capture], tmp_path: Path) -> None:
    run()
    before = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.name not in ("writer.lock", "corpus")
    }
    run(resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_resume_begins_a_capture_that_was_never_begun(
    run: Callable[..., Capture], undisturbed: Path, tmp_path: Path
) -> None:
    run(**SMALL, resume=True)
    assert_same_store(tmp_path / "store", undisturbed)


def test_a_resumed_run_computes_in_the_dtype_it_was_begun_in(run: Callable[..., Capture]) -> None:
    with pytest.raises(CaptureError):
        run(progress=Stop(9), dtype="bfloat16")
    assert run(resume=True).record.dtype == "bfloat16"


class SmallDisk:
    """A disk that takes a limited number of bytes, whichever way they are written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room: float = float("inf")
        self.written = 0
        write, zarr_write, stream = Folder.write, LocalStore._set, KeyWriter.write

        def folder_write(folder: Folder, key: str, data: Any) -> None:
            self.take(len(data))
            write(folder, key, data)

        async def zarr_set(store: LocalStore, key: str, value: Any, exclusive: bool = False) -> None:
            self.take(len(value))
            await zarr_write(store, key, value, exclusive)

        def stream_write(writer: KeyWriter, data: Any) -> int:
            self.take(len(data))
            return stream(writer, data)

        patch.setattr(Folder, "write", folder_write)
        patch.setattr(LocalStore, "_set", zarr_set)
        patch.setattr(KeyWriter, "write", stream_write)

    def take(self, nbytes: int) -> None:
        if self.written + nbytes > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += nbytes


@pytest.fixture(scope="module")
def n_written(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes that the run of `undisturbed` writes."""
    with pytest.MonkeyPatch.context() as patch:
        disk = SmallDisk(patch)
        options = RunOptions(memory=TINY_BLOCKS)
        capture(str(tiny_model), corpus, tmp_path_factory.mktemp("written") / "store", options=options, **SMALL)
    return disk.written


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_full_disk_leaves_what_is_committed_and_the_run_resumes(
    run: Callable[..., Capture],
    undisturbed: Path,
    n_written: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    with monkeypatch.context() as patch:
        SmallDisk(patch).room = n_written * share
        with pytest.raises((CaptureError, OSError)) as caught:
            run()
    store = tmp_path / "store"
    if isinstance(caught.value, CaptureError):
        held, whole = actstore.open(store).capture(), actstore.open(undisturbed).capture()
        assert "is full" in str(caught.value)
        assert "resume" in str(caught.value)
        for block in held.blocks:
            np.testing.assert_array_equal(held.raw_block(0, block), whole.raw_block(0, block))
        assert verify_capture(held) == []
    else:
        assert not list(store.glob("captures/corpus/*")), "nothing is left of a capture that was not planned to the end"
        assert not store.exists() or actstore.open(store).captures == ()
    run(**SMALL, resume=True)
    assert_same_store(store, undisturbed)


@pytest.mark.slow
def test_a_file_system_that_is_really_full(tiny_model: Path, corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    mount, copy = tmp_path / "disk", tmp_path / "copy"
    mount.mkdir()
    needed = sum(p.stat().st_size for p in undisturbed.rglob("*"))
    command = f"{sys.executable} -m actstore.cli capture {tiny_model} {corpus} {mount}/store --memory {TINY_BLOCKS}"
    command += " --context 16 --max-tokens 900 --label language --precision int8 --ignore-disk"
    script = f"mount -t tmpfs -o size={needed * 2 // 3} tmpfs {mount} || exit 77; {command}; echo status $?"
    script += f"; cp -r {mount}/store {copy}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert "status 1" in done.stdout, done.stderr
    assert "is full" in done.stderr
    assert "Traceback" not in done.stderr
    held = actstore.open(copy).capture()
    assert verify_capture(held) == []
    assert not held.is_complete
    capture(str(tiny_model), corpus, copy, options=RunOptions(resume=True))
    assert_same_store(copy, undisturbed)


# Refusals


def begun(run: Callable[..., Capture]) -> None:
    with pytest.raises(CaptureError):
        run(progress=Stop(9))


def refused(run: Callable[..., Capture], store: Path, message: str, **changes: Any) -> None:
    """Resuming with `changes` says what differs and changes nothing."""
    before = contents(store)
    with pytest.raises(ActstoreError, match=message) as caught:
        run(resume=True, **changes)
    assert "\n" not in str(caught.value)
    assert contents(store) == before


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The same architecture with one weight changed."""
    folder = tmp_path / "other-model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_resume_names_what_differs(
    run: Callable[..., Capture], corpus: Path, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    begun(run)
    store, lines = tmp_path / "store", corpus.read_text().splitlines(keepends=True)
    refused(run, store, "precision is int8 there and half now", precision="half")
    refused(run, store, "exemplars is 20 there and 3 now; context is 16 there and 32 now", context=32, exemplars=3)
    refused(run, store, "another model than .* The weights, the configuration or `dtype` differ", model=other_model)
    refused(run, store, "another model .* `dtype` differ", dtype="bfloat16")
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join([lines[0].replace("quick", "slow"), *lines[1:]]))
    refused(run, store, "the corpus .*changed.jsonl is not what was planned from .*corpus.jsonl", corpus=changed)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    refused(run, store, "the tokenizer is another", tokenizer=str(tmp_path / "tokenizer"))


def test_resume_refuses_a_corpus_that_grew_or_shrank(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_text().splitlines(keepends=True)
    path, options = tmp_path / "growing.jsonl", RunOptions(memory=TINY_BLOCKS)
    path.write_text("".join(lines[:10]))
    with pytest.raises(CaptureError):
        capture(str(tiny_model), path, tmp_path / "store", options=options, progress=Stop(3), context=16)
    for n in (11, 9):
        path.write_text("".join(lines[:n]))
        with pytest.raises(InvalidInputError, match="is not what was planned"):
            capture(str(tiny_model), path, tmp_path / "store", options=RunOptions(resume=True))
    path.write_text("".join(lines[:10]))
    assert capture(str(tiny_model), path, tmp_path / "store", options=RunOptions(resume=True)).is_complete


def test_a_finished_or_begun_capture_is_not_overwritten(run: Callable[..., Capture], tmp_path: Path) -> None:
    begun(run)
    before = contents(tmp_path / "store")
    with pytest.raises(InvalidInputError, match=r"already has a capture 'corpus'. Continue it with `resume=True`"):
        run()
    assert contents(tmp_path / "store") == before


def test_a_second_writer_is_told_who_the_first_is(
    run: Callable[..., Capture], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    begun(run)
    before = contents(tmp_path / "store")
    with own(Folder(tmp_path / "store", read_only=False), "corpus"):
        with pytest.raises(ReadOnlyError, match=rf"'corpus' of .* is being written by process {os.getpid()} on "):
            run(resume=True)
        options = RunOptions(memory=TINY_BLOCKS)
        other = capture(str(tiny_model), corpus, tmp_path / "store", name="other", options=options, **SMALL)
        assert other.is_complete, "another capture of the same store is free"
    kept = contents(tmp_path / "store")
    before["captures.json"] = kept["captures.json"]  # it names the other one too
    assert {k: v for k, v in kept.items() if "/other/" not in k} == before


def test_a_second_writer_does_not_take_away_what_the_first_has_planned(
    tmp_path: Path, run: Callable[..., Capture]
) -> None:
    folder = Folder(tmp_path / "store", read_only=False)
    with own(folder, "corpus"):
        folder.write("captures/corpus/tokens/ids/c/0", b"half a plan")
        with pytest.raises(ReadOnlyError):
            run()
        assert folder.read("captures/corpus/tokens/ids/c/0") == b"half a plan"


# One store, several captures


def test_a_second_capture_leaves_the_first_alone(run: Callable[..., Capture], tmp_path: Path) -> None:
    run()
    before = contents(tmp_path / "store")
    run(name="none", precision="none", max_tokens=200)
    run(name="resid", sites=("resid.post",), precision="half", max_tokens=200)
    after = contents(tmp_path / "store")
    before["captures.json"] = after["captures.json"]  # it names all of them
    assert {k: v for k, v in after.items() if not k.startswith(("captures/none/", "captures/resid/"))} == before
    assert actstore.open(tmp_path / "store").captures == ("corpus", "none", "resid")


def test_a_store_takes_no_second_model_and_no_second_tokenizer(
    run: Callable[..., Capture], other_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run()
    before = contents(tmp_path / "store")
    with pytest.raises(InvalidInputError, match="holds another model than"):
        run(model=other_model, name="second")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(InvalidInputError, match="captured with another tokenizer"):
        run(tokenizer=str(tmp_path / "tokenizer"), name="second")
    with pytest.raises(InvalidInputError, match="holds another model than"):
        run(dtype="bfloat16", name="second")
    assert contents(tmp_path / "store") == before


# Failures before the plan is complete


def test_a_folder_with_other_content_is_left_alone(run: Callable[..., Capture], tmp_path: Path) -> None:
    precious = tmp_path / "store" / "weights" / "model.safetensors"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"years of training")
    with pytest.raises(InvalidInputError, match=r"other content \(weights, …\)"):
        run()
    assert precious.read_bytes() == b"years of training"


def test_an_empty_folder_may_become_a_store(run: Callable[..., Capture], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert run().is_complete


def test_a_plan_that_fails_leaves_nothing(run: Callable[..., Capture], tmp_path: Path, undisturbed: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": "good", "language": "en"}\n' * 70 + b'{"text": "\xff"}\n')
    with pytest.raises(InvalidInputError, match=r"bad.jsonl"):
        run(corpus=bad)
    assert not (tmp_path / "store").exists()
    run()
    assert_same_store(tmp_path / "store", undisturbed)


def test_a_plan_killed_half_way_does_not_bar_the_next(
    run: Callable[..., Capture], tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "store")
    for name in ("blocks", "values", "gate_sign", "scale", "statistics"):
        shutil.rmtree(tmp_path / "store/captures/corpus" / name)
    for group in ("zarr.json", "captures/corpus/zarr.json"):
        (tmp_path / "store" / group).write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')
    for key in (*("neurons.parquet", "exemplars.parquet", "committed.json", "numerics.json"), "../../captures.json"):
        (tmp_path / "store/captures/corpus" / key).unlink()
    with pytest.raises(ActstoreError):
        actstore.open(tmp_path / "store")
    run()
    assert_same_store(tmp_path / "store", undisturbed)


def test_too_small_a_disk_is_refused_before_the_model_runs(
    run: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(InvalidInputError, match=r"needs about .* GB, and the disk of .* GB free. Make room"):
        run()
    assert not (tmp_path / "store").exists()


def test_the_disk_estimate_is_near_what_is_taken(run: Callable[..., Capture], tmp_path: Path) -> None:
    done = run(precision="exact")
    prefix = "captures/corpus/"
    taken = sum(
        n for key, n in done.folder.sizes(prefix) if key[len(prefix) :].startswith(("values", "gate", "blocks"))
    )
    assert 0.5 < estimate_nbytes(done.record) / taken < 2


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "zarr.json", "a b"])
def test_a_captures_name_must_be_a_folders(run: Callable[..., Capture], tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"name is letters, digits"):
        run(name=name)
    assert not (tmp_path / "store").exists()


# What is in the activations


def test_values_that_are_not_finite_are_kept_counted_and_averaged_nowhere(
    run: Callable[..., Capture], tiny_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(tiny_model, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    # In the last layer, so that nothing else is computed from it.
    weights["model.layers.1.mlp.up_proj.weight"][5] = torch.nan
    weights["model.layers.1.mlp.up_proj.weight"][6] = 1e38
    weights["model.layers.1.mlp.gate_proj.weight"][6] = 1e38
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    done, clean = run(model=poisoned, precision="exact"), actstore.open(undisturbed).capture()
    found, expected = done.layer_statistics(1, "mlp.post"), clean.layer_statistics(1, "mlp.post")
    n_counted = int(done.statistics().label_tokens[-1])
    assert (found.non_finite[5], found.count[5]) == (n_counted, 0)
    assert 0 < found.non_finite[6] <= n_counted
    others = np.delete(np.arange(24), [5, 6])
    for name, array in found.arrays().items():
        axis = 1 if name == "positives" else 0
        np.testing.assert_array_equal(array.take(others, axis), expected.arrays()[name].take(others, axis), name)
    assert np.isnan(done.activations(1, 5)).all()
    assert np.isfinite(done.activations(1, 4)).all()
    row = done.neurons().to_pylist()[24 + 5]
    assert (row["name"], row["mean"], row["q50"], row["max"], row["non_finite"]) == (
        "L1.N5",
        None,
        None,
        None,
        n_counted,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_beyond_float16_are_counted_at_precision_half(
    tiny_model: Path, corpus: Path, tmp_path: Path, dtype: str
) -> None:
    large = tmp_path / "large"
    shutil.copytree(tiny_model, large)
    weights = load_file(large / "model.safetensors")
    for neuron, factor in ((5, 1e8), (6, 1e12)):  # in the last layer, so that nothing else is computed from it
        weights["model.layers.1.mlp.up_proj.weight"][neuron] *= factor
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    half, exact = (
        capture(str(large), corpus, tmp_path / "store", name=name, options=RunOptions(dtype=dtype),
                **SMALL | {"precision": name})
        for name in ("half", "exact")
    )  # fmt: skip
    expected = np.stack([exact.activations(1, neuron) for neuron in range(24)])
    assert np.isfinite(expected).all()
    n_large = (np.abs(expected) >= 65520).sum(axis=1)  # at special tokens too
    assert half.layer_statistics(1, "mlp.post").overflow.tolist() == n_large.tolist()
    assert half.overflow["mlp.post"].names == ["L1.N5", "L1.N6"]
    assert n_large[6] > n_large[5] > 0
    assert half.statistics().n_non_finite == 0
    stored = np.stack([half.activations(1, neuron) for neuron in range(24)])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(stored, expected.astype(np.float16))
    for name, array in half.layer_statistics(1, "mlp.post").arrays().items():
        if name != "overflow":  # all others are of the values as they were
            np.testing.assert_array_equal(array, exact.layer_statistics(1, "mlp.post").arrays()[name], name)
    assert not exact.layer_statistics(1, "mlp.post").overflow.any()
    assert refill_blocks(half, 1)[1] == []


def test_without_a_tokenizer_ids_can_be_captured_and_text_cannot(
    tiny_model: Path, tmp_path: Path, corpus: Path
) -> None:
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(bare)
    ids = tmp_path / "ids.jsonl"
    ids.write_text("".join(json.dumps({"input_ids": list(range(i, 5 * i + 3))}) + "\n" for i in range(30)))
    options = RunOptions(memory=TINY_BLOCKS)
    done = capture(str(bare), ids, tmp_path / "store", options=options, context=16)
    assert done.record.plan.tokenizer_fingerprint == ""
    assert done.record.plan.n_tokens == sum(4 * i + 3 for i in range(30))
    assert verify_capture(done) == []
    assert done.store.neuron(0, 0).exemplars(1).to_pylist()[0]["token"].startswith("<")
    with pytest.raises(InvalidInputError, match="Pass one as `tokenizer`"):
        capture(str(bare), corpus, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_python_callers_get_the_same_checks(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no file or folder"):
        capture(str(tiny_model), tmp_path / "nowhere.txt", tmp_path / "store")
    with pytest.raises(InvalidInputError, match="`dtype` is one of"):
        capture(str(tiny_model), corpus, tmp_path / "store", options=RunOptions(dtype="int3"))
    assert not (tmp_path / "store").exists()


class Told(CaptureProgress):
    """Remembers what a run reports."""

    def __init__(self) -> None:
        self.n_planned = self.n_started = self.n_done = self.n_filled = 0

    def planned(self, n_documents: int, n_tokens: int) -> None:
        self.n_planned = n_tokens

    def started(self, n_tokens: int, n_done: int, nbytes: int) -> None:
        self.n_started, self.n_done = n_tokens, n_done

    def filled(self, n_tokens: int) -> None:
        self.n_filled += n_tokens

    @classmethod
    def of(cls, run: Callable[..., Capture], **changes: Any) -> Self:
        told = cls()
        run(progress=told, **changes)
        return told


def test_progress_adds_up(run: Callable[..., Capture], undisturbed: Path) -> None:
    n_tokens = actstore.open(undisturbed).capture().record.plan.n_tokens
    begun(run)
    told = Told.of(run, resume=True)
    assert told.n_started == n_tokens
    assert 0 < told.n_filled < n_tokens
    assert told.n_done == pytest.approx(n_tokens - told.n_filled, abs=64)


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_corpus(tiny_model: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys; from actstore.engine.capture.api import RunOptions, capture\n"
        "done = capture(sys.argv[1], sys.argv[2], sys.argv[3], options=RunOptions(memory=4_000_000, threads=1), context=64)\n"
        "print(done.record.plan.n_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    line = json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 6}) + "\n"
    found = []
    for n in (1500, 6000):
        (tmp_path / f"{n}.jsonl").write_text(line * n)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script, str(tiny_model), str(tmp_path / f"{n}.jsonl"), str(tmp_path / f"store-{n}")],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(tuple(map(int, done.stdout.split())))
    (few, small), (many, large) = found
    print(f"{small / 1024:.0f} MiB at {few} tokens, {large / 1024:.0f} MiB at {many}")
    assert many > 3.9 * few
    assert large < 1.05 * small


def test_ids_are_read_as_they_are_whatever_the_tokenizer_would_add(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [0, 5, 6]}\n{"input_ids": [7, 8]}\n')
    found = capture(str(tiny_model), path, tmp_path / "as-they-are")
    assert sorted(found.plan.array("inputs/ids").tolist()) == [0, 5, 6, 7, 8]
    found = capture(str(tiny_model), path, tmp_path / "opened", begin="always")
    assert sorted(found.plan.array("inputs/ids").tolist()) == [0, 0, 0, 5, 6, 7, 8]

"""What checksums of rows cost: reading one neuron, reading a layer, and capturing, each with them and without."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import actstore
from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.models.load import load_model
from actstore.store import layout
from actstore.store.capture.commits import read_commit
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.unchecked import write_verified
from actstore.store.capture.writer import CaptureWriter
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.records import with_checksum
from actstore.store.files.shards import checksum, encode_shard, shard_parts, shard_seed
from actstore.store.storage.folder import Folder
from benchmarks.registry import Candidate, Row
from benchmarks.rows.capture import Bench, make_ids, work_folder
from benchmarks.rows.reading import N_NEURONS, expect_same, stored
from benchmarks.synthetic import BLOCK, Gated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.store.files.records import CaptureRecord


def write_record(folder: Folder, record: CaptureRecord) -> None:
    """The record of a capture as it is, where `create_capture` gives it an identity."""
    attributes = {"actstore_capture": with_checksum(record.to_json())}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    folder.write_json(f"{layout.capture_key(record.name)}/zarr.json", group)


@contextmanager
def unchecked(path: Path) -> Iterator[Path]:
    """A store with the same capture as it was before rows had checksums; `verify` has seen it."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-", dir=path.parent) as name:
        store, folder = actstore.open(path), Folder(Path(name) / "store", read_only=False)
        shutil.copytree(path, folder.location)
        capture = store.capture()
        record = dataclasses.replace(capture.record, identity="")
        write_record(folder, record)
        for block in capture.blocks:
            commit = read_commit(Folder(path), capture.record, block)
            shards = dict(commit.shards)
            for spec in block_arrays(record):
                key = layout.shard_key(spec.key, block)
                data = encode_shard(capture.raw_block(0, block), spec.grid, spec.compression)
                folder.write(key, data)
                shards[key.removeprefix("captures/corpus/")] = len(data), checksum(data)
            again = dataclasses.replace(commit, shards=shards, identity="").with_checksum()
            folder.write_json(layout.commit_key("corpus", block), again.to_json())
        write_verified(folder, record, capture.blocks)
        yield Path(folder.location)


@contextmanager
def prepare_checksums(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The same capture with checksums of rows and without: one neuron, another each time, and all neurons of a block."""
    with stored(2 if quick else 62) as (folder, _, shape), unchecked(folder) as before:
        checked, plain = (actstore.open(path).capture() for path in (folder, before))
        expect_same(checked.raw_block(0, 1), plain.raw_block(0, 1))
        ours, theirs = itertools.count(3, 7), itertools.count(3, 7)
        yield {
            f"one neuron, {shape[0]:,} tokens": Candidate(
                lambda: checked.activations(0, next(ours) % N_NEURONS, dtype=np.float16)
            ),
            "one neuron, without checksums": Candidate(
                lambda: plain.activations(0, next(theirs) % N_NEURONS, dtype=np.float16)
            ),
            f"{N_NEURONS:,} neurons, {BLOCK:,} tokens": Candidate(lambda: checked.raw_block(0, 1)),
            f"{N_NEURONS:,} neurons, without checksums": Candidate(lambda: plain.raw_block(0, 1)),
        }


@contextmanager
def prepare_writing(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Encoding one shard, and capturing a whole model in float16 with statistics."""
    values = np.ascontiguousarray(Gated(N_NEURONS).values(0, 0, np.empty(BLOCK)).T)
    grid, seed = layout.shard_grid(*values.shape), shard_seed("8d" * 16, "values", 0)

    def encode(seed: int | None) -> None:
        for _ in shard_parts(values, grid, seed=seed):
            pass

    with work_folder() as folder:
        bench = Bench(folder, load_model(folder / "model"), make_ids(4096 if quick else BLOCK))
        yield {
            f"encode {N_NEURONS:,} neurons, {BLOCK:,} tokens": Candidate(lambda: encode(seed)),
            "encode, without checksums": Candidate(lambda: encode(None)),
            "capture, float16 and statistics": Candidate(bench.capture("half")),
            "capture, without checksums": Candidate(capture_without(bench)),
        }


def capture_without(bench: Bench) -> Callable[[], None]:
    """As `Bench.capture`, of a record without the identity that checksums of rows begin with."""
    folder, record = dataclasses.replace(bench, folder=bench.folder / "without").plan("half")
    record = dataclasses.replace(record, identity="")
    write_record(folder, record)

    def run() -> None:
        with CaptureWriter(folder, record, n_threads=os.cpu_count() or 2, overlap=False) as writer:
            fill_blocks(folder, record, bench.model, writer, list(range(record.plan.n_blocks)), CaptureProgress())
        RunningStatistics(folder, record).advance()

    return run


TESTS = ("tests/store/files", "tests/store/capture")
ROWS = (
    Row("checksums of rows, reading", prepare_checksums, TESTS, repeats=15),
    Row("checksums of rows, writing", prepare_writing, TESTS, repeats=9),
)

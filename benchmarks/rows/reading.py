"""Reading one neuron over a corpus, one token over a layer, and statistics: the store against files of the same values.

The others are a token-major memory map, Arrow rows (one row per token, with a list of all activations of the layer; as Feather,
memory-mapped, and as Parquet), and splits as delphi writes and reads them: for each fifth of the neurons one safetensors file
with the values that are not 0, in token order, and their positions.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

import actstore
from actstore.kernels.pack.api import HISTOGRAM_EDGES, Columns, Statistics, pack
from benchmarks.registry import Candidate, Row
from benchmarks.synthetic import BLOCK, WINDOW, Gated, write_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

N_NEURONS = 1536
N_SPLITS = 5
"""delphi's default."""
NON_ZERO = 0.05
MEMMAP = "float16 memmap [token, neuron]"


def evict(path: Path) -> None:
    """Drop a file's, or a folder's files', pages from the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextmanager
def stored(
    n_blocks: int, sparse: float = 0.0, *, in_both_orders: bool = False
) -> Iterator[tuple[Path, Path, tuple[int, int]]]:
    """A store of one layer, a token-major file of the same values, and the file's shape."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder, file = Path(name) / "store", Path(name) / "tokens.f16"
        shape = (n_blocks * BLOCK, N_NEURONS)
        source = Gated(N_NEURONS, sparse)
        write_capture(source, folder, "corpus", shape[0])
        if in_both_orders:
            write_capture(source, folder, "by-token", shape[0], "token")
        ids = source.windows(BLOCK // WINDOW, 0)
        with file.open("wb") as target:
            for block in range(n_blocks):
                source.values(0, block, ids).tofile(target)
        expect_same(actstore.open(folder).neuron(0, 777).activations(), map_file(file, shape)[:, 777])
        yield folder, file, shape


def map_file(file: Path, shape: tuple[int, int]) -> np.memmap:
    return np.memmap(file, np.float16, "r", shape=shape)


def expect_same(one: NDArray, other: NDArray) -> None:
    if not np.array_equal(one, other):
        raise AssertionError("the store and the other files have different values")


@contextmanager
def prepare_warm(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Both already open, every byte in the page cache, another neuron each time."""
    with stored(8 if quick else 62) as (folder, file, shape):
        capture, matrix = actstore.open(folder).capture(), map_file(file, shape)
        ours, theirs = itertools.count(3, 7), itertools.count(3, 7)
        yield {
            f"actstore, {shape[0]:,} tokens": Candidate(
                lambda: capture.activations(0, next(ours) % N_NEURONS, dtype=np.float16)
            ),
            f"one column of a {MEMMAP}": Candidate(lambda: np.array(matrix[:, next(theirs) % N_NEURONS])),
        }


@contextmanager
def prepare_cold(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Both opened by the run itself, nothing in the page cache."""
    with stored(8 if quick else 62) as (folder, file, shape):
        os.sync()
        yield {
            f"actstore, {shape[0]:,} tokens": Candidate(
                lambda: actstore.open(folder).capture().activations(0, 777, dtype=np.float16), lambda: evict(folder)
            ),
            f"one column of a {MEMMAP}": Candidate(
                lambda: np.array(map_file(file, shape)[:, 777]), lambda: evict(file)
            ),
        }


@dataclass(frozen=True)
class ArrowRows:
    """One row per token with a list of all activations; files that are already open."""

    feather: pa.Table
    parquet: pq.ParquetFile

    @classmethod
    def write(cls, folder: Path, matrix: NDArray[np.float16]) -> ArrowRows:
        schema = pa.schema([("activations", pa.list_(pa.float16(), N_NEURONS))])
        feather, parquet = folder / "rows.feather", folder / "rows.parquet"
        with pa.ipc.new_file(str(feather), schema) as one, pq.ParquetWriter(parquet, schema) as other:
            for start in range(0, len(matrix), BLOCK):
                flat = pa.array(matrix[start : start + BLOCK].reshape(-1))
                rows = pa.table([pa.FixedSizeListArray.from_arrays(flat, N_NEURONS)], schema)
                one.write_table(rows)
                other.write_table(rows, row_group_size=BLOCK)
        mapped = pa.ipc.open_file(pa.memory_map(str(feather))).read_all()
        return cls(mapped, pq.ParquetFile(parquet))

    @staticmethod
    def _matrix(rows: pa.Table) -> list[NDArray[np.float16]]:
        chunks = rows["activations"].chunks
        return [chunk.flatten().to_numpy().reshape(-1, N_NEURONS) for chunk in chunks]

    def feather_neuron(self, neuron: int) -> NDArray[np.float16]:
        return np.concatenate([chunk[:, neuron] for chunk in self._matrix(self.feather)])

    def parquet_neuron(self, neuron: int) -> NDArray[np.float16]:
        return np.concatenate([chunk[:, neuron] for chunk in self._matrix(self.parquet.read())])

    def feather_token(self, token: int) -> NDArray[np.float16]:
        return np.array(self._matrix(self.feather.slice(token, 1))[0][0])

    def parquet_token(self, token: int) -> NDArray[np.float16]:
        rows = self.parquet.read_row_group(token // BLOCK)
        return self._matrix(rows.slice(token % BLOCK, 1))[0][0]


@dataclass(frozen=True)
class Splits:
    """Files of `activations` [value] and `locations` [value, (window, position, neuron from the split's first)]."""

    files: dict[int, Path]
    """First neuron → file."""
    n_tokens: int

    @classmethod
    def write(cls, folder: Path, matrix: NDArray[np.float16]) -> Splits:
        borders = np.linspace(0, N_NEURONS, N_SPLITS + 1).astype(int)
        files = {}
        for start, stop in itertools.pairwise(borders.tolist()):
            chunk = np.asarray(matrix[:, start:stop])
            token, neuron = np.nonzero(chunk)
            locations = np.stack([token // WINDOW, token % WINDOW, neuron], axis=1).astype(np.uint16)
            files[start] = folder / f"{start}_{stop - 1}.safetensors"
            save_file({"locations": locations, "activations": chunk[token, neuron]}, files[start])
        return cls(files, len(matrix))

    def neuron(self, neuron: int) -> NDArray[np.float16]:
        first = max(start for start in self.files if start <= neuron)
        split = load_file(self.files[first])
        mine = split["locations"][:, 2] == neuron - first
        values = np.zeros(self.n_tokens, np.float16)
        window, position, _ = split["locations"][mine].T.astype(np.int64)
        values[window * WINDOW + position] = split["activations"][mine]
        return values

    def token(self, token: int) -> NDArray[np.float16]:
        values = np.zeros(N_NEURONS, np.float16)
        for first, file in self.files.items():
            split = load_file(file)
            mine = (split["locations"][:, 0] == token // WINDOW) & (split["locations"][:, 1] == token % WINDOW)
            values[first + split["locations"][mine, 2].astype(np.int64)] = split["activations"][mine]
        return values


@contextmanager
def prepare_formats(quick: bool) -> Iterator[tuple[actstore.Capture, NDArray[np.float16], ArrowRows, Splits]]:
    """The same activations in every format, 5 % of them not 0, in the page cache."""
    with stored(1 if quick else 8, sparse=1 - NON_ZERO) as (folder, file, shape):
        matrix = map_file(file, shape)
        capture, rows, splits = (
            actstore.open(folder).capture(),
            ArrowRows.write(folder.parent, matrix),
            Splits.write(folder.parent, matrix),
        )
        for values in (rows.feather_neuron(777), rows.parquet_neuron(777), splits.neuron(777)):
            expect_same(values, matrix[:, 777])
        for values in (rows.feather_token(999), rows.parquet_token(999), splits.token(999), read_token(capture, 999)):
            expect_same(values, matrix[999])
        yield capture, matrix, rows, splits


def read_token(capture: actstore.Capture, token: int) -> NDArray[np.float16]:
    """All neurons at one token: the store decodes the block that it lies in."""
    return capture.raw_block(0, token // BLOCK)[:, token % BLOCK]


@contextmanager
def prepare_neuron(quick: bool) -> Iterator[dict[str, Candidate]]:
    """One neuron over all tokens, another each time."""
    with prepare_formats(quick) as (capture, matrix, rows, splits):
        turns = [itertools.count(3, 7) for _ in range(5)]

        def turn(number: int) -> int:
            return next(turns[number]) % N_NEURONS

        yield {
            f"actstore, {len(matrix):,} tokens": Candidate(
                lambda: capture.activations(0, turn(0), dtype=np.float16)
            ),
            f"one column of a {MEMMAP}": Candidate(lambda: np.array(matrix[:, turn(1)])),
            "Arrow rows, Feather, memory-mapped": Candidate(lambda: rows.feather_neuron(turn(2))),
            "Arrow rows, Parquet": Candidate(lambda: rows.parquet_neuron(turn(3))),
            f"{N_SPLITS} splits as delphi's: load one, select": Candidate(lambda: splits.neuron(turn(4))),
        }  # fmt: skip


@contextmanager
def prepare_token(quick: bool) -> Iterator[dict[str, Candidate]]:
    """All neurons at one token, another each time."""
    with prepare_formats(quick) as (capture, matrix, rows, splits):
        turns = [itertools.count(3, 7919) for _ in range(5)]

        def turn(number: int) -> int:
            return next(turns[number]) % len(matrix)

        yield {
            f"actstore, {N_NEURONS:,} neurons: decode the token's block": Candidate(
                lambda: read_token(capture, turn(0))
            ),
            f"one row of a {MEMMAP}": Candidate(lambda: np.array(matrix[turn(1)])),
            "Arrow rows, Feather, memory-mapped": Candidate(lambda: rows.feather_token(turn(2))),
            "Arrow rows, Parquet: read the token's row group": Candidate(lambda: rows.parquet_token(turn(3))),
            f"{N_SPLITS} splits as delphi's: load all, select": Candidate(lambda: splits.token(turn(4))),
        }  # fmt: skip


@contextmanager
def prepare_statistics(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Mean, M2, minimum, maximum and a histogram of every neuron."""
    with stored(1 if quick else 4) as (folder, file, shape):

        def ours() -> tuple[NDArray[np.generic], ...]:
            return _five(actstore.open(folder).capture().layer_statistics(0, "mlp.post"))

        def theirs() -> tuple[NDArray[np.generic], ...]:
            return numpy_statistics(map_file(file, shape))

        for mine, again, other in zip(ours(), recount(map_file(file, shape)), theirs(), strict=True):
            if not np.allclose(mine, other, rtol=1e-6) or not np.allclose(mine, again, rtol=1e-12):
                raise AssertionError("the statistics of the store and of numpy differ")
        yield {
            f"actstore: open, read the statistics of the capture; {shape[0]:,} tokens × {N_NEURONS:,} neurons": Candidate(
                ours
            ),
            f"actstore's kernel, counting over a {MEMMAP}": Candidate(lambda: recount(map_file(file, shape))),
            f"numpy over a {MEMMAP}: sum, sum of squares, min, max, searchsorted, bincount": Candidate(theirs),
        }


def recount(matrix: NDArray[np.float16]) -> tuple[NDArray[np.generic], ...]:
    """What capturing counts, without the model: the kernel's pass over all values."""
    counted = Statistics.empty(N_NEURONS, 1, 0)
    for start in range(0, len(matrix), BLOCK):
        chunk = matrix[start : start + BLOCK]
        token = np.arange(len(chunk))
        segments = np.arange(0, len(chunk) + 1, WINDOW)
        labels = np.empty((len(segments) - 1, 0), np.int32)
        pack(chunk, Columns(token, token, segments, labels, np.ones(len(chunk), bool), start), None, counted)
    return _five(counted)


def _five(statistics: Statistics) -> tuple[NDArray[np.generic], ...]:
    return statistics.mean, statistics.m2, statistics.minimum, statistics.maximum, statistics.histogram


def numpy_statistics(matrix: NDArray[np.float16]) -> tuple[NDArray[np.generic], ...]:
    """Mean, M2, minimum, maximum [neuron] and histogram [neuron, bin], in chunks that fit into the cache."""
    n_bins = len(HISTOGRAM_EDGES) - 1
    total, squares = np.zeros((2, N_NEURONS))
    low, high = np.full(N_NEURONS, np.inf, np.float32), np.full(N_NEURONS, -np.inf, np.float32)
    histogram = np.zeros(N_NEURONS * n_bins, np.int64)
    offset = np.arange(N_NEURONS) * n_bins - 1
    for start in range(0, len(matrix), 1024):
        chunk = matrix[start : start + 1024].astype(np.float32)
        total += chunk.sum(axis=0, dtype=np.float64)
        squares += np.einsum("tn,tn->n", chunk, chunk, dtype=np.float64)
        np.minimum(low, chunk.min(axis=0), out=low)
        np.maximum(high, chunk.max(axis=0), out=high)
        # A value on an edge belongs to the bin farther from zero.
        bins = np.searchsorted(HISTOGRAM_EDGES, np.where(chunk < 0, np.nextafter(chunk, -np.inf), chunk), side="right")
        histogram += np.bincount((bins + offset).ravel(), minlength=len(histogram))
    mean = total / len(matrix)
    return mean, squares - len(matrix) * mean**2, low, high, histogram.reshape(N_NEURONS, n_bins)


ROWS = (
    Row("read one neuron, open, in the page cache", prepare_warm, ("tests/store",), repeats=15),
    Row("read one neuron, opened anew, from disk", prepare_cold, ("tests/store",), repeats=5),
    Row("read one neuron, 5 % of activations not 0, in the page cache", prepare_neuron, ("tests/store",), repeats=5),
    Row("read one token, 5 % of activations not 0, in the page cache", prepare_token, ("tests/store",), repeats=5),
    Row("statistics of every neuron", prepare_statistics, ("tests/store",), repeats=3),
)

"""The product of write vectors and token directions, a tile at a time: BLAS multiplies, the caller works on the tile.

A tile is one product over all of d, made by one thread, of 16 rows and 16 columns or more. So made, BLAS adds up an
element in the same order whatever the tile, and neither the number of threads nor the sizes of tiles change a bit. (A
product that is itself spread over threads gives each a slice: three MKL threads differ from two in the narrow ones. And
one row, or one column, is added up otherwise.)
"""

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.kernels.floats import FloatArray

NEURONS, COLUMNS = 256, 1024  # of a tile: 1 MB, that stays in cache while the caller works on it
LEAST = 16  # rows and columns of a product; where there are fewer, the others mean nothing


class Tile(NamedTuple):
    """A rectangle of the product: its first neuron and column, and how many of each; Python's and numba's."""

    neuron: int
    n_neurons: int
    column: int
    n_columns: int


Epilogue = Callable[[NDArray[np.float32], Tile], None]
"""Called with the product of a tile, `[i, j]` being that of neuron + i and column + j, or of neuron + j and column + i; what
lies beyond n_neurons and n_columns means nothing. Several threads call it at a time, with different neurons; one neuron's
columns ascend."""


@dataclass(frozen=True)
class Factors:
    """What is multiplied: the write vector of every neuron with `gain ⊙ directions[rows[column]]`."""

    write_vectors: Tensor
    """[neuron, d] float32, float16 or bfloat16."""
    directions: Tensor
    """[row, d] likewise."""
    rows: Tensor | None
    """[column] int64; column j is row j where there is none."""
    gain: Tensor | None
    """[d] float32"""
    column_major: bool = False
    """Whether products are to be [column, neuron]."""

    @property
    def n_columns(self) -> int:
        """The columns of the product."""
        return len(self.directions if self.rows is None else self.rows)


def over_tiles(factors: Factors, epilogue: Epilogue, threads: int) -> None:
    """Call `epilogue` on every tile of the product."""
    n_columns = factors.n_columns
    ranges = _ranges(len(factors.write_vectors), threads)
    # Allocated once: memory that is given back and asked for again for every tile piles up.
    direction_rows = _allocate_like(factors.directions, min(COLUMNS, n_columns))
    scratch = {first: _Scratch.of(factors, first, last) for first, last in ranges}
    for column in range(0, n_columns if ranges else 0, COLUMNS):
        n = min(COLUMNS, n_columns - column)
        right = _take_columns(factors, column, n, direction_rows, threads)

        def work(first: int, last: int, column: int = column, n: int = n, right: Tensor = right) -> None:
            # All threads take the same columns, each its own neurons: a neuron's columns ascend, as the epilogue may rely on.
            for neuron in range(first, last, NEURONS):
                n_neurons = min(NEURONS, last - neuron)
                left = _as_float32(factors.write_vectors[neuron : neuron + n_neurons], scratch[first].rows)
                a, b = (right, left) if factors.column_major else (left, right)
                product = scratch[first].product[: len(a) * len(b)].view(len(a), len(b))
                torch.mm(a, b.T, out=product)
                epilogue(product.numpy(), Tile(neuron, n_neurons, column, n))

        _run(work, ranges, threads)


def spread(work: Callable[[int, int], None], n: int, threads: int) -> None:
    """Run `work(first, stop)` over n items in ranges of about the same size, each in a thread of its own."""
    _run(work, _ranges(n, threads), threads)


def _ranges(n: int, threads: int) -> list[tuple[int, int]]:
    n_ranges = max(1, min(threads, n // LEAST))
    borders = [n // LEAST * i // n_ranges * LEAST for i in range(n_ranges)] + [n]
    return [*pairwise(borders)] if n else []


def _run(work: Callable[[int, int], None], ranges: list[tuple[int, int]], threads: int) -> None:
    futures = [_pool(threads, os.getpid()).submit(work, *ends) for ends in ranges]
    errors = [future.exception() for future in futures]  # waits for all: nobody works on when this returns
    for error in errors:
        if error is not None:
            raise error


def as_tensor(array: FloatArray) -> Tensor:
    """A tensor that shares the memory of an array in one of the three formats; uint16 becomes bfloat16."""
    bits = array.view(np.int16) if array.dtype == np.uint16 else array
    with nullcontext() if bits.flags.writeable else warnings.catch_warnings(action="ignore", category=UserWarning):
        tensor = torch.from_numpy(bits)  # warns of weights that are mapped; they are only read
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


class _Scratch(NamedTuple):
    """The memory in which a thread makes its products."""

    rows: Tensor
    """[neuron, d] float32"""
    product: Tensor
    """Flat, float32."""

    @classmethod
    def of(cls, factors: Factors, first: int, last: int) -> "_Scratch":
        n_rows, n_columns = min(NEURONS, last - first), min(COLUMNS, factors.n_columns)
        return cls(
            _allocate_like(factors.write_vectors, n_rows), torch.empty(max(LEAST, n_rows) * max(LEAST, n_columns))
        )


def _allocate_like(matrix: Tensor, n: int) -> Tensor:
    """An empty float32 matrix of n rows, as rows of `matrix` are laid out, so that filling it transposes nothing."""
    shape = max(LEAST, n), matrix.shape[1]
    return torch.empty(shape[::-1]).T if matrix.stride(0) < matrix.stride(1) else torch.empty(shape)


def _as_float32(rows: Tensor, scratch: Tensor) -> Tensor:
    """The rows themselves where they can be multiplied as they are, else in `scratch`; LEAST rows if they are fewer."""
    n = len(rows)
    if rows.dtype == torch.float32 and n >= LEAST:
        return rows
    scratch[:n] = rows
    return scratch[: max(n, LEAST)]


def _take_columns(factors: Factors, column: int, n: int, scratch: Tensor, threads: int) -> Tensor:
    """The float32 directions of some columns, times the gain."""
    directions, gain = factors.directions, factors.gain
    if factors.rows is None and gain is None and directions.dtype == torch.float32:
        return _as_float32(directions[column : column + n], scratch)

    def take(first: int, last: int) -> None:
        for start in range(first, last, 4 * LEAST):  # few rows at a time: they are still in cache when multiplied
            stop = min(start + 4 * LEAST, last)
            columns = slice(column + start, column + stop)
            rows = scratch[start:stop]
            rows.copy_(directions[columns if factors.rows is None else factors.rows[columns]])
            if gain is not None:
                rows *= gain

    spread(take, n, threads)
    return scratch[: max(n, LEAST)]


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads whose products run in that thread alone; one pool per process, because a fork copies a pool without them."""
    n_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, f"actstore-products-{process}", torch.set_num_threads, (1,))
    all_started = threading.Barrier(n_threads)
    # All at once, so that every thread starts, and none serves two.
    for started in [pool.submit(all_started.wait) for _ in range(n_threads)]:
        started.result()
    # The number is each thread's own, but what was set last, by any, is what a new thread begins with.
    torch.set_num_threads(n_before)
    return pool

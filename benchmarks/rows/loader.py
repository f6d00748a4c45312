"""Batches to train on: the store, whose blocks are stored neuron by neuron, beside a token-major file of the same values.

Both give every token once, in the same shuffled windows of blocks, from the page cache, on one thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

import actstore
from benchmarks.registry import Candidate, Row
from benchmarks.rows.reading import MEMMAP, N_NEURONS, map_file, stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BATCH = 4096


@contextmanager
def prepare_batches(quick: bool) -> Iterator[dict[str, Candidate]]:
    """An epoch in batches, both open, every byte in the page cache."""
    with stored(4 if quick else 16) as (folder, file, shape):
        store, matrix = actstore.open(folder), map_file(file, shape)
        batches = store.batches("mlp.post", 0, batch=BATCH, dtype="float16", threads=0, as_numpy=True, positions="all")
        batches.set_epoch(0)
        first = list(batches)
        for batch in first:
            if not np.array_equal(batch.activations, matrix[batch.token]):
                raise AssertionError("the store and the memory map give other batches")
        order = [batch.token for batch in first]
        del first
        yield {
            f"actstore, {shape[0]:,} tokens in shuffled batches of {BATCH:,}": Candidate(
                lambda: take(batch.activations for batch in batches), lambda: batches.set_epoch(0)
            ),
            f"rows of a {MEMMAP} in the same order": Candidate(lambda: take(matrix[token] for token in order)),
            "actstore, block by block, not shuffled: block_values, transposed": Candidate(
                lambda: take(block_by_block(store.capture()))
            ),
        }


def block_by_block(capture: actstore.Capture) -> Iterator[NDArray[np.float16]]:
    """Every token in the order of the store, as a reader that is not told more gives them."""
    for block in capture.blocks:
        values = np.ascontiguousarray(capture.block_values(0, block).T).astype(np.float16)
        for start in range(0, len(values), BATCH):
            yield values[start : start + BATCH]


def take(batches: Iterator[NDArray[np.float16]]) -> int:
    """The number of tokens of some batches."""
    return sum(len(values) * (values.shape[1] == N_NEURONS) for values in batches)


ROWS = (
    Row("shuffled batches to train on, one thread, in the page cache", prepare_batches, ("tests/store",), repeats=5),
)

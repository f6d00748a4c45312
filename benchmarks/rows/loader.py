"""Batches to train on, single tokens, neurons: the store in both of its orders beside a token-major file of the same values."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

import actstore
from benchmarks.registry import Candidate, Row
from benchmarks.rows.capture import ROOT, Peers
from benchmarks.rows.reading import MEMMAP, N_NEURONS, map_file, stored
from benchmarks.synthetic import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

BATCH, WINDOW = 4096, 4 * BLOCK
LOADERS = ROOT / ".venv-loaders" / "bin" / "python"
CAPTURES = {"corpus": "neuron by neuron", "by-token": "token by token"}


@contextmanager
def prepare_batches(quick: bool) -> Iterator[dict[str, Candidate]]:
    """An epoch in tensors, every token once in shuffled windows of four blocks; all open, every byte in the page cache."""
    with stored(4 if quick else 16, in_both_orders=True) as (folder, file, shape):
        store, matrix = actstore.open(folder), map_file(file, shape)
        asked = {"batch": BATCH, "dtype": "float16", "threads": 0, "positions": "all"}
        epochs = {name: store.batches("mlp.post", 0, capture=name, **asked) for name in CAPTURES}
        for batches in epochs.values():
            for batch in batches:
                if not np.array_equal(batch.activations.numpy(), matrix[batch.token.numpy()]):
                    raise AssertionError("the store and the memory map give other batches")
            batches.set_epoch(0)
        order = [batch.token.numpy().copy() for batch in epochs["corpus"]]

        def again(batches: Iterable) -> Candidate:
            return Candidate(lambda: count(batch.activations for batch in batches), lambda: batches.set_epoch(0))

        by_neuron, by_token = epochs.values()
        yield {
            f"actstore, neuron by neuron: {shape[0]:,} tokens in shuffled batches of {BATCH:,}": again(by_neuron),
            "actstore, token by token": again(by_token),
            f"rows of a {MEMMAP} in the same order": Candidate(
                lambda: count(torch.from_numpy(matrix[token]) for token in order)
            ),
            "actstore, neuron by neuron, as stored: block_values, transposed": Candidate(
                lambda: count(block_by_block(store.capture()))
            ),
        }


@contextmanager
def prepare_loaders(quick: bool) -> Iterator[dict[str, Candidate]]:
    """As `prepare_batches`, beside the loader of another tool, in its own process, of the same activations."""
    with stored(4 if quick else 8, in_both_orders=True) as (folder, file, shape), ExitStack() as stack:
        peers = Peers(LOADERS, "loader_peers.py", file, *shape, BATCH, WINDOW)
        stack.callback(peers.close)
        store, matrix = actstore.open(folder), map_file(file, shape)
        asked = {"batch": BATCH, "dtype": "float16", "threads": 0, "positions": "all", "capture": "by-token"}
        batches = store.batches("mlp.post", 0, **asked)
        order = [batch.token.numpy().copy() for batch in batches]
        yield {
            f"actstore, token by token: {shape[0]:,} tokens in shuffled batches of {BATCH:,}": Candidate(
                lambda: count(batch.activations for batch in batches), lambda: batches.set_epoch(0)
            ),
            f"rows of a {MEMMAP} in the same order": Candidate(
                lambda: count(torch.from_numpy(matrix[token]) for token in order)
            ),
            **{name: Candidate(lambda name=name: peers.run(name)) for name in peers.names},  # type: ignore[misc]
        }


def block_by_block(capture: actstore.Capture) -> Iterator[NDArray[np.float32]]:
    """Every token in the order of the store, as a reader that is not told more gives them."""
    for block in capture.blocks:
        yield np.ascontiguousarray(capture.block_values(0, block).T)


def count(batches: Iterable[NDArray]) -> int:
    """The number of tokens of some batches."""
    return sum(len(values) * (values.shape[1] == N_NEURONS) for values in batches)


@contextmanager
def prepare_tokens(quick: bool) -> Iterator[dict[str, Candidate]]:
    """A thousand tokens one by one, at random; all open, every byte in the page cache."""
    with stored(1 if quick else 4, in_both_orders=True) as (folder, file, shape):
        capture, matrix = actstore.open(folder).capture("by-token"), map_file(file, shape)
        tokens = np.random.default_rng(0).integers(0, shape[0], 1000).tolist()
        if not np.array_equal(capture.token_activations(0, tokens[0]), matrix[tokens[0]]):
            raise AssertionError("the store and the memory map have different tokens")
        yield {
            "actstore, token by token: 1,000 tokens, one by one": Candidate(
                lambda: [capture.token_activations(0, token) for token in tokens]
            ),
            f"rows of a {MEMMAP}, as float32": Candidate(
                lambda: [matrix[token].astype(np.float32) for token in tokens]
            ),
        }


@contextmanager
def prepare_neurons(quick: bool) -> Iterator[dict[str, Candidate]]:
    """One neuron in both orders; all open, every byte in the page cache."""
    with stored(4 if quick else 16, in_both_orders=True) as (folder, file, shape):
        store, matrix = actstore.open(folder), map_file(file, shape)
        captures = {what: store.capture(name) for name, what in CAPTURES.items()}
        yield {
            f"actstore, {what}: one neuron over {shape[0]:,} tokens": Candidate(
                lambda capture=capture: capture.activations(0, 777, dtype=np.float16)
            )
            for what, capture in captures.items()
        } | {f"one column of a {MEMMAP}": Candidate(lambda: np.array(matrix[:, 777]))}


ROWS = (
    Row("shuffled batches to train on, one thread, in the page cache", prepare_batches, ("tests/store",), repeats=5),
    *(
        (
            Row(
                "shuffled batches beside other tools, one thread, in the page cache",
                prepare_loaders,
                ("tests/store",),
                repeats=5,
            ),
        )
        if LOADERS.exists()
        else ()
    ),
    Row("single tokens, in the page cache", prepare_tokens, ("tests/store",), repeats=5),
    Row("one neuron in both orders, in the page cache", prepare_neurons, ("tests/store",), repeats=5),
)
SKIPPED = (
    {}
    if LOADERS.exists()
    else {"shuffled batches beside other tools": "batches beside SAELens: `make peers` installs it"}
)

"""The contexts of a capture's positions in one order, shared by all of its neurons.

A position's context is what the model read in its window up to it, special tokens included, backwards. Positions of text are
evidence; special tokens and images are only context. Knows nothing about activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from actstore.kernels.suffix_trie.api import MAX_DEPTH, Trie, suffix_trie
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Contexts:
    """A capture's positions of text in the order of their contexts. Some 65 bytes a token, 130 while they are sorted."""

    trie: Trie
    rank: NDArray[np.int32]
    """[token] rank of each committed token, in the order of `Capture.activations`; -1 where it is not text."""
    window: NDArray[np.int32]
    """[token] the window of each, ascending."""

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """[token] each committed token; 0 where it is not text."""
        found = np.zeros(len(self.rank), np.int64)
        found[self.rank >= 0] = self.trie.ids[self.trie.input_index[self.rank[self.rank >= 0]]]
        return found

    def counted(self, held_out: NDArray[np.int32] | None = None) -> NDArray[np.bool_]:
        """[token] whether it is text, and its rank none of `held_out`."""
        counted: NDArray[np.bool_] = self.rank >= 0
        if held_out is not None and len(held_out):
            held = np.zeros(self.n_positions, np.bool_)
            held[held_out] = True
            counted &= ~held[self.rank]
        return counted

    @property
    def n_positions(self) -> int:
        """Positions of text."""
        return len(self.trie.input_index)

    def ranks_of_windows(self, windows: Iterable[int]) -> NDArray[np.int32]:
        """The ranks of all positions of some windows, ascending; windows without a committed token have none."""
        wanted = np.unique(np.fromiter(windows, np.int64))
        starts, stops = np.searchsorted(self.window, wanted), np.searchsorted(self.window, wanted, "right")
        parts = [self.rank[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        ranks = np.concatenate([np.empty(0, np.int32), *parts])
        return np.sort(ranks[ranks >= 0])


def read_contexts(capture: Capture, max_depth: int = MAX_DEPTH, also: Sequence[Capture] = ()) -> Contexts:
    """The contexts of a capture's committed positions, up to `max_depth` tokens before each; behind them those of `also`.

    Windows of `also` are numbered on from the capture's. `InvalidInputError` where a capture is named twice, or keeps some
    positions only: what its neurons do at the others is not known.
    """
    captures = (capture, *also)
    check_captures(captures)
    ids, places, reaches, texts, windows = [], [], [], [], []
    n_inputs = n_windows = 0
    for one in captures:
        for block in one.blocks:
            plan = one.plan.block(block)
            n_slots = plan.windows["n_slots"]
            starts = plan.windows["input_start"] - plan.windows["input_start"][0] + n_inputs
            ids.append(plan.inputs)
            places.append(np.repeat(starts, n_slots) + plan.position)
            reaches.append(plan.position)
            texts.append((plan.modality == TEXT) | (plan.modality == GENERATED))
            windows.append(np.repeat(plan.windows["window"] + n_windows, n_slots).astype(np.int32))
            n_inputs += len(plan.inputs)
        n_windows += one.record.plan.n_windows
    return order_contexts(
        np.concatenate(ids),
        np.concatenate(places),
        np.concatenate(reaches),
        np.concatenate(texts),
        np.concatenate(windows),
        max_depth,
    )


def order_contexts(
    ids: NDArray[np.int32],
    places: NDArray[np.integer],
    reaches: NDArray[np.int32],
    text: NDArray[np.bool_],
    windows: NDArray[np.int32],
    max_depth: int,
) -> Contexts:
    """The contexts of tokens [token] that stand at `places` among the `ids` read, each with `reaches` tokens before it.

    text: which tokens are evidence. windows: what each token's window is called in `Contexts.window`, ascending.
    """
    tokens = np.flatnonzero(text)
    trie = suffix_trie(ids, places[tokens], reaches[tokens], max_depth)
    rank = np.full(len(text), -1, np.int32)
    rank[tokens[trie.order]] = np.arange(len(tokens), dtype=np.int32)
    return Contexts(trie, rank, windows)


def check_captures(captures: Sequence[Capture]) -> None:
    """Refuse captures that are no evidence together: some positions only, nothing committed, one of them twice."""
    names = [capture.record.name for capture in captures]
    for capture, name in zip(captures, names, strict=True):
        if (positions := capture.record.plan.settings.get("positions", "all")) != "all":
            raise InvalidInputError(
                f"Graphs need every position of a text, but capture {name!r} keeps --positions {positions}. "
                "Capture again with --positions all."
            )
        if capture.record.of_tower:
            raise InvalidInputError(
                f"Graphs are of the contexts of text, but capture {name!r} is of {capture.record.part}, whose positions are "
                "patches. Name a capture of the language model with --capture."
            )
        if not capture.blocks:
            raise InvalidInputError(f"Capture {name!r} has no committed block to learn from. Resume it first.")
        if names.count(name) > 1:
            raise InvalidInputError(f"Capture {name!r} is evidence already. Name another with --also.")
        kind = (capture.record.settings.get("probes") or {}).get("kind", "sampled")
        if kind != "sampled":
            raise InvalidInputError(
                f"Capture {name!r} holds probes made of neurons' exemplars ({kind}), which tell of the windows that test them. "
                "Only sampled probes are evidence for graphs."
            )

"""The contexts of a capture's positions in one order, which is the same for all of its neurons.

The context of a position is the sequence of tokens that the model read in the window up to it, special tokens included, read
backwards. Positions of text are evidence; special tokens and images are context only. Sorted, contexts that end with the same
tokens are neighbours, so that a node of a graph, whatever the neuron, is a range of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from actstore.kernels.suffix_trie.api import MAX_DEPTH, Trie, suffix_trie
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, TEXT
from actstore.store.tokens import check_tokens_known

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Contexts:
    """A capture's positions of text in the order of their contexts: about 65 bytes per token, 130 while they are sorted."""

    trie: Trie
    rank: NDArray[np.int32]
    """[token] the rank of each committed token, in the order of `Capture.activations`; -1 where it is not text."""
    window: NDArray[np.int32]
    """[token] the window of each token, ascending."""

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """[token] the token id of each committed token; 0 where it is not text."""
        ids = np.zeros(len(self.rank), np.int64)
        is_text = self.rank >= 0
        ids[is_text] = self.trie.ids[self.trie.input_index[self.rank[is_text]]]
        return ids

    def is_evidence(self, held_out: NDArray[np.int32] | None = None) -> NDArray[np.bool_]:
        """[token] whether it is text and its rank is none of `held_out`."""
        is_evidence: NDArray[np.bool_] = self.rank >= 0
        if held_out is not None and len(held_out):
            is_held_out = np.zeros(self.n_positions, np.bool_)
            is_held_out[held_out] = True
            # Rank -1, which is no text, reads the last entry; those tokens are no evidence already.
            is_evidence &= ~is_held_out[self.rank]
        return is_evidence

    @property
    def n_positions(self) -> int:
        """Number of positions of text."""
        return len(self.trie.input_index)

    def ranks_of_windows(self, windows: Iterable[int]) -> NDArray[np.int32]:
        """The ranks of all positions of some windows, ascending; a window without a committed token has none."""
        numbers = np.unique(np.fromiter(windows, np.int64))
        # Tokens lie in the order of their windows: a window is a range of them.
        starts, stops = np.searchsorted(self.window, numbers), np.searchsorted(self.window, numbers, "right")
        parts = [self.rank[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        ranks = np.concatenate([np.empty(0, np.int32), *parts])
        return np.sort(ranks[ranks >= 0])


def read_contexts(capture: Capture, max_depth: int = MAX_DEPTH, also: Sequence[Capture] = ()) -> Contexts:
    """The contexts of the committed positions of a capture, followed by those of `also`, up to `max_depth` tokens before each.

    The numbers of the windows of `also` continue those of the capture. `InvalidInputError` where a capture is given twice, or
    keeps only some positions: the activations at the others are unknown.
    """
    captures = (capture, *also)
    check_captures(captures)
    ids, positions, reaches, texts, windows = [], [], [], [], []
    n_inputs = n_windows = 0
    for one in captures:
        for block in one.blocks:
            plan = one.plan.block(block)
            n_slots = plan.windows["n_slots"]
            # `input_start` counts from the beginning of the capture; here from the first block that is read.
            starts = plan.windows["input_start"] - plan.windows["input_start"][0] + n_inputs
            ids.append(plan.inputs)
            positions.append(np.repeat(starts, n_slots) + plan.position)
            reaches.append(plan.position)
            texts.append((plan.modality == TEXT) | (plan.modality == GENERATED))
            windows.append(np.repeat(plan.windows["window"] + n_windows, n_slots).astype(np.int32))
            n_inputs += len(plan.inputs)
        n_windows += one.record.plan.n_windows
    return order_contexts(
        np.concatenate(ids),
        np.concatenate(positions),
        np.concatenate(reaches),
        np.concatenate(texts),
        np.concatenate(windows),
        max_depth,
    )


def order_contexts(
    ids: NDArray[np.int32],
    positions: NDArray[np.integer],
    reaches: NDArray[np.int32],
    text: NDArray[np.bool_],
    windows: NDArray[np.int32],
    max_depth: int,
) -> Contexts:
    """The contexts of tokens [token] at `positions` in the sequence `ids` that was read, with `reaches` tokens before each.

    text: [token] whether it is evidence. windows: [token] its window, for `Contexts.window`; ascending.
    """
    tokens = np.flatnonzero(text)
    trie = suffix_trie(ids, positions[tokens], reaches[tokens], max_depth)
    rank = np.full(len(text), -1, np.int32)
    # The trie is of the tokens of text alone; its order is turned round into the rank of each.
    rank[tokens[trie.order]] = np.arange(len(tokens), dtype=np.int32)
    return Contexts(trie, rank, windows)


def check_captures(captures: Sequence[Capture]) -> None:
    """Refuse captures that cannot be evidence: with some positions only, with nothing committed, or given twice."""
    names = [capture.record.name for capture in captures]
    for capture, name in zip(captures, names, strict=True):
        if (positions := capture.record.plan.settings.get("positions", "all")) != "all":
            raise InvalidInputError(
                f"Graphs need every position of a text, but capture {name!r} keeps only positions {positions!r}. "
                'Capture again with `positions="all"`.'
            )
        check_tokens_known(capture.record, "Graphs")
        if capture.record.of_tower:
            raise InvalidInputError(
                f"Graphs are of the contexts of text, but capture {name!r} is of {capture.record.part}, whose positions are "
                "patches. Pass a capture of the language model as `capture`."
            )
        if not capture.blocks:
            raise InvalidInputError(f"Capture {name!r} has no committed block to learn from. Resume it first.")
        if names.count(name) > 1:
            raise InvalidInputError(f"Capture {name!r} is evidence already. Pass another as `also`.")
        kind = (capture.record.settings.get("probes") or {}).get("kind", "sampled")
        if kind != "sampled":
            raise InvalidInputError(
                f"Capture {name!r} holds probes made of neurons' exemplars ({kind}), which come from windows that test them. "
                "Only sampled probes are evidence for graphs. Check `also`."
            )

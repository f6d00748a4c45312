"""How sums of contributions are cut into programs of a GPU: pairs of a group and a target, in parts.

Imported only where a tensor lies on a GPU.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.kernels.contribution.entries import Entries
from actstore.kernels.gpu import upload

PAIRS = 32  # columns of a tile each of whose elements has two sums in float64: with 64, they do not fit in registers
PAIR_TOKENS = 32  # that one column follows at most: a target with more has several columns
PROGRAMS = 1024  # of a launch at least, where there is enough to cut: several for each processor of a large GPU


class Pairs(NamedTuple):
    """Every (group, target) with its tokens, `PAIR_TOKENS` at most; ascending by group, then falling by the number of tokens.

    Pairs that lie in one tile then have about as many tokens, and no lane waits long for another. The pairs of a group are cut
    into parts of whole tiles, as many as give `PROGRAMS` programs.
    """

    groups: NDArray[np.int64]
    """[run] each distinct group, ascending."""
    first_parts: NDArray[np.int64]
    """[run] the first part of run r; the others follow."""
    firsts: NDArray[np.int64]
    """[part + 1] pairs `firsts[p]:firsts[p + 1]` are in part p."""
    rows: NDArray[np.int64]
    """[pair] the target's row."""
    starts: NDArray[np.int64]
    """[pair] its tokens are `tokens[starts[p]:stops[p]]`."""
    stops: NDArray[np.int64]
    """[pair]"""
    tokens: NDArray[np.int64]
    """[entry] ascending within a pair."""

    @classmethod
    def of(cls, entries: Entries, n_tiles: int) -> "Pairs":
        """The pairs of a block's entries, which are in the order of their targets, then groups, then tokens.

        n_tiles: of neurons, each of which has a program for every part.
        """
        n_entries = len(entries.tokens)
        changes = (np.diff(entries.targets) != 0) | (np.diff(entries.groups) != 0)
        borders = np.concatenate([[0] if n_entries else [], np.flatnonzero(changes) + 1, [n_entries]]).astype(np.int64)
        index, cuts = _cut(np.diff(borders), PAIR_TOKENS)
        starts = borders[:-1][index] + cuts
        stops = np.minimum(starts + PAIR_TOKENS, borders[1:][index])
        of_pair = entries.groups[starts].astype(np.int64)
        order = np.lexsort((starts, starts - stops, of_pair))
        groups, first_pairs, n_pairs = np.unique(of_pair[order], return_index=True, return_counts=True)
        n_parts = max(1, PROGRAMS // max(n_tiles * len(groups), 1))
        part_tiles = -(-n_pairs // (PAIRS * n_parts))
        run, cuts = _cut(n_pairs, part_tiles * PAIRS)
        first_parts = np.searchsorted(run, np.arange(len(groups)))
        firsts, rows = np.append(first_pairs[run] + cuts, len(order)), entries.rows[entries.targets[starts]]
        arrays = groups, first_parts, firsts, rows[order], starts[order], stops[order], entries.tokens
        return cls(*(array.astype(np.int64) for array in arrays))

    @property
    def n_parts(self) -> int:
        """The number of parts of all groups."""
        return len(self.firsts) - 1

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """What the kernel takes, by name, on `device`."""
        names = ("firsts", "rows", "starts", "stops", "tokens")
        return {name: upload(getattr(self, name), device) for name in names}

    def add(self, parts: NDArray[Any], n_groups: int) -> NDArray[Any]:
        """The sums [group, neuron] of what is [part, neuron], added in the order of the parts."""
        sums = np.zeros((n_groups, parts.shape[1]), parts.dtype)
        if len(self.groups):
            sums[self.groups] = np.add.reduceat(parts, self.first_parts, axis=0)
        return sums


def _cut(lengths: NDArray[np.int64], sizes: NDArray[np.int64] | int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What comes of cutting every one of `lengths` into pieces of `sizes`: [piece] the index of the length, and the offset."""
    sizes = np.broadcast_to(sizes, lengths.shape)
    n_pieces = -(-lengths // sizes)
    index = np.repeat(np.arange(len(lengths)), n_pieces)
    return index, (np.arange(len(index)) - (np.cumsum(n_pieces) - n_pieces)[index]) * sizes[index]

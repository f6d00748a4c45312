"""The order of an epoch: a function of the seed, the epoch and how many tokens each block has, and of nothing else.

Blocks are permuted; each rank takes its share of them, in windows of some blocks; the tokens of a window are permuted. Random
numbers are the raw ones of a Philox generator and permutations are sorts by them, which no version of NumPy changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """Some tokens of a block: those from `start` to `stop` of the selected ones, in the order of slots."""

    block: int
    start: int
    stop: int

    @property
    def n_tokens(self) -> int:
        """How many they are."""
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """The tokens that are permuted together, and are in memory at the same time."""

    number: int
    first: int
    """The first of its tokens, counted over the rank's epoch."""
    parts: tuple[Part, ...]

    @property
    def n_tokens(self) -> int:
        """How many there are."""
        return sum(part.n_tokens for part in self.parts)


@dataclass(frozen=True)
class Order:
    """The order in which a rank gets its tokens, epoch by epoch."""

    blocks: tuple[int, ...]
    counts: tuple[int, ...]
    """Selected tokens of each block, above 0."""
    window: int
    """Blocks of a window."""
    seed: int | None
    """None: the order of the store."""
    rank: int
    ranks: int

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch of this rank: those of all, divided; ranks differ by at most one."""
        total = sum(self.counts)
        return total * (self.rank + 1) // self.ranks - total * self.rank // self.ranks

    @property
    def n_tokens_of_each(self) -> int:
        """Tokens that every rank has at least."""
        return sum(self.counts) // self.ranks

    def windows(self, epoch: int) -> tuple[Window, ...]:
        """The windows of this rank's epoch, one after another."""
        return _windows(self, epoch)

    def permutation(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """Which of a window's tokens, counted part by part, comes at each place; shape [token]."""
        return self._permuted(epoch, 1 + window.number, window.n_tokens)

    def _permuted(self, epoch: int, stream: int, n: int) -> NDArray[np.int64]:
        """A permutation of `n` things; epochs and streams, which are below 2³², have independent ones."""
        if self.seed is None:
            return np.arange(n)
        key = np.array([self.seed, epoch << 32 | stream], np.uint64)
        return _stable_order(np.random.Philox(key=key).random_raw(n))


def _stable_order(numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What puts numbers in order, of equal ones the first one first: `argsort(kind="stable")`, in a third of its time."""
    order = np.argsort(numbers)
    ordered = numbers[order]
    if (ordered[1:] == ordered[:-1]).any():  # of 2⁶⁴ numbers, two of a window are seldom the same
        return np.argsort(numbers, kind="stable")
    return order


@lru_cache(maxsize=16)
def _windows(order: Order, epoch: int) -> tuple[Window, ...]:
    total = sum(order.counts)
    begin, end = total * order.rank // order.ranks, total * (order.rank + 1) // order.ranks
    parts, at = [], 0
    for i in order._permuted(epoch, 0, len(order.blocks)).tolist():
        n = order.counts[i]
        start, stop = max(begin - at, 0), min(end - at, n)
        if start < stop:  # a block on the border of two ranks is read by both
            parts.append(Part(order.blocks[i], start, stop))
        at += n
    windows, first = [], 0
    for number in range(-(-len(parts) // order.window)):
        window = Window(number, first, tuple(parts[number * order.window : (number + 1) * order.window]))
        windows.append(window)
        first += window.n_tokens
    return tuple(windows)

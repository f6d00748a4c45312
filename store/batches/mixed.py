"""Batches of several captures in turn, by weight: in each round, a source gives exactly as many as its weight says."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.store.batches.loader import Batches, worker_of_loader
from actstore.store.batches.settings import LARGEST_SEED
from actstore.store.batches.state import Resumable
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.store.batches.batch import Batch

UNTIL: Final = ("shortest", "longest")
"""The values of `until`."""
LARGEST_DENOMINATOR: Final = 10_000
LARGEST_ROUND: Final = 100_000
"""Batches of a round, in which every weight is kept exactly."""


class MixedBatches(Resumable):
    """Batches of several sources in rounds: in each, every source gives as many as its weight says, in random order.

    A `DataLoader` takes them with `batch_size=None`, as those of one source.
    """

    def __init__(self, sources: Sequence[Batches], weights: Sequence[float], seed: int, until: str) -> None:
        """`InvalidInputError` for sources that do not go together, and weights that are no shares of small whole numbers."""
        self.sources = tuple(sources)
        self.counts = _counts(weights, len(self.sources))
        """Batches of a round by source."""
        if not 0 <= seed <= LARGEST_SEED:
            raise InvalidInputError(f"Expected `seed` to be between 0 and 2⁶³ - 1, found {seed}.")
        if until not in UNTIL:
            raise InvalidInputError(f"Expected `until` to be one of {', '.join(UNTIL)}, found {until!r}.")
        self.seed, self.until = seed, until
        _check_together(self.sources)
        pairs = list(zip(map(len, self.sources), self.counts, strict=True))
        self.n_rounds = max(-(-n // k) for n, k in pairs) if until == "longest" else min(n // k for n, k in pairs)
        if not self.n_rounds:
            first, (n, k) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] < pair[1])
            raise InvalidInputError(
                f"Expected batches of every source for a whole round, found {n} of source {first}, of which a round of "
                f'{self.n_round} has {k}. Pass simpler `weights`, `until="longest"`, or sources of more batches.'
            )
        super().__init__()

    def __repr__(self) -> str:
        what = ", ".join(f"{k} of {source!r}" for k, source in zip(self.counts, self.sources, strict=True))
        return f"{type(self).__name__}(of every {self.n_round}, {what}; {len(self)} batches)"

    @property
    def n_round(self) -> int:
        """Batches of a round."""
        return sum(self.counts)

    def __len__(self) -> int:
        return self.n_rounds * self.n_round

    @property
    def label_values(self) -> dict[str, tuple[str, ...]]:
        """Label column → its values, in the order in which the batches of every source number them."""
        return self.sources[0].label_values

    @property
    def _identity(self) -> dict[str, Any]:
        sources = [source._identity for source in self.sources]
        return {"weights": list(self.counts), "seed": self.seed, "until": self.until, "sources": sources}

    def __iter__(self) -> Iterator[Batch]:
        worker, n_workers = worker_of_loader()
        epoch, first, n = self.epoch, self._first, len(self)
        self._first = 0
        numbers = range(first + worker, n, n_workers)
        taken = [self._taken(number, epoch, numbers) for number in range(len(self.sources))]
        try:
            for number in numbers:
                source, _ = self._place(epoch * n + number)
                state = {"first_epoch": epoch, "batch": number + 1, "of": self._identity}
                batch = replace(next(taken[source]), epoch=epoch, number=number, state=state, source=source)
                self._state = state
                yield batch
        finally:
            for one in taken:
                one.close()  # its threads end
        self.epoch = epoch + 1
        self._state = self._state_at(0)

    def _taken(self, source: int, epoch: int, numbers: range) -> Any:
        """The batches of one source among those of `numbers`, as a generator."""
        offset, batches = epoch * len(self), self.sources[source]
        places = (self._place(offset + number) for number in numbers)
        stop = -(-(epoch + 1) * self.n_rounds * self.counts[source] // batches.n_batches)
        return batches.numbered((index for of, index in places if of == source), 0, stop)

    def _place(self, number: int) -> tuple[int, int]:
        """Which source gives the batch of a number, counted on over epochs, and which of its own batches that is."""
        of_round, at = divmod(number, self.n_round)
        order, ranks = _round(self.counts, self.seed, of_round)
        source = int(order[at])
        return source, of_round * self.counts[source] + int(ranks[at])


@lru_cache(maxsize=16)
def _round(counts: tuple[int, ...], seed: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The source of each batch of a round, and which of the source's own batches in the round it is; shape [batch]."""
    sources = np.repeat(np.arange(len(counts)), counts)
    # As in `order`: no version of NumPy changes raw numbers.
    key = np.array([seed, number], np.uint64)
    order = sources[np.argsort(np.random.Philox(key=key).random_raw(len(sources)), kind="stable")]
    ranks = np.empty_like(order)
    for source, n in enumerate(counts):
        ranks[order == source] = np.arange(n)
    return order, ranks


def _counts(weights: Sequence[float], n_sources: int) -> tuple[int, ...]:
    """Batches of each source in the smallest round that has the weights exactly."""
    if not n_sources or len(weights) != n_sources:
        raise InvalidInputError(f"Expected one weight for each of the batches, found {len(weights)} for {n_sources}.")
    shares = []
    for weight in weights:
        if not 0 < weight < math.inf:
            raise InvalidInputError(f"Expected `weights` above 0, found {weight}. Leave out what has none.")
        share = Fraction(weight).limit_denominator(LARGEST_DENOMINATOR)
        if abs(share - Fraction(weight)) > Fraction(weight) / 10**9:
            raise InvalidInputError(
                f"Expected `weights` that are shares of whole numbers up to {LARGEST_DENOMINATOR:,}, such as 0.75 and 0.25, or "
                f"3 and 1: found {weight}."
            )
        shares.append(share)
    whole = math.lcm(*(share.denominator for share in shares))
    counts = [int(share * whole) for share in shares]
    divisor = math.gcd(*counts)
    if sum(counts) // divisor > LARGEST_ROUND:
        raise InvalidInputError(
            f"Expected `weights` that a round of {LARGEST_ROUND:,} batches has exactly, found {list(weights)}, which take "
            f"{sum(counts) // divisor:,}. Round them."
        )
    return tuple(count // divisor for count in counts)


def _check_together(sources: Sequence[Batches]) -> None:
    """Raise `InvalidInputError` unless one model can be trained on the batches of all sources."""
    properties: dict[str, Callable[[Batches], Any]] = {
        "width": lambda one: one.width,
        "dtype": lambda one: one.settings.dtype,
        "rank": lambda one: f"{one.settings.rank} of {one.settings.ranks}",
        "label_values": lambda one: one.label_values,
        "kind of batches": lambda one: type(one).__name__,
        "device": lambda one: getattr(one, "device", "cpu"),
    }
    for what, of in properties.items():
        for number, source in enumerate(sources):
            if of(source) != of(sources[0]):
                raise InvalidInputError(
                    f"Expected batches that go together, found other {what} of source {number} than of source 0: "
                    f"{of(source)!r}, there {of(sources[0])!r}."
                )

"""What coverage criteria remember of the samples they have seen: small arrays a layer that add up.

Each class is one measurement over samples of one layer (patterns: of all): `add` takes values, `merge` the same measurement
over other samples, `arrays` is all there is to keep. Everything merges by maximum, OR or union, in any order; only
`KeptVectors` depends on the order. Definitions: DeepXplore (Pei et al. 2017), DeepGauge (Ma et al. 2018), TensorFuzz (Odena et
al. 2019), as studied on language models by Zhou et al. (ICSE 2025, arXiv 2408.15207). Knows nothing about captures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float32]
    """Finite activations [neuron, sample]; NaN where there is none."""

MOST = 1 << 20
"""Sections of a range, or top neurons, at most: each takes memory."""
ROWS_AT_ONCE = 32
MAX_KEPT = 10_000


@dataclass
class ScaledMaxima:
    """NC: each neuron's largest value after every sample was min-max scaled within the layer; it is covered above t."""

    largest: NDArray[np.float32]

    @classmethod
    def empty(cls, width: int) -> ScaledMaxima:
        """No sample seen; the maxima are -inf."""
        return cls(np.full(width, -np.inf, np.float32))

    def add(self, values: Values) -> None:
        """Add samples. One in which all neurons are alike cannot be scaled, and covers none."""
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            scaled = (values - low) / (high - low)
        if scaled.size:
            np.fmax(self.largest, np.fmax.reduce(scaled, axis=1), out=self.largest)

    def merge(self, other: ScaledMaxima) -> None:
        """Add what another has seen."""
        np.maximum(self.largest, other.largest, out=self.largest)

    def covered(self, threshold: float) -> NDArray[np.bool_]:
        """Whether each neuron exceeded `threshold`; shape [neuron]."""
        return self.largest > threshold

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"largest": self.largest}


@dataclass
class Extremes:
    """NBC, SNAC: each neuron's smallest and largest value; beyond its range on either side it is a covered corner."""

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]

    @classmethod
    def empty(cls, width: int) -> Extremes:
        """No sample seen."""
        return cls(np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32))

    def add(self, values: Values, slack: NDArray[np.float32]) -> None:
        """Add samples whose stored values may be off by `slack` [neuron]: only what is surely beyond a range will count."""
        if values.shape[1]:
            np.fmin(self.lowest, np.fmin.reduce(values, axis=1) + slack, out=self.lowest)
            np.fmax(self.highest, np.fmax.reduce(values, axis=1) - slack, out=self.highest)

    def merge(self, other: Extremes) -> None:
        """Add what another has seen."""
        np.minimum(self.lowest, other.lowest, out=self.lowest)
        np.maximum(self.highest, other.highest, out=self.highest)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"lowest": self.lowest, "highest": self.highest}


@dataclass
class Sections:
    """KMNC: one bit for each of the k equal sections of each neuron's range that a value fell into."""

    bits: NDArray[np.uint8]
    """[neuron, ⌈k / 8⌉], least significant bit first."""
    k: int

    @classmethod
    def empty(cls, width: int, k: int) -> Sections:
        """No sample seen."""
        return cls(np.zeros((width, -(-k // 8)), np.uint8), k)

    def add(
        self, values: Values, low: NDArray[np.float32], high: NDArray[np.float32], slack: NDArray[np.float32]
    ) -> None:
        """Add samples; a neuron's range is from `low` to `high`, the last section closed, and has `slack` on both sides.

        Values beyond it, and neurons whose range is a single point, hit no section.
        """
        for start in range(0, len(values), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            span = (high[rows].astype(np.float64) - low[rows])[:, None]
            slip = slack[rows].astype(np.float64)[:, None]
            above = np.subtract(values[rows], low[rows, None], dtype=np.float64)
            inside = (above >= -slip) & (above <= span + slip) & (span > 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                above *= self.k / span
            np.clip(above, 0, self.k - 1, out=above)
            # One place more than there are bits takes what is outside.
            n_bits = self.bits.shape[1] * 8
            hit = np.zeros((len(above), n_bits + 1), bool)
            section = np.where(inside, above, n_bits).astype(np.int32)
            section += (np.arange(len(above), dtype=np.int32) * hit.shape[1])[:, None]
            hit.reshape(-1)[section.reshape(-1)] = True
            self.bits[rows] |= np.packbits(hit[:, :-1], axis=1, bitorder="little")

    def merge(self, other: Sections) -> None:
        """Add what another has seen."""
        self.bits |= other.bits

    def counts(self) -> NDArray[np.int64]:
        """Sections hit; shape [neuron]."""
        return np.asarray(np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"bits": self.bits}


@dataclass
class TopNeurons:
    """TKNC: whether each neuron was ever among its layer's k largest."""

    ever: NDArray[np.bool_]

    @classmethod
    def empty(cls, width: int) -> TopNeurons:
        """No sample seen."""
        return cls(np.zeros(width, bool))

    def add(self, top: NDArray[np.int64]) -> None:
        """Add the top neurons [sample, k] of samples; -1 is none."""
        self.ever[top[top >= 0]] = True

    def merge(self, other: TopNeurons) -> None:
        """Add what another has seen."""
        self.ever |= other.ever

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"ever": self.ever}


@dataclass
class Patterns:
    """TKNP: the distinct patterns of samples: which k neurons of every layer are its largest, in whatever order.

    A pattern is kept as 128 bits that are mixed from its neurons, layer after layer; among n patterns two share them with
    probability n² / 2^129.
    """

    hashes: NDArray[np.uint64]
    """[pattern, 2], ascending, each once."""

    @classmethod
    def empty(cls) -> Patterns:
        """No sample seen."""
        return cls(np.zeros((0, 2), np.uint64))

    def add(self, mixed: NDArray[np.uint64]) -> None:
        """Add what `mix_pattern` made of samples over all layers; shape [sample, 2]."""
        self.hashes = _distinct(np.concatenate([self.hashes, mixed]))

    def merge(self, other: Patterns) -> None:
        """Add what another has seen."""
        self.add(other.hashes)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"hashes": self.hashes}


def _distinct(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    ordered = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    new = np.ones(len(ordered), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[new]


def mix_pattern(mixed: NDArray[np.uint64], layer: int, top: NDArray[np.int64]) -> None:
    """Mix the top neurons [sample, k] of a layer into `mixed` [sample, 2] in place; zeros to begin with."""
    members = np.sort(top, axis=1).astype(np.uint64)
    for column in range(-1, members.shape[1]):
        member: Any = np.uint64(layer) if column < 0 else members[:, column]
        for lane, seed in enumerate((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)):
            x = (mixed[:, lane] ^ (member + np.uint64(1))) + np.uint64(seed)
            # splitmix64, which is a bijection: different members never meet in one step.
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed[:, lane] = x ^ (x >> np.uint64(31))


@dataclass
class KeptVectors:
    """TFC: the samples' vectors that lie farther than `threshold` (Euclidean) from every vector kept before them.

    What is kept depends on the order of samples. `merge` inserts the other's vectors after these: the result is again such a
    set, though not always the one that a single run over all samples keeps, and not always of its size.
    """

    vectors: NDArray[np.float32]
    """[vector, neuron], in the order they were kept."""
    threshold: float

    @classmethod
    def empty(cls, width: int, threshold: float) -> KeptVectors:
        """No sample seen."""
        return cls(np.zeros((0, width), np.float32), threshold)

    def add(self, values: Values) -> None:
        """Insert samples in their order; one with a NaN is left out."""
        samples = values.T[~np.isnan(values).any(axis=0)]
        for start in range(0, len(samples), 256):
            batch = samples[start : start + 256]
            far = self._distances(batch, self.vectors).min(axis=1, initial=np.inf) > self.threshold
            among = self._distances(batch[far], batch[far])
            new: list[int] = []
            for row in range(len(among)):
                if (among[row, new] > self.threshold).all():
                    new.append(row)
            self.vectors = np.concatenate([self.vectors, batch[far][new]])
            if len(self.vectors) > MAX_KEPT:
                raise InvalidInputError(
                    f"More than {MAX_KEPT:,} vectors of a layer lie farther than {self.threshold:g} apart, too many to hold "
                    "every sample against. Raise --distance."
                )

    @staticmethod
    def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
        x, y = a.astype(np.float64), b.astype(np.float64)
        squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    def merge(self, other: KeptVectors) -> None:
        """Insert what another has kept."""
        self.add(other.vectors.T)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"vectors": self.vectors}

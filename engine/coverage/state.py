"""The states of coverage criteria: small arrays per layer, which samples are added to and which merge.

Each class is one measurement over samples of one layer (patterns: of all layers): `add` takes samples, `merge` the same
measurement over other samples, `arrays` is all that is written to a file. States merge by maximum, OR or union, in any order;
only `KeptVectors` depends on the order. Definitions: DeepXplore (Pei et al. 2017), DeepGauge (Ma et al. 2018), TensorFuzz
(Odena et al. 2019), as studied on language models by Zhou et al. (ICSE 2025, arXiv 2408.15207).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float32]
    """Finite activations [neuron, sample]; NaN where there is none."""

MAX_K: Final = 1 << 20
"""Maximum number of sections of a range, and of top neurons: each takes memory."""
ROWS_AT_ONCE: Final = 32
"""Neurons whose values are held in float64 at a time."""
MAX_KEPT = 10_000
"""Maximum number of vectors kept per layer: every sample is compared with all of them."""


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of each neuron of a layer in a reference capture; NaN where it has none."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def none(cls) -> Ranges:
        """The ranges of a layer without a reference."""
        return cls(np.empty(0, np.float32), np.empty(0, np.float32))


@dataclass(frozen=True)
class LayerSamples:
    """Samples of one layer, with what the measurements need of them."""

    values: Values
    top: NDArray[np.int64]
    """The k largest neurons of each sample, -1 for none; shape [sample, k], empty where no criterion needs them."""
    slack: NDArray[np.float32]
    """The largest difference between a stored value and the true one; shape [neuron]."""
    ranges: Ranges


class LayerState(Protocol):
    """The state of one measurement over the samples of one layer."""

    def add(self, samples: LayerSamples) -> None:
        """Add samples."""

    def merge(self, other: Self) -> None:
        """Add the samples of another state."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""


@dataclass
class ScaledMaxima:
    """NC: each neuron's largest value after every sample was min-max scaled within the layer; it is covered above t."""

    largest: NDArray[np.float32]

    @classmethod
    def empty(cls, width: int) -> ScaledMaxima:
        """The state before any sample; the maxima are -inf."""
        return cls(np.full(width, -np.inf, np.float32))

    def add(self, samples: LayerSamples) -> None:
        """Add samples. One in which all neurons are equal cannot be scaled, and covers none."""
        values = samples.values
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            scaled = (values - low) / (high - low)
        if scaled.size:
            np.fmax(self.largest, np.fmax.reduce(scaled, axis=1), out=self.largest)

    def merge(self, other: ScaledMaxima) -> None:
        """Add the samples of another state."""
        np.maximum(self.largest, other.largest, out=self.largest)

    def covered(self, threshold: float) -> NDArray[np.bool_]:
        """Whether each neuron exceeded `threshold`; shape [neuron]."""
        return self.largest > threshold

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"largest": self.largest}


@dataclass
class Extremes:
    """NBC, SNAC: each neuron's smallest and largest value; beyond the range of the reference, a corner is covered."""

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]

    @classmethod
    def empty(cls, width: int) -> Extremes:
        """The state before any sample."""
        return cls(np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32))

    def add(self, samples: LayerSamples) -> None:
        """Add samples; only values that are beyond a range by more than their slack will count."""
        values, slack = samples.values, samples.slack
        if values.shape[1]:
            np.fmin(self.lowest, np.fmin.reduce(values, axis=1) + slack, out=self.lowest)
            np.fmax(self.highest, np.fmax.reduce(values, axis=1) - slack, out=self.highest)

    def merge(self, other: Extremes) -> None:
        """Add the samples of another state."""
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
        """The state before any sample."""
        return cls(np.zeros((width, -(-k // 8)), np.uint8), k)

    def add(self, samples: LayerSamples) -> None:
        """Add samples; a neuron's range is that of the reference, the last section closed, with the slack on both sides.

        Values beyond it, and neurons whose range is a single point, hit no section.
        """
        values, slack, low, high = samples.values, samples.slack, samples.ranges.low, samples.ranges.high
        for start in range(0, len(values), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            span = (high[rows].astype(np.float64) - low[rows])[:, None]
            margin = slack[rows].astype(np.float64)[:, None]
            above = np.subtract(values[rows], low[rows, None], dtype=np.float64)
            inside = (above >= -margin) & (above <= span + margin) & (span > 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                above *= self.k  # exact: a quotient rounded first would put values on a border into the section below
                above /= span
            np.clip(above, 0, self.k - 1, out=above)
            # One column more than there are bits: values outside the range are written there, and dropped.
            n_bits = self.bits.shape[1] * 8
            hit = np.zeros((len(above), n_bits + 1), bool)
            section = np.where(inside, above, n_bits).astype(np.int32)
            section += (np.arange(len(above), dtype=np.int32) * hit.shape[1])[:, None]
            hit.reshape(-1)[section.reshape(-1)] = True
            self.bits[rows] |= np.packbits(hit[:, :-1], axis=1, bitorder="little")

    def merge(self, other: Sections) -> None:
        """Add the samples of another state."""
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
        """The state before any sample."""
        return cls(np.zeros(width, bool))

    def add(self, samples: LayerSamples) -> None:
        """Add samples."""
        self.ever[samples.top[samples.top >= 0]] = True

    def merge(self, other: TopNeurons) -> None:
        """Add the samples of another state."""
        self.ever |= other.ever

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"ever": self.ever}


@dataclass
class Patterns:
    """TKNP: the distinct patterns of samples: which k neurons of every layer are its largest, in any order.

    A pattern is stored as a hash of 128 bits that is mixed from its neurons, layer after layer; the probability that two of n
    patterns collide is n² / 2^129.
    """

    hashes: NDArray[np.uint64]
    """[pattern, 2], ascending, distinct."""

    @classmethod
    def empty(cls) -> Patterns:
        """The state before any sample."""
        return cls(np.zeros((0, 2), np.uint64))

    def add(self, mixed: NDArray[np.uint64]) -> None:
        """Add the result of `mix_pattern` over all layers; shape [sample, 2]."""
        self.hashes = _distinct(np.concatenate([self.hashes, mixed]))

    def merge(self, other: Patterns) -> None:
        """Add the samples of another state."""
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
        # First the layer's number, then its neurons in ascending order.
        member: np.uint64 | NDArray[np.uint64] = np.uint64(layer) if column < 0 else members[:, column]
        for lane, seed in enumerate((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)):
            x = (mixed[:, lane] ^ (member + np.uint64(1))) + np.uint64(seed)
            # splitmix64, a bijection: different members never collide in one step.
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed[:, lane] = x ^ (x >> np.uint64(31))


@dataclass
class KeptVectors:
    """TFC: the samples' vectors that lie farther than `threshold` (Euclidean) from every vector kept before them.

    The vectors kept depend on the order of samples. `merge` inserts the other's vectors after these: the result is again such
    a set, though not always the one that a single run over all samples keeps, and not always of its size.
    """

    vectors: NDArray[np.float32]
    """[vector, neuron], in the order they were kept."""
    threshold: float

    @classmethod
    def empty(cls, width: int, threshold: float) -> KeptVectors:
        """The state before any sample."""
        return cls(np.zeros((0, width), np.float32), threshold)

    def add(self, samples: LayerSamples) -> None:
        """Add samples."""
        self.insert(samples.values)

    def insert(self, values: Values) -> None:
        """Insert samples [neuron, sample] in their order; samples with a NaN are left out."""
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
                    f"More than {MAX_KEPT:,} vectors of a layer lie farther than {self.threshold:g} apart, too many to compare "
                    "every sample with. Raise `distance`."
                )

    @staticmethod
    def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
        x, y = a.astype(np.float64), b.astype(np.float64)
        squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    def merge(self, other: KeptVectors) -> None:
        """Insert the vectors of another state."""
        self.insert(other.vectors.T)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"vectors": self.vectors}

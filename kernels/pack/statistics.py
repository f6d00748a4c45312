"""The statistics that are kept of every neuron: moments, extremes, histogram, positives by label, exemplars; all mergeable.

`STATISTICS` is the one list of them. Plain numpy, so that a reader needs no compiler.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

LOWEST_EXPONENT, HIGHEST_EXPONENT = -14, 10


def _edges() -> NDArray[np.float32]:
    exponents = np.arange(LOWEST_EXPONENT, HIGHEST_EXPONENT)
    positive = np.append(np.stack([2.0**exponents, 1.5 * 2.0**exponents], axis=1).ravel(), 2.0**HIGHEST_EXPONENT)
    return np.concatenate([[-np.inf], -positive[::-1], positive, [np.inf]]).astype(np.float32)


HISTOGRAM_EDGES = _edges()
"""[bin + 1] bin b holds the values between edges b and b + 1: two bins per octave from 2^-14 to 2^10, of either sign, so
that exponent and first mantissa bit of a float name its bin. A value on an edge belongs to the bin farther from zero;
the middle bin holds what is smaller than 2^-14, the outer two are open."""

N_BINS = len(HISTOGRAM_EDGES) - 1


@dataclass(frozen=True)
class Statistic:
    """How one statistic of every neuron is kept and added up."""

    dtype: type[np.generic]
    dimensions: tuple[str, ...]
    """`neuron` and, before or after it, `label`, `bin` or `k`."""
    help: str
    start: float = 0
    """Its value over no token."""
    add: np.ufunc | None = np.add
    """Puts those of two parts together, element by element; None where `Statistics.merge` needs more than that."""


STATISTICS: Final[dict[str, Statistic]] = {
    "count": Statistic(np.int64, ("neuron",), "number of finite values"),
    "non_finite": Statistic(np.int64, ("neuron",), "number of NaN and infinite values"),
    "overflow": Statistic(
        np.int64,
        ("neuron",),
        "number of finite values that the block stores as infinite, being beyond its format; at every token, counted or not",
    ),
    "mean": Statistic(np.float64, ("neuron",), "mean", add=None),
    "m2": Statistic(
        np.float64,
        ("neuron",),
        "sum of the squared differences from the mean; the variance is `m2 / count`",
        add=None,
    ),
    "minimum": Statistic(np.float32, ("neuron",), "smallest finite value", start=np.inf, add=np.minimum),
    "maximum": Statistic(np.float32, ("neuron",), "largest finite value", start=-np.inf, add=np.maximum),
    "histogram": Statistic(np.int64, ("neuron", "bin"), "number of finite values between `HISTOGRAM_EDGES`"),
    "positives": Statistic(
        np.int64, ("label", "neuron"), "number of finite values above zero at the tokens of each label"
    ),
    "exemplar_values": Statistic(
        np.float32,
        ("neuron", "k"),
        "the largest values, at most one per text window, descending; ties to the earlier token",
        start=-np.inf,
        add=None,
    ),
    "exemplar_tokens": Statistic(
        np.int64,
        ("neuron", "k"),
        "the tokens they came from; -1, with value -inf, where there are fewer than k",
        start=-1,
        add=None,
    ),
}
"""Name → how it is kept. A new statistic is an entry here, an annotation in `Statistics` and the kernels that gather it;
captures made before it lack it."""


class Statistics:
    """The statistics of every neuron over the counted tokens of a part of a capture; its arrays are updated in place.

    `STATISTICS` says what each is. Values that are not finite are counted in `non_finite` and enter nothing else. Over no
    value at all the moments are 0, the minimum +inf and the maximum -inf. One that was not gathered is absent: reading it
    raises an error.
    """

    count: NDArray[np.int64]
    non_finite: NDArray[np.int64]
    overflow: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    histogram: NDArray[np.int64]
    positives: NDArray[np.int64]
    exemplar_values: NDArray[np.float32]
    exemplar_tokens: NDArray[np.int64]

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The statistics in `arrays`, by their names in `STATISTICS`; not copied."""
        self.__dict__.update({name: arrays[name] for name in STATISTICS if name in arrays})

    if not TYPE_CHECKING:  # a type checker would take any name for an attribute

        def __getattr__(self, name: str) -> None:
            raise AttributeError(f"There is no statistic {name!r} here, only {', '.join(self.arrays())}.")

    @classmethod
    def empty(cls, n_neurons: int, n_labels: int, k: int, names: Iterable[str] = STATISTICS) -> Self:
        """Statistics over no token; all of them unless `names` says which."""
        lengths = {"neuron": n_neurons, "label": n_labels, "bin": N_BINS, "k": k}
        arrays: dict[str, NDArray[Any]] = {}
        for name in names:
            statistic = STATISTICS[name]
            shape = tuple(lengths[dimension] for dimension in statistic.dimensions)
            arrays[name] = np.full(shape, statistic.start, statistic.dtype)
        return cls(arrays)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The statistics whose `arrays()` these are; copies, to be added to."""
        return cls({name: np.array(array, STATISTICS[name].dtype, order="C") for name, array in arrays.items()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The array of each statistic that is there, by its name; not copies."""
        return {name: self.__dict__[name] for name in STATISTICS if name in self.__dict__}

    def drop(self, names: Iterable[str]) -> None:
        """Take these statistics away where they are there."""
        for name in names:
            self.__dict__.pop(name, None)

    def merge(self, other: "Statistics") -> None:
        """Add the statistics of a later part in place. What `other` lacks is not known of both together, and dropped.

        Counts, extremes and exemplars are those of both parts together, exactly. Moments follow Chan, Golub and LeVeque
        (1979), always in this order, so that the same parts merged in the same order give the same bits.
        """
        others = other.arrays()
        self.drop([name for name in self.arrays() if name not in others])
        for name, array in self.arrays().items():
            if array.shape != others[name].shape:
                raise ValueError(
                    f"cannot merge statistics: {name} has shape {array.shape} here and {others[name].shape} there"
                )
        self._merge_moments(other)
        self._merge_exemplars(other)
        for name, array in self.arrays().items():
            add = STATISTICS[name].add
            if add is not None:
                add(array, others[name], out=array)

    def _merge_moments(self, other: "Statistics") -> None:
        """Add mean and M2, which need the count of this part before the other's is added."""
        share = other.count / np.maximum(self.count + other.count, 1)
        difference = other.mean - self.mean
        self.m2[:] += other.m2 + difference * difference * (self.count * share)
        self.mean[:] += difference * share

    def _merge_exemplars(self, other: "Statistics") -> None:
        k = self.exemplar_values.shape[1]
        values = np.concatenate([self.exemplar_values, other.exemplar_values], axis=1)
        tokens = np.concatenate([self.exemplar_tokens, other.exemplar_tokens], axis=1)
        order = exemplar_order(values, tokens)[:, :k]
        self.exemplar_values[:] = np.take_along_axis(values, order, axis=1)
        self.exemplar_tokens[:] = np.take_along_axis(tokens, order, axis=1)


def exemplar_order(values: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.intp]:
    """How to put every neuron's exemplars [neuron, entry] into order: the largest value first, ties to the earlier token.

    No value is NaN. Unused entries, of value -inf and token -1, are last, whichever of them first.
    """
    if tokens.size and tokens.max() >= 0xFFFFFFFF:
        return np.lexsort((tokens, -values), axis=1)
    # Value and token as one integer, which takes a quarter of the time: the bits of floats ascend with them, and those of
    # negative ones descend. Adding 0 makes -0 the 0 that it is equal to.
    bits = (values + np.float32(0)).view(np.uint32)
    descending = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    return np.argsort((descending << np.uint64(32)) | tokens.astype(np.uint32), axis=1)


class Quantiles(NamedTuple):
    """Quantiles estimated from a histogram: each true quantile lies between `low` and `high`; NaN over no value."""

    estimate: NDArray[np.float32]  # [neuron, quantile]
    low: NDArray[np.float32]  # [neuron, quantile]
    high: NDArray[np.float32]  # [neuron, quantile]


def quantiles(
    histogram: NDArray[np.integer],
    q: NDArray[np.floating] | list[float],
    minimum: NDArray[np.float32] | None = None,
    maximum: NDArray[np.float32] | None = None,
) -> Quantiles:
    """The `q` quantiles of every neuron, with the bounds that the histogram's bins put on them.

    The q quantile is the smallest value that at least the share q of all values do not exceed (numpy's `inverted_cdf`).
    It lies in the bin where the counts add up to that share; the estimate goes through the bin linearly. `minimum` and
    `maximum` [neuron] narrow the bounds, above all those of the two open bins.

    histogram: [neuron, bin] over `HISTOGRAM_EDGES`. q: [quantile], each in 0..1.
    """
    shares = np.asarray(q, np.float64)
    if shares.ndim != 1 or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"q must be a list of numbers between 0 and 1, not {q}")
    if histogram.ndim != 2 or histogram.shape[1] != N_BINS:
        raise ValueError(f"histogram must be [neuron, {N_BINS} bins], not {list(histogram.shape)}")
    below = np.cumsum(histogram, axis=1, dtype=np.int64)  # [neuron, bin]
    rank = np.maximum(np.ceil(shares * below[:, -1:]), 1)  # [neuron, quantile], as all that follows
    bins = np.minimum((below[:, None, :] < rank[:, :, None]).sum(axis=2), N_BINS - 1)
    inside = np.take_along_axis(histogram, bins, axis=1)
    through = (rank - np.take_along_axis(below, bins, axis=1) + inside - 0.5) / np.maximum(inside, 1)
    low, high = HISTOGRAM_EDGES[bins], HISTOGRAM_EDGES[bins + 1]
    if minimum is not None:
        low = np.maximum(low, minimum[:, None])
    if maximum is not None:
        high = np.minimum(high, maximum[:, None])
    # In the two open bins a bound is infinite: then the finite one is the estimate.
    with np.errstate(invalid="ignore"):
        estimate = np.clip(low + (high - low) * through, low, high)
    estimate = np.where(np.isfinite(estimate), estimate, np.where(np.isfinite(low), low, high))
    empty = below[:, -1:] == 0
    return Quantiles(*(np.where(empty, np.nan, bound).astype(np.float32) for bound in (estimate, low, high)))

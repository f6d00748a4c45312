"""What is remembered of every neuron: moments, extremes, histogram, positives by label, exemplars; all mergeable.

Plain numpy, so that a reader needs no compiler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

LOWEST_EXPONENT, HIGHEST_EXPONENT = -14, 10
NOT_KNOWN = -1
"""What a statistic of `OPTIONAL` holds for every neuron where it was not gathered."""
OPTIONAL = ("overflow",)
"""Statistics that parts gathered by earlier versions lack: there they are not known, and neither is a sum with them."""


def _edges() -> NDArray[np.float32]:
    exponents = np.arange(LOWEST_EXPONENT, HIGHEST_EXPONENT)
    positive = np.append(np.stack([2.0**exponents, 1.5 * 2.0**exponents], axis=1).ravel(), 2.0**HIGHEST_EXPONENT)
    return np.concatenate([[-np.inf], -positive[::-1], positive, [np.inf]]).astype(np.float32)


HISTOGRAM_EDGES = _edges()
"""[bin + 1] bin b holds the values between edges b and b + 1: two bins an octave from 2^-14 to 2^10, of either sign, so
that exponent and first mantissa bit of a float name its bin. A value on an edge belongs to the bin farther from zero;
the middle bin holds what is smaller than 2^-14, the outer two are open."""

N_BINS = len(HISTOGRAM_EDGES) - 1


@dataclass(frozen=True)
class Statistics:
    """The statistics of every neuron over the counted tokens of a part of a capture; its arrays are updated in place.

    Values that are not finite are counted in `non_finite` and enter nothing else. Over no value at all the moments are
    0, the minimum +inf and the maximum -inf.
    """

    count: NDArray[np.int64]
    """[neuron] finite values."""
    mean: NDArray[np.float64]
    """[neuron] of the finite values."""
    m2: NDArray[np.float64]
    """[neuron] sum of the squared differences from the mean; the variance is `m2 / count`."""
    minimum: NDArray[np.float32]
    """[neuron] smallest finite value."""
    maximum: NDArray[np.float32]
    """[neuron] largest finite value."""
    non_finite: NDArray[np.int64]
    """[neuron] NaN and infinite values."""
    overflow: NDArray[np.int64]
    """[neuron] finite values that the block holds as infinite, being beyond its format; at every token packed, counted or
    not. `NOT_KNOWN` in statistics of earlier versions."""
    histogram: NDArray[np.int64]
    """[neuron, bin] finite values between `HISTOGRAM_EDGES`."""
    positives: NDArray[np.int64]
    """[label, neuron] finite values above zero at the tokens of each label."""
    exemplar_values: NDArray[np.float32]
    """[neuron, k] the largest activations, at most one for each text window, descending; ties to the earlier token."""
    exemplar_tokens: NDArray[np.int64]
    """[neuron, k] the tokens they came from; -1, with value -inf, where there are fewer than k."""

    @classmethod
    def empty(cls, n_neurons: int, n_labels: int, k: int) -> Self:
        """Statistics over no token."""
        return cls(
            count=np.zeros(n_neurons, np.int64),
            mean=np.zeros(n_neurons),
            m2=np.zeros(n_neurons),
            minimum=np.full(n_neurons, np.inf, np.float32),
            maximum=np.full(n_neurons, -np.inf, np.float32),
            non_finite=np.zeros(n_neurons, np.int64),
            overflow=np.zeros(n_neurons, np.int64),
            histogram=np.zeros((n_neurons, N_BINS), np.int64),
            positives=np.zeros((n_labels, n_neurons), np.int64),
            exemplar_values=np.full((n_neurons, k), -np.inf, np.float32),
            exemplar_tokens=np.full((n_neurons, k), -1, np.int64),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The statistics whose `arrays()` these are; copies, to be added to.

        Raises KeyError for a missing one that is not `OPTIONAL`.
        """
        dtypes = {name: array.dtype for name, array in cls.empty(0, 0, 0).arrays().items()}
        not_known = np.full(arrays["count"].shape, NOT_KNOWN)
        arrays = {name: not_known for name in OPTIONAL} | dict(arrays)
        return cls(**{name: np.array(arrays[name], dtype, order="C") for name, dtype in dtypes.items()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def merge(self, other: "Statistics") -> None:
        """Add the statistics of a later part in place.

        Counts, extremes and exemplars are those of both parts together, exactly. Moments follow Chan, Golub and LeVeque
        (1979), always in this order, so that the same parts merged in the same order give the same bits.
        """
        for name, array in self.arrays().items():
            if array.shape != (other_shape := getattr(other, name).shape):
                raise ValueError(
                    f"cannot merge statistics: {name} has shape {array.shape} here and {other_shape} there"
                )
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        difference = other.mean - self.mean
        self.m2[:] += other.m2 + difference * difference * (self.count * share)
        self.mean[:] += difference * share
        self.count[:] = total
        np.minimum(self.minimum, other.minimum, out=self.minimum)
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self.non_finite[:] += other.non_finite
        # Not known in one part, it is not known of both: a sum would be too small, in silence.
        known = (self.overflow >= 0) & (other.overflow >= 0)
        self.overflow[:] = np.where(known, self.overflow + other.overflow, NOT_KNOWN)
        self.histogram[:] += other.histogram
        self.positives[:] += other.positives
        self._merge_exemplars(other)

    def _merge_exemplars(self, other: "Statistics") -> None:
        k = self.exemplar_values.shape[1]
        values = np.concatenate([self.exemplar_values, other.exemplar_values], axis=1)
        tokens = np.concatenate([self.exemplar_tokens, other.exemplar_tokens], axis=1)
        order = np.lexsort((tokens, -values), axis=1)[:, :k]
        self.exemplar_values[:] = np.take_along_axis(values, order, axis=1)
        self.exemplar_tokens[:] = np.take_along_axis(tokens, order, axis=1)


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

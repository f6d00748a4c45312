"""Coactivation: the specification, pair by pair in float64."""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, decode


def pearson(chosen: FloatArray, values: FloatArray, counted: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """The correlation [chosen, neuron] of every pair over the counted tokens at which both are finite; NaN if undefined."""
    result = np.full((len(chosen), len(values)), np.nan)
    for c, x in enumerate(_select(chosen, counted)):
        for n, y in enumerate(_select(values, counted)):
            both_finite = np.isfinite(x) & np.isfinite(y)
            if both_finite.any():
                dx, dy = (row[both_finite] - np.float64(row[both_finite].mean()) for row in (x, y))
                if np.ptp(x[both_finite]) > 0 and np.ptp(y[both_finite]) > 0:
                    result[c, n] = (dx * dy).sum() / (np.linalg.norm(dx) * np.linalg.norm(dy))
    return result


def count(chosen: FloatArray, values: FloatArray, counted: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """The number [chosen, neuron] of counted tokens at which both are finite."""
    x, y = (np.isfinite(_select(rows, counted)).astype(np.int64) for rows in (chosen, values))
    return x @ y.T


def jaccard(
    chosen: FloatArray,
    values: FloatArray,
    chosen_thresholds: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """|A ∩ B| / |A ∪ B| of every pair's sets of counted tokens with a value above the neuron's threshold."""
    x = _select(chosen, counted) > chosen_thresholds[:, None]
    y = _select(values, counted) > thresholds[:, None]
    n_both = (x[:, None] & y).sum(axis=2)
    n_either = (x[:, None] | y).sum(axis=2)
    return np.where(n_either > 0, n_both / np.maximum(n_either, 1), np.nan)


def _select(values: FloatArray, counted: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    decoded = decode(values).astype(np.float64)
    return decoded if counted is None else decoded[:, counted]

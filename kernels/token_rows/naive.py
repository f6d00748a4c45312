"""What token rows are, in plain numpy: the specification."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, decode, encode
from actstore.kernels.pack import steps


@dataclass(frozen=True)
class Decoding:
    """What becomes of stored values: `(value - shift) * factor`, each value clipped to ±limit before."""

    scales: NDArray[np.float32] | None
    """Of int8 steps, as they are stored: [block, neuron]. None of floats."""
    limit: NDArray[np.float32]
    """[neuron] infinite where nothing is clipped."""
    shift: NDArray[np.float32]
    """[neuron]."""
    factor: NDArray[np.float32]
    """[neuron]."""

    @property
    def is_plain(self) -> bool:
        """Whether every value stays as it is."""
        is_clipped = bool(np.isfinite(self.limit).any())
        return self.scales is None and not is_clipped and not self.shift.any() and bool((self.factor == 1).all())


def scatter_rows(values: NDArray[np.generic], target: NDArray[np.int64], out: NDArray[np.generic], column: int) -> None:
    """Put token t of `values` [neuron, token] into row `target[t]` of `out` [row, neuron], from `column` on.

    A token whose target is -1 is left out; no two have the same.
    """
    for token, row in enumerate(target.tolist()):
        if row >= 0:
            out[row, column : column + len(values)] = values[:, token]


def decode_rows(raw: NDArray[np.generic], blocks: NDArray[np.int32], decoding: Decoding, out: FloatArray) -> None:
    """Fill `out` [row, neuron] with the values of `raw` [row, neuron]; `blocks` [row] is the row of `decoding.scales` of each.

    Computed in float32 and rounded once, to the format of `out`. NaN stays NaN.
    """
    scales = decoding.scales
    values = decode(raw) if scales is None else steps.decode(raw.astype(np.int8, copy=False), scales[blocks])
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.clip(values, -decoding.limit, decoding.limit)
        out[...] = encode((values - decoding.shift) * decoding.factor, out.dtype)

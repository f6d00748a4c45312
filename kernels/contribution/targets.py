"""Which token each position is asked about, and the direction in which its logit reads the residual stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, as_array, decode, on_gpu

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[np.generic] | torch.Tensor"
Given = Any  # an `Array` that is a numpy array ever after: mypy has one type for both


@dataclass(frozen=True)
class Targets:
    """The target of every token t, and its direction `gain ⊙ directions[rows[t]] · scale[t]`.

    With the unembedding, the final norm's gain and 1 / rms, a neuron's activation times (write vector · direction) is
    exactly what it adds to the target's logit. Without gain and scale it is the score of Pan et al. (2024).

    All but `directions` may be a numpy array or a tensor on any device; they end as numpy arrays. Raises ValueError
    where the arrays contradict each other.
    """

    directions: "FloatArray | torch.Tensor"
    """[row, d] float32, float16 or bfloat16 (in numpy: uint16 bits): the unembedding, or a direction for each token."""
    rows: Given = None
    """[token] int64, the row of each token's target: its token id, if `directions` is the unembedding. Unless given,
    token t has row t."""
    gain: Given = None
    """[d] float32; 1 unless given."""
    scale: Given = None
    """[token] float32, finite: 1 / rms of the residual stream there, say; 1 unless given."""

    def __post_init__(self) -> None:
        if self.directions.ndim != 2:
            raise ValueError(f"directions must be [row, d], not {list(self.directions.shape)}")
        if self.rows is not None:
            rows = _on_host(self.rows)
            if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
                raise ValueError(f"rows must be [token] integers, not {rows.dtype} {list(rows.shape)}")
            object.__setattr__(self, "rows", np.ascontiguousarray(rows, np.int64))
        for name, size, axis in (("gain", self.directions.shape[1], "d"), ("scale", self.n_tokens, "token")):
            if (vector := getattr(self, name)) is not None:
                object.__setattr__(self, name, _vector(vector, name, size, axis))
        if self.scale is not None and not np.isfinite(self.scale).all():
            raise ValueError("scale must be finite: leave out the tokens that have none")

    @property
    def n_tokens(self) -> int:
        """The tokens that have a target."""
        return len(self.directions if self.rows is None else self.rows)

    def take(self, tokens: NDArray[np.int64]) -> Self:
        """The targets of some of the tokens."""
        rows = tokens if self.rows is None else self.rows[tokens]
        return type(self)(self.directions, rows, self.gain, None if self.scale is None else self.scale[tokens])

    def check_rows(self) -> None:
        """Raises ValueError unless every token's row is there."""
        n_rows = len(self.directions)
        if self.rows is None or not self.rows.size or 0 <= self.rows.min() <= self.rows.max() < n_rows:
            return
        limits = f"{self.rows.min()} to {self.rows.max()}"
        raise ValueError(f"rows must be 0 or more and below {n_rows}, the number of directions; found {limits}")


def _on_host(array: Array) -> NDArray[np.generic]:
    return np.asarray(array.cpu() if on_gpu(array) else array)


def _vector(array: Array, name: str, size: int, axis: str) -> NDArray[np.float32]:
    host = array.cpu() if on_gpu(array) else array
    if isinstance(host, np.ndarray) and host.dtype == np.float64:
        host = host.astype(np.float32)
    vector = np.ascontiguousarray(decode(as_array(host, name)))
    if vector.shape != (size,):
        raise ValueError(f"{name} must be [{axis}] with {size} entries, not {list(vector.shape)}")
    return vector

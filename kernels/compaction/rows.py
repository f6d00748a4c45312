"""A compacted block in the place of an array: its rows are made when they are read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.compaction.api import expand
from actstore.kernels.compaction.compacted import Compacted


@dataclass(frozen=True)
class CompactedRows:
    """The values [neuron, slot] of a compacted block. What reads it rows by rows never holds all of them."""

    compacted: Compacted[NDArray[Any]]
    dtype: np.dtype[Any]
    """float32, float16, or uint16 for bfloat16."""

    @property
    def shape(self) -> tuple[int, int]:
        """Neurons and slots."""
        return len(self.compacted.totals), len(self.compacted.base)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes as it is, compacted."""
        return sum(part.nbytes for part in self.compacted.parts().values())

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """The values of consecutive neurons, contiguous and nobody else's."""
        first, stop, _ = rows.indices(len(self.compacted.totals))
        return expand(self.compacted, first, stop).view(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All values."""
        return np.asarray(self[:], dtype)

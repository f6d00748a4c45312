"""What a shard is written from: an array, or something that makes its rows when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Rows(Protocol):
    """Values [row, column] that are read some rows at a time, each once and in order: a NumPy array is such."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values."""

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Consecutive rows [row, column]."""

    def __array__(self) -> NDArray[Any]:
        """All rows."""

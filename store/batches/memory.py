"""Memory of batches that is used again: the system takes as long to give new memory as a block takes to be read."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNUSED: Final = sys.getrefcount(object())
"""References to what nobody has but who asks."""


_LINE: Final = 64
"""Bytes that memory takes at once: rows that begin at a multiple of it are put there in half of the time."""


class ArrayPool:
    """Arrays of one shape, taken again once nobody else holds them, a view of them, or a tensor of their memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, most: int) -> None:
        """`most`: arrays that are kept; of more that are held at once, the oldest stay with who holds them."""
        self._shape, self._dtype, self._most = shape, np.dtype(dtype), most
        self._nbytes = math.prod(shape) * self._dtype.itemsize
        self._memories: list[NDArray[np.uint8]] = []

    def take(self) -> NDArray[Any]:
        """An array whose values say nothing; it begins at a multiple of a line."""
        for i in range(len(self._memories)):
            # The list's own reference, and that of the argument: of a view, a view of it, and a tensor, each has one more.
            if sys.getrefcount(self._memories[i]) <= _UNUSED + 1:
                return self._array(i)
        memory = np.empty(self._nbytes + _LINE, np.uint8)
        self._memories = [*self._memories, memory][-self._most :]
        del memory
        return self._array(-1)

    def _array(self, i: int) -> NDArray[Any]:
        memory = self._memories[i]
        offset = -memory.__array_interface__["data"][0] % _LINE
        array: NDArray[Any] = memory[offset : offset + self._nbytes].view(self._dtype).reshape(self._shape)
        return array

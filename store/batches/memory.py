"""Memory of batches that is used again: the system takes as long to give new memory as a block takes to be read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNUSED: Final = sys.getrefcount(object())
"""References to what nobody has but who asks."""


class ArrayPool:
    """Arrays of one shape, taken again once nobody else holds them, a view of them, or a tensor of their memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, most: int) -> None:
        """`most`: arrays that are kept; of more that are held at once, the oldest stay with who holds them."""
        self._shape, self._dtype, self._most = shape, np.dtype(dtype), most
        self._arrays: list[NDArray[Any]] = []

    def take(self) -> NDArray[Any]:
        """An array whose values say nothing."""
        for i in range(len(self._arrays)):
            # The list's own reference, and that of the argument: every view, and every tensor of it, has one more.
            if sys.getrefcount(self._arrays[i]) <= _UNUSED + 1:
                return self._arrays[i]
        array = np.empty(self._shape, self._dtype)
        self._arrays = [*self._arrays, array][-self._most :]
        return array

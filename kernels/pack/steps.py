"""What int8 steps say, and how they are read: multiples of a scale, infinities, no value.

A row of a block has one scale. Its steps are -127..127 where all of its values are finite or NaN. Where some are infinite,
finite ones take -126..126 and leave ±127 to the infinities; the scale's lowest bit, which rounding to 17 bits of mantissa has
left free, says so. A reader that does not know the mark takes an infinity for one step more than the largest finite value, as
every reader did before there was one. Plain numpy, so that a reader needs no compiler.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

NO_VALUE: Final = -128
"""The step of NaN, which is also what a slot without a value holds."""
INFINITE: Final = 127
"""The step of an infinity, with its sign, in a row whose scale is marked."""
MARK: Final = 1
"""The bit of a scale that says that steps of ±127 are infinite."""
FREE_BITS: Final = 127
"""The bits that are zero in every scale but for the mark: a step times 17 bits of mantissa is exact in float32."""


def decode(steps: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The float32 values of int8 `steps`; `scale` is shaped to broadcast."""
    bits = np.asarray(scale, np.float32).view(np.uint32)
    marked = (bits & MARK).astype(np.bool_)
    with np.errstate(over="ignore"):  # where there is no value
        values = steps.astype(np.float32) * (bits & ~np.uint32(MARK)).view(np.float32)
    values[steps == NO_VALUE] = np.nan
    if marked.any():
        infinite = marked & (np.abs(steps.astype(np.int16)) == INFINITE)
        values = np.where(infinite, np.copysign(np.float32(np.inf), steps), values)
    return values

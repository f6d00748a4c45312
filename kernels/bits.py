"""Conversions between the float formats on their bits, compiled: numba has no half precision on the CPU.

Formats are numbered as `FORMAT_CODES` says. The loops are branch-free so that they vectorise.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit

Bits: TypeAlias = NDArray[np.uint32 | np.uint16]
"""The bits of an array in one of the three formats: uint32 for float32, uint16 for the others."""

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
FORMAT_CODES = {np.dtype(np.float32): FLOAT32, np.dtype(np.float16): FLOAT16, np.dtype(np.uint16): BFLOAT16}
BITS_DTYPES = {FLOAT32: np.uint32, FLOAT16: np.uint16, BFLOAT16: np.uint16}
INFINITIES = (0x7F800000, 0x7C00, 0x7F80)
"""The bits of +infinity in each format; what is above them, without the sign, is NaN."""
OVERFLOWS = (0x7F800000, 0x477FF000, 0x7F7F8000)
"""The float32 bits of the smallest magnitude that each format rounds to infinity."""

_HALF_SUBNORMAL = np.float32(2.0**-24)


@jit
def widen(raw: Bits, source: int, bits: NDArray[np.uint32]) -> None:
    """Fill `bits` [value] with the float32 bits of `raw` [value], which holds bits in format `source`.

    One loop per format, so that the format is not asked for at every value; `bits` may be longer than `raw`.
    """
    if source == FLOAT32:
        for i in range(raw.size):
            bits[i] = raw[i]
    elif source == BFLOAT16:
        for i in range(raw.size):
            bits[i] = np.uint32(raw[i]) << np.uint32(16)
    else:
        for i in range(raw.size):
            bits[i] = float16_to_float32(raw[i])


@jit
def narrow(bits: NDArray[np.uint32], target: int, coded: Bits) -> None:
    """Fill `coded` [value] with the bits in format `target` of the values whose float32 bits are `bits` [value]."""
    if target == FLOAT32:
        for i in range(bits.size):
            coded[i] = bits[i]
    elif target == BFLOAT16:
        for i in range(bits.size):
            coded[i] = float32_to_bfloat16(bits[i])
    else:
        for i in range(bits.size):
            coded[i] = float32_to_float16(bits[i])


@jit
def float16_to_float32(half: np.uint16) -> np.uint32:
    """The float32 bits of a float16's bits; exact, NaN payloads included."""
    # All three cases are computed and one is selected: a branch per value would not vectorise.
    # The mantissa moves from 10 to 23 bits, and the exponent's bias from 15 to 127: 112 more, and again for the special ones.
    magnitude = np.uint32(half & 0x7FFF)
    shifted = np.uint32(magnitude << np.uint32(13))
    normal = np.uint32(shifted + np.uint32(112 << 23))
    special = np.uint32(shifted + np.uint32(224 << 23))
    # A subnormal half is a multiple of 2^-24, which float32 holds exactly.
    subnormal = np.float32(np.float32(magnitude) * _HALF_SUBNORMAL).view(np.uint32)
    result = special if magnitude >= 0x7C00 else (normal if magnitude >= 0x0400 else subnormal)
    return np.uint32(result | np.uint32(np.uint32(half & 0x8000) << np.uint32(16)))


@jit
def float32_to_bfloat16(bits: np.uint32) -> np.uint16:
    """The bfloat16 nearest to a float32's bits, ties to even; a NaN becomes the quiet NaN."""
    # 0x7FFF and the bit that will be the last: above a half rounds up, below it down, a tie to the even neighbour.
    rounded = (np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.uint16(0x7FC0) if (bits & 0x7FFFFFFF) > 0x7F800000 else np.uint16(rounded)


@jit
def float32_to_float16(bits: np.uint32) -> np.uint16:
    """The float16 nearest to a float32's bits, ties to even; a NaN becomes the quiet NaN, what overflows infinite."""
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # As for bfloat16, with the 13 bits that a half has not.
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(np.uint32(magnitude - np.uint32(112 << 23)) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    # Adding 0.5 puts the last bit of a half's subnormal on the last bit of the float: the addition itself rounds.
    subnormal = np.float32(magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
    special = 0x7E00 if magnitude > 0x7F800000 else 0x7C00
    finite = normal if magnitude >= (113 << 23) else subnormal
    result = special if magnitude >= OVERFLOWS[FLOAT16] else finite
    return np.uint16(np.uint32(result) | ((bits >> np.uint32(16)) & np.uint32(0x8000)))

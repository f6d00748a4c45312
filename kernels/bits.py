"""Conversions between the float formats on their bits, compiled: numba has no half precision on the CPU.

Formats are numbered as `FORMAT_CODES` says. The loops are branch-free so that they vectorise.
"""

from typing import Any

import numpy as np

from actstore.kernels.jit import jit

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
FORMAT_CODES = {np.dtype(np.float32): FLOAT32, np.dtype(np.float16): FLOAT16, np.dtype(np.uint16): BFLOAT16}
BITS_DTYPES = {FLOAT32: np.uint32, FLOAT16: np.uint16, BFLOAT16: np.uint16}
INFINITIES = (0x7F800000, 0x7C00, 0x7F80)
OVERFLOWS = (0x7F800000, 0x477FF000, 0x7F7F8000)
"""The float32 bits of the smallest magnitude that each format rounds to infinity."""

_HALF_SUBNORMAL = np.float32(2.0**-24)


@jit
def widen(raw: Any, source: int, bits: Any) -> None:
    """Fill `bits` (uint32) with the float32 bits of `raw`, a flat array of bits in format `source`."""
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
def narrow(bits: Any, target: int, coded: Any) -> None:
    """Fill `coded` with the bits in format `target` of the values whose float32 bits are `bits`, both flat."""
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
def float16_to_float32(half: Any) -> Any:
    """The float32 bits of a float16's bits; exact, NaN payloads included."""
    magnitude = np.uint32(half & 0x7FFF)
    shifted = np.uint32(magnitude << np.uint32(13))
    normal = np.uint32(shifted + np.uint32(112 << 23))
    special = np.uint32(shifted + np.uint32(224 << 23))
    subnormal = np.float32(np.float32(magnitude) * _HALF_SUBNORMAL).view(np.uint32)
    result = special if magnitude >= 0x7C00 else (normal if magnitude >= 0x0400 else subnormal)
    return np.uint32(result | np.uint32(np.uint32(half & 0x8000) << np.uint32(16)))


@jit
def float32_to_bfloat16(bits: Any) -> Any:
    """The bfloat16 nearest to a float32's bits, ties to even; a NaN becomes the quiet NaN."""
    rounded = (np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.uint16(0x7FC0) if (bits & 0x7FFFFFFF) > 0x7F800000 else np.uint16(rounded)


@jit
def float32_to_float16(bits: Any) -> Any:
    """The float16 nearest to a float32's bits, ties to even; a NaN becomes the quiet NaN, what overflows infinite."""
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(np.uint32(magnitude - np.uint32(112 << 23)) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    # Adding 0.5 puts the last bit of a half's subnormal on the last bit of the float: the addition itself rounds.
    subnormal = np.float32(magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
    special = 0x7E00 if magnitude > 0x7F800000 else 0x7C00
    finite = normal if magnitude >= (113 << 23) else subnormal
    result = special if magnitude >= OVERFLOWS[FLOAT16] else finite
    return np.uint16(np.uint32(result) | ((bits >> np.uint32(16)) & np.uint32(0x8000)))

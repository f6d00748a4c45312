"""Numbers as pages carry them: short where they are read, packed where there is one per neuron."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Value = TypeVar("Value")

DIGITS = 5
"""Significant digits of a number on a page; it shows four."""


def short(value: Value, digits: int = DIGITS) -> Value:
    """The same document with its floating-point numbers rounded to some digits; what is not finite is null."""
    rounded: Any = _short(value, digits)
    return rounded  # type: ignore[no-any-return]


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {key: _short(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def packed(values: NDArray[np.floating[Any]]) -> str:
    """Numbers as base64 of float32, the least significant byte first; NaN where there is none."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()

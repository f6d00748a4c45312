"""How often answers to yes-or-no questions are right, and between which limits that lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Z: Final = 1.959963984540054
"""The normal quantile of limits that hold in 95 of 100 cases."""


class Accuracy(NamedTuple):
    """The balanced accuracy of some answers; 0.5 is what guessing gives."""

    balanced: float
    """Mean of the shares of right answers where yes, and where no, is right; NaN where one of the two never is."""
    low: float
    """The limits of 95 %; NaN as `balanced`."""
    high: float
    n: int
    """Number of questions."""
    malformed: int
    """Those of them without an answer that could be read, each of which counts as wrong."""


def balanced_accuracy(truth: Sequence[bool], answers: Sequence[bool | None]) -> Accuracy:
    """The balanced accuracy of answers, of which None could not be read and is wrong.

    Limits are Wilson's of either share, combined as Zou and Donner (2008) combine those of independent estimates.
    """
    shares = []
    for value in (True, False):
        right = [answer is value for known, answer in zip(truth, answers, strict=True) if known is value]
        shares.append((sum(right), len(right)))
    n, malformed = len(truth), sum(answer is None for answer in answers)
    if not all(total for _, total in shares):
        return Accuracy(math.nan, math.nan, math.nan, n, malformed)
    (p, p_low, p_high), (q, q_low, q_high) = (wilson(*share) for share in shares)
    balanced = (p + q) / 2
    low = balanced - math.hypot(p - p_low, q - q_low) / 2
    high = balanced + math.hypot(p_high - p, q_high - q) / 2
    return Accuracy(balanced, low, high, n, malformed)


def wilson(hits: int, total: int) -> tuple[float, float, float]:
    """A share and its limits of 95 % after Wilson (1927); `total` is 1 or more."""
    share, weight = hits / total, Z * Z / total
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / total + weight / total / 4) / (1 + weight)
    # Rounding must not put a share of 0 or 1 outside of its own limits.
    return share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))

"""The words for the numbers of a drawn graph, the same in the terminal, on a page and in a picture.

The probability of a path applies to the occurrences at which no longer path of the graph matches. The counts beside it are of
these occurrences; the counts of all occurrences follow them, marked "in all".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actstore.display.graphs.branches import Branch

READING_P = "P: probability of firing where no longer path of the graph matches, smoothed"
READING_COUNTS = "fired: times it fired there, of times seen there; in all: with the longer paths"


def probability_label(branch: Branch) -> str:
    """The probability of the path that ends here; empty where none does."""
    return f"P {branch.probability:.2f}" if branch.ends else ""


def counts_label(branch: Branch) -> str:
    """The number of firings and of occurrences: of those to which the probability applies, then of all."""
    in_all = f"{branch.fires:,} of {branch.count:,}"
    if branch.ends and branch.own_count == 0:
        return f"fired {in_all} in all, never seen without a longer path"
    if branch.ends and (branch.own_fires, branch.own_count) != (branch.fires, branch.count):
        return f"fired {branch.own_fires:,} of {branch.own_count:,} ({in_all} in all)"
    return f"fired {in_all}"


def short_numbers(branch: Branch) -> str:
    """The same in short: the probability, and the firings / occurrences to which it applies."""
    fires, count = branch.fires, branch.count
    if branch.ends and branch.own_count:
        fires, count = branch.own_fires, branch.own_count
    return " · ".join(part for part in (probability_label(branch), f"{fires:,}/{count:,}") if part)


def tooltip(branch: Branch) -> str:
    """All numbers of a branch in words."""
    parts = [f"{branch.label}: fired {branch.fires:,} times of {branch.count:,} in all"]
    if branch.ends:
        where = f", at {branch.own_fires:,} of {branch.own_count:,} such occurrences" if branch.own_count else ""
        parts.append(f"P of firing where no longer path matches {branch.probability:.3f}{where}")
        parts.append(f"expected activation {branch.value:.3f} of the maximum")
    if branch.importance == branch.importance:
        parts.append(f"measured importance {branch.importance:.3f}")
    return "; ".join(parts)

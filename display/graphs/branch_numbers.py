"""What the numbers of a drawn graph are called: the same words in the terminal, on a page, in a picture.

A path's probability is of the occurrences for which no longer path of the graph answers, so the counts beside it are of these
occurrences, too; those of all occurrences, longer paths included, stand behind, and say so.
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
    """How often the neuron fired, of how many occurrences: of those that the probability speaks of, then of all."""
    in_all = f"{branch.fires:,} of {branch.count:,}"
    if branch.ends and branch.own_count == 0:
        return f"fired {in_all} in all, never seen without a longer path"
    if branch.ends and (branch.own_fires, branch.own_count) != (branch.fires, branch.count):
        return f"fired {branch.own_fires:,} of {branch.own_count:,} ({in_all} in all)"
    return f"fired {in_all}"


def short_numbers(branch: Branch) -> str:
    """The same where there is no room: the probability, and times fired / seen of what it speaks of."""
    fires, count = branch.fires, branch.count
    if branch.ends and branch.own_count:
        fires, count = branch.own_fires, branch.own_count
    return " · ".join(part for part in (probability_label(branch), f"{fires:,}/{count:,}") if part)


def tooltip(branch: Branch) -> str:
    """All there is to say of a branch, in a sentence or two."""
    said = [f"{branch.label}: fired {branch.fires:,} times of {branch.count:,} in all"]
    if branch.ends:
        where = f", at {branch.own_fires:,} of {branch.own_count:,} such occurrences" if branch.own_count else ""
        said.append(f"P of firing where no longer path matches {branch.probability:.3f}{where}")
        said.append(f"expected activation {branch.value:.3f} of the maximum")
    if branch.importance == branch.importance:
        said.append(f"measured importance {branch.importance:.3f}")
    return "; ".join(said)

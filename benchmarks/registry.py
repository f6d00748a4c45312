"""Rows of the benchmark: what is measured, against which named alternative, with median and spread.

The candidates of a row run in turn, A B A B …, so that a machine whose speed drifts does not favour one. Knows nothing
about what is measured.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

QUICK_REPEATS = 3


@dataclass(frozen=True)
class Candidate:
    """One way of doing what a row measures."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    """Not timed: what puts the machine into the state the row is about."""
    times: int = 1
    """How often the whole would do what `run` does once, where all of it would take too long; its name must say so."""


@dataclass(frozen=True)
class Row:
    """One line of the benchmark's table."""

    name: str
    prepare: Callable[[bool], AbstractContextManager[dict[str, Candidate]]]
    """quick → candidates by name; entered once, left when measured. Ratios are to the first."""
    tests: tuple[str, ...]
    """Tests that must pass before a figure is printed."""
    repeats: int = 7
    warm_up: bool = True
    """Every candidate runs once before it is timed. Without, `prepare` compiles and loads what is not to be timed."""
    quick: bool = True
    """Whether a quick run measures it: not where no small input says anything."""


@dataclass(frozen=True)
class Measurement:
    """Seconds of every repeat of every candidate of a row."""

    row: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def lines(self) -> Iterator[dict[str, str | float]]:
        """A line per candidate: median, extremes, and the median of the ratios to the first candidate, pair by pair."""
        first = next(iter(self.seconds.values()))
        for candidate, seconds in self.seconds.items():
            ratios = [theirs / one for theirs, one in zip(seconds, first, strict=True)]
            yield {
                "row": self.row,
                "candidate": candidate,
                "median_s": statistics.median(seconds),
                "min_s": min(seconds),
                "max_s": max(seconds),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }


def choose(rows: tuple[Row, ...], *, quick: bool, only: str | None = None) -> list[Row]:
    """The rows to be measured: those whose name contains `only`, and in a quick run those that are for one."""
    return [row for row in rows if (row.quick or not quick) and (only is None or only in row.name)]


def measure(row: Row, *, quick: bool) -> Measurement:
    """Run every candidate of `row` in turn, one warm-up first."""
    result = Measurement(row.name)
    with row.prepare(quick) as candidates:
        for name, candidate in candidates.items():
            if row.warm_up:
                candidate.run()
            result.seconds[name] = []
        for _ in range(min(QUICK_REPEATS, row.repeats) if quick else row.repeats):
            for name, candidate in candidates.items():
                candidate.before()
                began = time.perf_counter()
                candidate.run()
                result.seconds[name].append((time.perf_counter() - began) * candidate.times)
    return result

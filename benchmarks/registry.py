"""Rows of the benchmark: what is measured, against which named alternative, with median and spread.

The candidates of a row run in turn, A B A B …, so that a machine whose speed drifts does not favour one.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.instructions import count_instructions, has_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

QUICK_REPEATS = 3


@dataclass(frozen=True)
class Candidate:
    """One way of doing what a row measures."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    """Runs before every repeat and is not timed, such as emptying the page cache."""
    times: int = 1
    """The measured time is multiplied by this, where `run` does only a part because the whole takes too long. The name must say
    so."""


@dataclass(frozen=True)
class Row:
    """One line of the benchmark's table."""

    name: str
    prepare: Callable[[bool], AbstractContextManager[dict[str, Candidate]]]
    """quick → name → candidate; a context that is left after the measurement. Ratios are to the first candidate."""
    tests: tuple[str, ...]
    """Tests that must pass before a figure is printed."""
    repeats: int = 7
    warm_up: bool = True
    """Every candidate runs once before it is timed. If false, `prepare` has to compile and load what must not be timed."""
    quick: bool = True
    """Whether a quick run measures it; false where small inputs are not informative."""


@dataclass(frozen=True)
class Measurement:
    """Seconds of every repeat of every candidate of a row."""

    row: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    """Of one more run of a candidate, where the machine counts them."""

    def lines(self) -> Iterator[dict[str, str | float]]:
        """One line per candidate: median, extremes, the median of the ratios to the first candidate, round by round, how
        many rounds there were, and the instructions of one, "" where they were not counted."""
        first = next(iter(self.seconds.values()))
        for candidate, seconds in self.seconds.items():
            ratios = [other / reference for other, reference in zip(seconds, first, strict=True)]
            yield {
                "row": self.row,
                "candidate": candidate,
                "median_s": statistics.median(seconds),
                "min_s": min(seconds),
                "max_s": max(seconds),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "rounds": len(seconds),
                "instructions": self.instructions.get(candidate, ""),
            }


def choose(rows: tuple[Row, ...], *, quick: bool, only: str | None = None) -> list[Row]:
    """The rows to measure: those whose name contains `only`; in a quick run those with `quick`."""
    return [row for row in rows if (row.quick or not quick) and (only is None or only in row.name)]


def measure(row: Row, *, quick: bool) -> Measurement:
    """The seconds of every candidate of `row`, run in turn after one warm-up."""
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
        if not quick and has_counter():
            for name, candidate in candidates.items():
                candidate.before()
                counted = count_instructions(candidate.run)
                if counted is not None:
                    result.instructions[name] = counted * candidate.times
    return result

"""Coverage criteria over a corpus: from a store, against plain numpy over a token-major memory map of the same values.

The plain implementation follows the public codes of DeepGauge's criteria (as collected in NeuraL-Coverage): batch after batch
of samples as the model gives them, each criterion on its own; sections as a table of flags [neuron, section], the k largest by
sorting, patterns as a set of strings.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

import actstore
from actstore.engine.coverage.criteria import CoverageSettings
from actstore.engine.coverage.measure import measure_coverage
from benchmarks.registry import Candidate, Row
from benchmarks.rows.reading import MEMMAP, N_NEURONS, map_file, stored
from benchmarks.synthetic import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CRITERIA = ("nc", "kmnc", "nbc", "snac", "tknc", "tknp")
"""Those that one pass over the corpus measures, which the plain implementation has."""
THRESHOLD, SECTIONS, TOP = 0.5, 1000, 10


class Plain:
    """The criteria over one layer."""

    def __init__(self, low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
        self.low, self.high = low, high
        self.scaled, self.top = np.zeros((2, len(low)), bool)
        self.sections = np.zeros((len(low), SECTIONS), bool)
        self.beyond = np.zeros((2, len(low)), bool)
        self.patterns: set[str] = set()

    def add(self, batch: NDArray[np.float32]) -> None:
        """Samples [sample, neuron]."""
        low, high = batch.min(axis=1, keepdims=True), batch.max(axis=1, keepdims=True)
        self.scaled |= ((batch - low) / (high - low) > THRESHOLD).any(axis=0)
        inside = (batch >= self.low) & (batch <= self.high)
        above, span = batch.astype(np.float64) - self.low, self.high.astype(np.float64) - self.low
        position = np.floor(above * SECTIONS / span)
        section = np.clip(position, 0, SECTIONS - 1).astype(np.int64)
        _, neuron = np.nonzero(inside)
        self.sections[neuron, section[inside]] = True
        self.beyond[0] |= (batch < self.low).any(axis=0)
        self.beyond[1] |= (batch > self.high).any(axis=0)
        best = np.argsort(-batch, axis=1, kind="stable")[:, :TOP]
        self.top[best] = True
        self.patterns.update(str(sorted(row)) for row in best.tolist())

    def covered(self) -> list[int]:
        """In the order of `CRITERIA`."""
        corners, above = int(self.beyond.sum()), int(self.beyond[1].sum())
        counts = (self.scaled.sum(), self.sections.sum(), corners, above, self.top.sum(), len(self.patterns))
        return [int(count) for count in counts]


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """One layer; the neurons' ranges are those of the corpus itself."""
    settings = CoverageSettings(CRITERIA, (THRESHOLD,), sections=SECTIONS, top=TOP)
    with stored(1 if quick else 4) as (folder, file, shape):
        capture, matrix = actstore.open(folder).capture(), map_file(file, shape)
        known = capture.layer_statistics(0, "mlp.post")

        def ours() -> list[int]:
            return [row.covered for row in measure_coverage(capture, settings, reference=capture)[""].results()]

        def theirs() -> list[int]:
            plain = Plain(known.minimum, known.maximum)
            for start in range(0, len(matrix), WINDOW):
                plain.add(matrix[start : start + WINDOW].astype(np.float32))
            return plain.covered()

        if ours() != theirs():
            raise AssertionError(f"the candidates give different results: {ours()} and {theirs()}")
        yield {
            f"actstore, {shape[0]:,} tokens × {N_NEURONS:,} neurons": Candidate(ours),
            f"numpy over a {MEMMAP}, {WINDOW} samples per batch": Candidate(theirs),
        }


ROWS = (
    Row(
        f"coverage of a corpus: {', '.join(CRITERIA)}",
        prepare,
        ("tests/engine/attribution", "tests/engine/naica", "tests/engine/coverage"),
        repeats=3,
    ),
)

"""Every row of the benchmark on small inputs: it is prepared, and each candidate runs once. What is measured is not looked at.

`make bench` takes forty minutes and is run seldom; without this, what a row reads of the product could change unseen. Where
candidates can be compared, `prepare` does so: a row whose candidates give different results fails here, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT))  # `benchmarks` is a folder of the checkout, not of what is installed
    from benchmarks import readme_rows, run
    from benchmarks.rows import checksums, coverage, loader, reading

if TYPE_CHECKING:
    from benchmarks.registry import Row

SLOW = (
    "capture",
    "bulk scan",
    "integrated gradients",
    "edit",
    "graphs of a model",
    "multi-modal neurons",
    "probes",
    "read one token",
    "statistics of every neuron",
    "one neuron in both orders",
    "shuffled batches",
    "workers",
)
"""Beginnings of the names of rows that take some three seconds or more, though they are small."""
N_NEURONS = 800
"""Of stores that are read: half of what a quick run measures, and enough for the neurons that rows name."""


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] if row.name.startswith(SLOW) else []) for row in run.ROWS],
    ids=lambda row: row.name,
)
def test_every_candidate_of_a_row_runs(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))  # for processes that a row starts
    for module in (checksums, coverage, loader, reading):
        monkeypatch.setattr(module, "N_NEURONS", N_NEURONS)
    with row.prepare(True) as candidates:
        assert candidates
        for name, candidate in candidates.items():
            assert candidate.times == 1 or f"× {candidate.times}" in name, (
                "a part is measured, and the name does not say so"
            )
            candidate.before()
            candidate.run()
    for short in readme_rows.ROWS:
        if row.name.startswith(short.row):
            assert all(readme_rows.only_name(candidates, name) for name in (short.ours, *short.others))


def test_the_readme_shows_rows_that_there_are() -> None:
    names = [row.name for row in run.ROWS]
    missing = [short.row for short in readme_rows.ROWS if readme_rows.only_name(names, short.row) is None]
    assert set(missing) <= set(run.SKIPPED)


def test_rows_that_are_slow_here_are_rows() -> None:
    assert all(name in run.SKIPPED or any(row.name.startswith(name) for row in run.ROWS) for name in SLOW)

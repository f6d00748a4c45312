"""The six rows of the benchmark that README.md shows, one line each, from the lines of the full table.

    python benchmarks/readme_rows.py

writes them from benchmarks/results/results.csv, without measuring anything.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.marked import rewrite  # noqa: E402 - the checkout must be importable first

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Line = Mapping[str, str | float]

RESULTS = ROOT / "benchmarks" / "results" / "results.csv"


@dataclass(frozen=True)
class Short:
    """A row of the full table in one line. Names are beginnings of the full table's names, each of which fits one."""

    title: str
    row: str
    ours: str
    others: tuple[str, ...]


ROWS = (
    Short(
        "capture a 6-layer Llama, windows of 256 tokens",
        "capture, 6 layers",
        "actstore, float16",
        ("bare forward", "hooks and numpy.save"),
    ),
    Short(
        "the same, less text, beside the peers",
        "capture beside the peers",
        "actstore, float16",
        ("bare forward", "TransformerLens", "delphi"),
    ),
    Short(
        "integrated gradients of all 36,864 neurons, 128-token prompt",
        "integrated gradients, 128",
        "actstore",
        ("published procedure",),
    ),
    Short("graphs of 2,688 neurons", "graphs of a model", "actstore", ("as published",)),
    Short(
        "multi-modal neurons of 4,691 nouns, from a store",
        "multi-modal neurons of every noun",
        "actstore",
        ("as published", "the answers generated"),
    ),
    Short(
        "one neuron over 1,015,808 tokens, from disk",
        "read one neuron, opened anew",
        "actstore",
        ("one column of a float16 memmap",),
    ),
)


def seconds(value: str | float) -> str:
    """A duration with its unit."""
    duration = float(value)
    if duration < 1e-4:
        return f"{1e6 * duration:.1f} µs"
    return f"{1000 * duration:.1f} ms" if duration < 1 else f"{duration:.2f} s"


def only_name(names: Iterable[str], beginning: str) -> str | None:
    """The name that begins so, None where none does; `ValueError` where several do."""
    matching = [name for name in names if name.startswith(beginning)]
    if len(matching) > 1:
        raise ValueError(f"Expected one name that begins with {beginning!r}, found {', '.join(matching)}: change ROWS.")
    return matching[0] if matching else None


def measured_on(rows: Iterable[tuple[str | float, str | float]]) -> str:
    """The machine and the commit, from (machine, row) of each line; where rows differ in it, those of the minority by name."""
    rows_of: dict[str, dict[str, None]] = {}
    for machine, row in rows:
        rows_of.setdefault(str(machine), {})[str(row)] = None
    first, *others = sorted(rows_of, key=lambda machine: -len(rows_of[machine]))
    return "; ".join([first, *(f"of {', '.join(rows_of[machine])}: {machine}" for machine in others)])


def markdown(lines: Iterable[Line]) -> str:
    """README.md's table, from the lines of the full table: medians, with the alternatives beside actstore's.

    What was not measured, such as peers that are not installed, is left out and named.
    """
    medians: dict[str, dict[str, str | float]] = {}
    machines, rounds = {}, {}
    for line in lines:
        name = str(line["row"])
        medians.setdefault(name, {})[str(line["candidate"])] = line["median_s"]
        machines[name], rounds[name] = line.get("machine", ""), int(line.get("rounds") or 0)
    table, missing, shown = ["| row | actstore | compared with |", "|---|---:|---|"], [], {}
    for short in ROWS:
        row_name = only_name(medians, short.row) or ""
        row = medians.get(row_name, {})
        ours, *others = (only_name(row, name) for name in (short.ours, *short.others))
        measured = [f"{name}: {seconds(row[name])}" for name in others if name is not None]
        if ours is None or len(measured) < len(others):
            missing.append(short.title)
        if ours is not None:
            table.append(f"| {short.title} | {seconds(row[ours])} | {'; '.join(measured)} |")
            shown[row_name] = short.title
    counts = sorted({rounds[name] for name in shown})
    of_rounds = (
        f" of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} rounds" if counts and counts[0] else ""
    )
    note = f" Not measured, or not whole: {'; '.join(missing)}." if missing else ""
    where = measured_on((machines[name], title) for name, title in shown.items()) if shown else "no machine"
    return "\n".join([*table, "", f"Medians{of_rounds} on {where}.{note}"])


def main() -> None:
    """Write README.md's table from what was measured last."""
    with RESULTS.open(newline="") as file:
        rewrite("benchmark-rows", markdown(csv.DictReader(file)))


if __name__ == "__main__":
    main()

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


def markdown(lines: Iterable[Line]) -> str:
    """README.md's table, from the lines of the full table: medians, with the alternatives beside actstore's.

    What was not measured, such as peers that are not installed, is left out and named.
    """
    medians: dict[str, dict[str, str | float]] = {}
    machine = ""
    for line in lines:
        medians.setdefault(str(line["row"]), {})[str(line["candidate"])] = line["median_s"]
        machine = str(line.get("machine") or machine)
    table, missing = ["| row | actstore | compared with |", "|---|---:|---|"], []
    for short in ROWS:
        row = medians.get(only_name(medians, short.row) or "", {})
        ours, *others = (only_name(row, name) for name in (short.ours, *short.others))
        measured = [f"{name}: {seconds(row[name])}" for name in others if name is not None]
        if ours is None or len(measured) < len(others):
            missing.append(short.title)
        if ours is not None:
            table.append(f"| {short.title} | {seconds(row[ours])} | {'; '.join(measured)} |")
    note = f" Not measured, or not whole: {'; '.join(missing)}." if missing else ""
    return "\n".join([*table, "", f"Medians on {machine}.{note}"])


def main() -> None:
    """Write README.md's table from what was measured last."""
    with RESULTS.open(newline="") as file:
        rewrite("benchmark-rows", markdown(csv.DictReader(file)))


if __name__ == "__main__":
    main()

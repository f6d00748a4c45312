"""The documentation's table of every row of the benchmark, and the words for what it shows.

    python benchmarks/full_table.py

writes it from benchmarks/results/results.csv, without measuring anything.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.marked import rewrite, table  # noqa: E402 - the checkout must be importable first
from benchmarks.readme_rows import RESULTS, measured_on, seconds  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.readme_rows import Line

NO_DIFFERENCE = "no difference seen"
COLUMNS = ["row", "candidate", "rounds", "median", "min – max", "ratio", "min – max of the ratio"]
INSTRUCTIONS = "10⁶ instructions"


def ratio(value: str | float) -> str:
    """A ratio to two decimals, fewer where it is large and more where it is small."""
    number = float(value)
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}" if number >= 0.01 else f"{number:.1g}"


def difference(line: Line) -> str:
    """The range of a candidate's ratios; that no difference was seen, where rounds disagree about which is faster.

    Nothing of one round, which has no range. Of rounds that are all on one side of 1, n in number, chance alone would show
    2 / 2ⁿ: 1.6 % for seven, a quarter for three.
    """
    low, high = float(line["ratio_min"]), float(line["ratio_max"])
    if low == high == 1 or is_single(line):  # the first candidate of a row
        return ""
    words = f"{ratio(low)} – {ratio(high)}"
    return f"{words}: {NO_DIFFERENCE}" if low <= 1 <= high else words


def is_single(line: Line) -> bool:
    """Whether the row was measured once."""
    return int(line.get("rounds") or 0) == 1


def columns(lines: Sequence[Line]) -> list[str]:
    """Headings of the table: with instructions where the machine of a line counted them."""
    return [*COLUMNS, INSTRUCTIONS] if any(line.get("instructions") for line in lines) else COLUMNS


def cells(lines: Sequence[Line]) -> list[list[str]]:
    """A row of `columns` per line; a benchmark row is named once, before its first candidate."""
    with_instructions = INSTRUCTIONS in columns(lines)
    shown, before = [], None
    for line in lines:
        is_first, before = line["row"] != before, line["row"]
        times = "" if is_single(line) else f"{seconds(line['min_s'])} – {seconds(line['max_s'])}"
        shown.append(
            [
                str(line["row"]) if is_first else "",
                str(line["candidate"]),
                str(line.get("rounds", "")) if is_first else "",
                seconds(line["median_s"]),
                times,
                ratio(line["ratio"]),
                difference(line),
            ]
        )
        if with_instructions:
            counted = line.get("instructions")
            shown[-1].append(f"{float(counted) / 1e6:,.1f}" if counted else "")
    return shown


def markdown(lines: Sequence[Line], skipped: Mapping[str, str]) -> str:
    """The documentation's table, and what it is of.

    skipped: the beginning of a row's name → why this machine does not measure it; lines of an earlier run may have it.
    """
    rows = {str(line["row"]) for line in lines}
    missing = [why for name, why in skipped.items() if not any(row.startswith(name) for row in rows)]
    note = (
        f"Measured on {measured_on((line['machine'], line['row']) for line in lines)}. A ratio is a candidate's time over that "
        "of the row's first: the median over rounds in which every candidate runs once, and their range; one round has none. "
        f"*{NO_DIFFERENCE.capitalize()}*: rounds disagree about which of the two is faster. "
        f"Not measured: {'; '.join(missing) or 'nothing'}."
    )
    return "\n".join([table(columns(lines), cells(lines), left=2), "", note, ""])


def main() -> None:
    """Write the page's table from what was measured last."""
    from benchmarks.run import SKIPPED

    with RESULTS.open(newline="") as file:
        rewrite("benchmark", markdown(list(csv.DictReader(file)), SKIPPED))


if __name__ == "__main__":
    main()

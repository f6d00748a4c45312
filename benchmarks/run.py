"""`make bench`: tests first, then every row; the table on the terminal, in benchmarks/results.csv, and in the README.

python benchmarks/run.py [--quick] [--only WORD] [--no-tests]
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from actstore import terminal  # noqa: E402
from benchmarks import attribution, capture, clusters, contribution, graph_probes, graphs, packing, reading  # noqa: E402 - the checkout must be importable first
from benchmarks.marked import rewrite  # noqa: E402
from benchmarks.registry import Measurement, measure  # noqa: E402

ROWS = (
    *capture.ROWS,
    *packing.ROWS,
    *contribution.ROWS,
    *clusters.ROWS,
    *attribution.ROWS,
    *graphs.ROWS,
    *graph_probes.ROWS,
    *reading.ROWS,
)
SKIPPED = capture.SKIPPED
PACKAGES = ("actstore", "torch", "zarr", "numcodecs", "numba", "numpy")


def machine() -> str:
    """One line on what the figures were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    return f"{cpu}, {os.cpu_count()} processors, Python {platform.python_version()}, {versions}, commit {commit}"


def markdown(measurements: list[Measurement], where: str) -> str:
    """The README's table."""
    lines = ["| row | candidate | median | min – max | ratio |", "|---|---|---:|---:|---:|"]
    for measurement in measurements:
        lines += [
            f"| {line['row'] if i == 0 else ''} | {line['candidate']} | {_seconds(line['median_s'])} | "
            f"{_seconds(line['min_s'])} – {_seconds(line['max_s'])} | {_ratio(line['ratio'])} |"
            for i, line in enumerate(measurement.lines())
        ]
    note = (
        f"Measured on {where}. A ratio is a candidate's time over that of the row's first: the median over rounds in which "
        "every candidate runs once."
    )
    return "\n".join([*lines, "", note, ""])


def _seconds(value: str | float) -> str:
    seconds = float(value)
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _ratio(value: str | float) -> str:
    ratio = float(value)
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def main() -> None:
    """Test, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small inputs, three repeats")
    parser.add_argument("--only", help="only rows whose name contains this")
    parser.add_argument("--no-tests", action="store_true", help="measure without testing first")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if arguments.only is None or arguments.only in row.name]
    tests = sorted({test for row in rows for test in row.tests})
    if (
        not arguments.no_tests
        and subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests], cwd=HERE.parent, check=False
        ).returncode
    ):
        sys.exit("The tests fail; no figure is printed for an operation that is not right.")
    for skipped in SKIPPED:
        terminal.err.print(f"not measured: {skipped}")
    measurements = []
    for row in rows:
        terminal.err.print(f"measuring: {row.name}")
        measurements.append(measure(row, quick=arguments.quick))
    lines = [line for m in measurements for line in m.lines()]
    named = {m.row: next(m.lines())["candidate"] for m in measurements}
    columns = ["row", "candidate", ("median", "right"), ("min", "right"), ("max", "right"), ("ratio", "right")]
    shown = [
        (
            x["row"] if named[str(x["row"])] == x["candidate"] else "",
            x["candidate"],
            *(_seconds(x[k]) for k in ("median_s", "min_s", "max_s")),
            _ratio(x["ratio"]),
        )
        for x in lines
    ]
    where = machine()
    terminal.out.print(terminal.table(None, columns, shown))
    terminal.out.print(where)
    if arguments.quick or arguments.only:
        return
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], "machine"])
        writer.writeheader()
        writer.writerows(line | {"machine": where} for line in lines)
    rewrite("benchmark", markdown(measurements, where))


if __name__ == "__main__":
    main()

"""`make bench`: runs the tests, then measures every row; writes benchmarks/results/results.csv and the documentation's tables.

python benchmarks/run.py [--quick] [--only WORD [--update]] [--no-tests] [--record]

A part of the rows leaves the tables as they are, unless it is told to `--update` them: its lines then take the places of the
same rows, with this machine and commit, which the tables name.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("TQDM_DISABLE", "1")  # loading a model draws a bar

import torch  # noqa: E402

from actstore.display import terminal  # noqa: E402
from benchmarks import full_table, readme_rows, verdict  # noqa: E402
from benchmarks.instructions import has_counter  # noqa: E402
from benchmarks.marked import commit, rewrite  # noqa: E402
from benchmarks.readme_rows import RESULTS  # noqa: E402
from benchmarks.registry import Measurement, choose, measure  # noqa: E402
from benchmarks.rows import (  # noqa: E402 - the checkout must be importable first
    attribution,
    bulk_scan,
    capture,
    checksums,
    clusters,
    contribution,
    coverage,
    edit,
    graph_probes,
    graphs,
    growth,
    loader,
    multimodal,
    packing,
    reading,
    sizes,
    workers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.readme_rows import Line

ROWS = (
    *capture.ROWS,
    *bulk_scan.ROWS,
    *packing.ROWS,
    *contribution.ROWS,
    *coverage.ROWS,
    *clusters.ROWS,
    *attribution.ROWS,
    *edit.ROWS,
    *graphs.ROWS,
    *multimodal.ROWS,
    *graph_probes.ROWS,
    *reading.ROWS,
    *loader.ROWS,
    *checksums.ROWS,
    *growth.ROWS,
    *workers.ROWS,
)
SKIPPED = {
    **capture.SKIPPED,
    **loader.SKIPPED,
    **workers.SKIPPED,
    **({} if torch.cuda.is_available() else {"on a GPU": "on a GPU: this machine has none"}),
    **({} if has_counter() else {"instructions": "instructions executed: `perf stat` counts none on this machine"}),
}
"""Beginning of a row's name → what the machine lacks for it."""
PACKAGES = ("actstore", "torch", "zarr", "numcodecs", "numba", "numpy")
QUICK_TESTS = (
    "tests/kernels/test_pack.py",
    "tests/kernels/test_top_k.py",
    "tests/kernels/test_contribution.py",
    "tests/kernels/test_cluster_inverse.py",
    "tests/kernels/test_coactivation.py",
    "tests/store/test_reader.py",
)
"""Tests of every quick run, beside those of kernels that its rows name: all of them take minutes, and `make test` runs them."""
KERNEL_TESTS = "tests/kernels/"


def processor() -> str:
    """The processor's name, where the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def machine() -> str:
    """One line that describes the machine, the packages and the commit."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    return (
        f"{processor()}, {os.cpu_count()} processors, Python {platform.python_version()}, {versions}, commit {commit()}"
    )


def main() -> None:
    """Test, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small inputs, at most three repeats, some of the tests")
    parser.add_argument("--only", help="only rows whose name contains this; `sizes` for the table of store sizes")
    parser.add_argument("--no-tests", action="store_true", help="measure without running the tests first")
    parser.add_argument(
        "--record", action="store_true", help="with --quick: keep the figures that later verdicts compare with"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="with --only: put these rows into the results and tables, in place of the same",
    )
    arguments = parser.parse_args()
    if arguments.record and (arguments.only or not arguments.quick):
        parser.error("--record keeps the figures of a whole quick run: use it with --quick and without --only.")
    if arguments.update and (arguments.quick or not arguments.only):
        parser.error("--update writes some rows of a whole run: use it with --only and without --quick.")
    rows = choose(ROWS, quick=arguments.quick, only=arguments.only)
    with_sizes = arguments.only in (None, "sizes")
    if not rows and not with_sizes:
        sys.exit(f"No row's name contains {arguments.only!r}. Rows: {'; '.join(row.name for row in ROWS)}; sizes.")
    if not arguments.no_tests:
        tests = [test for row in rows for test in row.tests]
        if with_sizes and not arguments.quick:  # minutes
            tests += sizes.TESTS
        run_tests(tests, quick=arguments.quick)
    for skipped in SKIPPED.values():
        terminal.err.print(f"not measured: {skipped}")
    where = machine()
    measurements = []
    for row in rows:
        began = time.monotonic()
        terminal.err.print(f"measuring: {row.name}", end="", soft_wrap=True)
        measurements.append(measure(row, quick=arguments.quick))
        terminal.err.print(f", {time.monotonic() - began:.0f} s")
    if measurements:
        show(measurements)
    sizes_measured = sizes.measure_sizes(quick=arguments.quick) if with_sizes else None
    if sizes_measured is not None:
        show_sizes(sizes_measured)
    terminal.out.print(where)
    if arguments.quick and measurements:
        kind = verdict.this_kind(processor())
        for line in verdict.verdict(measurements, kind):
            terminal.out.print(line, soft_wrap=True)
        if arguments.record:
            verdict.record(measurements, kind, where)
    if arguments.quick or (arguments.only and not arguments.update):
        return
    if measurements:
        lines = described_lines(measurements, where)
        write_tables(merged(read_csv(), lines) if arguments.update else lines)
    if sizes_measured is not None:
        rewrite("sizes", sizes.markdown(sizes_measured))


def test_files(tests: list[str], *, quick: bool) -> list[str]:
    """What pytest is given: the `tests` of what is measured; in a quick run those of kernels alone, and `QUICK_TESTS`."""
    return sorted({*QUICK_TESTS, *(test for test in tests if test.startswith(KERNEL_TESTS))} if quick else set(tests))


def run_tests(tests: list[str], *, quick: bool) -> None:
    """Run the tests; exit if one fails."""
    files = test_files(tests, quick=quick)
    parallel = ("--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *parallel, *files]
    if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
        sys.exit("The tests failed, so nothing was measured. Fix them first, or measure with --no-tests.")


def show(measurements: list[Measurement]) -> None:
    """The table on the terminal."""
    lines = [line for measurement in measurements for line in measurement.lines()]
    left, right = full_table.columns(lines)[:2], full_table.columns(lines)[2:]
    columns = [*left, *((column, "right") for column in right)]
    terminal.out.print(terminal.table(None, columns, full_table.cells(lines)))


def show_sizes(measured: list[sizes.Size]) -> None:
    """The table of sizes on the terminal."""
    columns = [*sizes.COLUMNS[:2], *((column, "right") for column in sizes.COLUMNS[2:])]
    terminal.out.print(terminal.table("Store size", columns, [size.cells() for size in measured]))


def described_lines(measurements: list[Measurement], where: str) -> list[Line]:
    """Every line with the machine and the commit."""
    return [line | {"machine": where} for measurement in measurements for line in measurement.lines()]


def read_csv() -> list[Line]:
    """The lines that were measured last."""
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def merged(before: Sequence[Line], measured: Sequence[Line]) -> list[Line]:
    """The lines of `before`, where rows that were measured again have their new lines, and rows that are new are the last."""
    again: dict[str | float, list[Line]] = {}
    for line in measured:
        again.setdefault(line["row"], []).append(line)
    lines: list[Line] = []
    for row in dict.fromkeys(line["row"] for line in (*before, *measured)):
        lines += again.get(row) or [line for line in before if line["row"] == row]
    return lines


def write_tables(lines: Sequence[Line]) -> None:
    """Write the lines, and what the pages show of them."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
    rewrite("benchmark", full_table.markdown(lines, SKIPPED))
    rewrite("benchmark-rows", readme_rows.markdown(lines))


if __name__ == "__main__":
    main()

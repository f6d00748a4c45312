"""One worker with one thread against two workers of Ray on this machine: a capture, and its graphs.

python benchmarks/rows/workers.py [--quick] [--repeats 3] [--write]

What two workers take before they begin, the start of Ray and of the libraries, is a row of its own, and no part of the others.
Run as a script, it measures these rows alone, and writes their table into docs/scale.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import numba

from actstore.engine.capture.api import capture
from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.build import BuildOptions, build_graphs
from actstore.engine.workers.choose import executor_for
from actstore.kernels.torch_threads import torch_threads
from actstore.store.storage.folder import Folder
from benchmarks.marked import commit, rewrite, table
from benchmarks.registry import Candidate, Measurement, Row, measure
from benchmarks.rows.graphs import MODEL, WINDOW, standard_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.reader import Capture

ONE, TWO = "one worker, one thread", "two workers of Ray, one thread each"
N_TOKENS, QUICK_TOKENS = 1_000_000, 100_000
_START = """
from actstore.engine.workers.on_ray import OnRay
from benchmarks.rows.workers import imported
assert len(list(OnRay(None, 2).map(imported, range(2)))) == 2
"""


def imported(number: int) -> int:
    """What a worker needs before it begins: the libraries, which finding this function has imported."""
    return number


@contextmanager
def one_thread() -> Iterator[None]:
    """While open, this process computes with one thread."""
    before = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.config.NUMBA_NUM_THREADS = 1  # type: ignore[attr-defined]
    try:
        with torch_threads(1):
            yield
    finally:
        numba.config.NUMBA_NUM_THREADS = before  # type: ignore[attr-defined]


@contextmanager
def warm_ray() -> Iterator[None]:
    """Ray, with two workers that have imported the libraries; disconnected afterwards."""
    import ray

    assert list(executor_for("ray", 2).map(imported, range(2))) == [0, 1]
    yield
    ray.shutdown()


@contextmanager
def corpus_and_ray(quick: bool) -> Iterator[tuple[Path, int]]:
    """A folder with a corpus in `corpus`, and the number of tokens to take of it; Ray is warm meanwhile."""
    n_tokens = QUICK_TOKENS if quick else N_TOKENS
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name, warm_ray():
        standard_library(Path(name) / "corpus", 5 * n_tokens)
        yield Path(name), n_tokens


@contextmanager
def prepare_capture(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over a million tokens of the standard library, planned, filled and finished."""
    numbers = itertools.count()
    with corpus_and_ray(quick) as (path, n_tokens):

        def fill(**how: object) -> Capture:
            options = RunOptions(threads=1, **how)  # type: ignore[arg-type]
            store = path / f"store-{next(numbers)}"
            return capture(
                str(MODEL), path / "corpus", store, context=WINDOW, max_tokens=n_tokens, precision="int8", options=options
            )  # fmt: skip

        def fill_alone() -> None:
            with one_thread():
                fill()

        yield {ONE: Candidate(fill_alone), TWO: Candidate(lambda: fill(on="ray", workers=2))}


@contextmanager
def prepare_graphs(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Graphs of the neurons of the demo model, out of a capture of such a corpus."""
    numbers = itertools.count()
    with corpus_and_ray(quick) as (path, n_tokens):
        captured = capture(
            str(MODEL), path / "corpus", path / "store", context=WINDOW, max_tokens=n_tokens, precision="half"
        )
        folder = Folder(captured.folder.location, read_only=False)
        one, two = executor_for(), executor_for("ray", 2, 0.0)

        def build_alone() -> None:
            with one_thread():
                build_graphs(
                    captured, folder, name=f"one-{next(numbers)}", options=BuildOptions(threads=1), executor=one
                )

        def build_by_two() -> None:
            build_graphs(captured, folder, name=f"two-{next(numbers)}", options=BuildOptions(threads=1), executor=two)

        yield {ONE: Candidate(build_alone), TWO: Candidate(build_by_two)}


@contextmanager
def prepare_start(quick: bool) -> Iterator[dict[str, Candidate]]:
    """A new process that starts Ray and two workers."""
    paths = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", _START]
    yield {
        "Ray and two workers with the libraries": Candidate(
            lambda: subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths})
        )
    }


TESTS = (
    "tests/engine/workers/test_on_ray.py",
    "tests/engine/capture/test_workers.py",
    "tests/engine/graphs/test_build.py",
)
ROWS: tuple[Row, ...] = ()
SKIPPED = {} if importlib.util.find_spec("ray") else {"workers": "workers: Ray is not installed"}
if importlib.util.find_spec("ray"):
    ROWS = (
        Row("workers: start of Ray", prepare_start, TESTS, repeats=3, warm_up=False, quick=False),
        Row(
            "workers: capture of 1,000,000 tokens, int8", prepare_capture, TESTS, repeats=3, warm_up=False, quick=False
        ),
        Row("workers: graphs over 1,000,000 tokens", prepare_graphs, TESTS, repeats=3, warm_up=False, quick=False),
    )


def markdown(measurements: list[Measurement], about: str) -> str:
    """The documentation's table."""
    rows = []
    for measurement in measurements:
        for number, line in enumerate(measurement.lines()):
            speed, least, most = (1 / float(line[key]) for key in ("ratio", "ratio_max", "ratio_min"))
            name = measurement.row.removeprefix("workers: ") if number == 0 else ""
            rows.append([name, str(line["candidate"]), f"{float(line['median_s']):.1f} s"])
            rows[-1].append(f"{speed:.2f} × ({least:.2f} to {most:.2f})" if number else "")
    return f"{table(['', '', 'median', 'speed-up'], rows, left=2)}\n\n{about}"


def main() -> None:
    """Measure, show, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens; nothing is written")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table where the documentation marks it")
    asked = parser.parse_args()
    measured = []
    for row in ROWS:
        measured.append(measure(dataclasses.replace(row, repeats=asked.repeats), quick=asked.quick))
        print(*measured[-1].lines(), sep="\n", flush=True)
    about = (
        f"Commit `{commit()}`, {asked.repeats} rounds on {os.cpu_count()} processors, in which every candidate runs once; the "
        "median of the rounds' ratios, and in brackets their extremes."
    )
    print(markdown(measured, about))
    if asked.write and not asked.quick:
        rewrite("workers", markdown(measured, about))


if __name__ == "__main__":
    main()

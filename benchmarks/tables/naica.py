"""The evaluation of query-relevant neurons on the demo fact model: benchmarks/results/naica.csv and the documentation's tables.

python benchmarks/tables/naica.py [--seeds 5] [--store STORE]
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from actstore.commands.naica.evaluate import NOTE, tables  # noqa: E402
from actstore.display import terminal  # noqa: E402 - the checkout must be importable first
from actstore.engine.attribution.attribute import attribute  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.engine.naica.evaluation import EvaluationSettings, evaluate_naica  # noqa: E402
from actstore.store.capture.questions.attributions import open_attributions  # noqa: E402
from actstore.store.reader import Store  # noqa: E402
from benchmarks.marked import rewrite  # noqa: E402

MODEL = ROOT / "demo" / "models" / "fact-llama"


def markdown(title: str, columns: list[str | tuple[str, str]], rows: list[tuple[str, ...]]) -> str:
    """One table of the documentation under its title."""
    names = [column if isinstance(column, str) else column[0] for column in columns]
    right = ["---" if isinstance(column, str) else "---:" for column in columns]
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, right, *rows)]
    return "\n".join([f"{title}:", "", *lines, ""])


def main() -> None:
    """Attribute, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument(
        "--store",
        help="a store that `actstore attribute` wrote for the fact model and its questions; default: a new one",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = arguments.store or str(Path(folder) / "facts.actstore")
        if arguments.store is None:
            attribute(str(MODEL), str(MODEL / "questions.json"), store)
        attributed = time.perf_counter()
        attributions = open_attributions(Store(store))
        evaluation = evaluate_naica(load_model(str(MODEL)), attributions, EvaluationSettings(seeds=arguments.seeds))
        ended = time.perf_counter()
    terminal.err.print(f"attributed in {attributed - began:.0f} s, evaluated in {ended - attributed:.0f} s")
    for title, columns, rows in tables(evaluation):
        terminal.out.print(terminal.table(title, columns, rows))
    with (ROOT / "benchmarks" / "results" / "naica.csv").open("w", newline="") as file:
        rows = [measurement.as_row() for measurement in evaluation.measurements]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (ROOT / "benchmarks" / "results" / "naica_prediction.csv").open("w", newline="") as file:
        rows = [asdict(accuracy) for accuracy in evaluation.accuracies]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    text = "\n".join([markdown(*parts) for parts in tables(evaluation)] + [NOTE, ""])
    rewrite("naica", text)


if __name__ == "__main__":
    main()

"""The evaluation of query-relevant neurons on the demo fact model: benchmarks/results/naica.csv and the documentation's tables.

python benchmarks/tables/naica.py [--seeds 5] [--max-queries N] [--store STORE]

Each seed draws the prompts and the halves of queries that are left out, the unrelated queries and the random neurons.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from actstore.engine.naica.evaluation import NaicaEvaluation

MODEL = ROOT / "demo" / "models" / "fact-llama"


def markdown(title: str, columns: list[str | tuple[str, str]], rows: list[tuple[str, ...]]) -> str:
    """One table of the documentation under its title."""
    names = [column if isinstance(column, str) else column[0] for column in columns]
    right = ["---" if isinstance(column, str) else "---:" for column in columns]
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, right, *rows)]
    return "\n".join([f"{title}:", "", *lines, ""])


TESTED: Final = {
    "prompt": "On a prompt of each query that was left out",
    "label": "On queries that were left out, with the neurons of their label",
    "query": "On the prompts that neurons were found with, as in the paper",
}
"""Protocol → how a sentence about it begins."""


def claims(evaluation: NaicaEvaluation, n_seeds: int) -> str:
    """What the tables say, one sentence per protocol, held-out protocols first; random and activation baselines beside."""
    rows = {(row["protocol"], row["method"], row["operation"]): row for row in evaluation.summary()}
    lines = []
    for protocol, beginning in TESTED.items():
        both = [
            {method: rows[protocol, method, operation] for method in ("naica", "random", "activation")}
            for operation in ("boost", "suppress")
        ]
        shown = [", ".join(f"{_spread(one[method])}" for one in both) for method in ("naica", "random", "activation")]
        apart = [_above_chance(one["naica"], one["random"]) for one in both]
        verdict = (
            "above random neurons in both" if all(apart) else "above random neurons in one of the two" if any(apart)
            else "no more than random neurons do: at chance"
        )  # fmt: skip
        lines.append(
            f"- {beginning} ({both[0]['naica']['queries']:.0f} queries, {n_seeds} seeds): boosting and suppressing QRNCA's "
            f"neurons "
            f"changes log odds {shown[0]} times as much as those of unrelated queries (random neurons {shown[1]}, activation "
            f"{shown[2]}): {verdict}."
        )
    return "\n".join([*lines, ""])


def _spread(row: dict[str, Any]) -> str:
    return f"{row['log_odds_ratio']:.1f} ± {row['log_odds_ratio_sd']:.1f}"


def _above_chance(row: dict[str, Any], chance: dict[str, Any]) -> bool:
    """Whether a ratio is larger than that of random neurons by more than twice the spread of their difference over seeds."""
    spread = (row["log_odds_ratio_sd"] ** 2 + chance["log_odds_ratio_sd"] ** 2) ** 0.5
    return bool(row["log_odds_ratio"] - chance["log_odds_ratio"] > 2 * spread)


def main() -> None:
    """Attribute, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--max-queries", type=int, help="maximum number of queries to test on; default: all")
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
        settings = EvaluationSettings(seeds=arguments.seeds, max_queries=arguments.max_queries)
        evaluation = evaluate_naica(load_model(str(MODEL)), attributions, settings)
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
    text = "\n".join(
        [claims(evaluation, arguments.seeds), *(markdown(*parts) for parts in tables(evaluation)), NOTE, ""]
    )
    rewrite("naica", text)


if __name__ == "__main__":
    main()

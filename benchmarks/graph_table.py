"""How well neuron graphs predict firing, on the demo model over the standard library: the documentation's tables.

python benchmarks/graph_table.py [--tokens 250000] [--sampled 400000] [--published 200] [--write]

Every figure comes from the commands a user would type, run here with --json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from actstore.display import terminal  # noqa: E402 - the checkout must be importable first
from benchmarks.graphs import MODEL, standard_library  # noqa: E402
from benchmarks.marked import rewrite, table  # noqa: E402

GAINS: Final = "-1,0.25,1,2,4,8"
SAMPLED: Final = "probes-sampled"
LOOKUPS: Final = (
    "token lookup, exemplars, any",
    "token lookup, exemplars, most",
    "token lookup, corpus, any",
    "token lookup, corpus, most",
    "bigram lookup, exemplars, any",
    "bigram lookup, exemplars, most",
    "bigram lookup, corpus, any",
    "bigram lookup, corpus, most",
)


def actstore(*arguments: str) -> dict[str, Any]:
    """What an `actstore` command prints with --json."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "actstore.cli", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"actstore {' '.join(arguments)}: {done.stderr}")
    terminal.err.print(f"{time.monotonic() - began:6.0f} s  actstore {' '.join(arguments)}", markup=False)
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def method_row(name: str, method: dict[str, Any]) -> list[str]:
    """Precision, recall, F1 and correlation on both kinds of text, and F1 of every layer."""
    cells = [name, f"{method['nodes']['median']:g}" if "nodes" in method else "", f"{method.get('failed', '')}"]
    for kind in ("exemplars", "ordinary"):
        precision, recall, f1, correlation = (
            number(method[kind][measure]) for measure in ("precision", "recall", "f1", "correlation")
        )
        cells += [f1, f"{precision} / {recall}", correlation]
        cells.append(" ".join(number(row["f1"]).lstrip("0") for row in method[kind]["by_layer"]))
    return cells


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def methods_table(corpus: dict[str, Any], sampled: dict[str, Any], asked: dict[str, Any] | None) -> str:
    """A row a method."""
    header = ["method", "nodes, median", "failed"]
    for kind in ("exemplars", "ordinary"):
        header += [f"{kind}: F1", "precision / recall", "correlation", "F1 by layer"]
    n_sampled = sampled["sampled_tokens"]
    rows = [
        method_row("graphs, corpus", corpus),
        method_row(f"graphs, corpus and {n_sampled:,} tokens the model wrote", sampled),
        *(method_row(name, corpus["baselines"][name]) for name in LOOKUPS),
    ]
    if asked is not None:
        of = f"{asked['neurons']} of the neurons"
        rows.append(method_row(f"published procedure, {of}", asked["baselines"]["published"]))
        rows.append(method_row(f"graphs, corpus, the same {of}", asked))
    return table(header, rows)


def curve_table(corpus: dict[str, Any], sampled: dict[str, Any]) -> str:
    """F1 against the number of nodes."""
    header = ["gain", "corpus: nodes, median", "F1 exemplars", "F1 ordinary", "with the model's text: nodes, median"]
    rows = []
    for plain, rich in zip(corpus["curve"], sampled["curve"], strict=True):
        cells = [f"{plain['gain']:g}" if plain["gain"] >= 0 else "unpruned"]
        for method in (plain, rich):
            cells += [f"{method['nodes']['median']:g}", *(number(method[k]["f1"]) for k in ("exemplars", "ordinary"))]
        rows.append(cells)
    return table([*header, "F1 exemplars", "F1 ordinary"], rows)


def spread(info: dict[str, Any], number: int) -> list[str]:
    """So many neurons, evenly spread over the layers and within each."""
    width, n_layers = info["neurons"] // info["layers"], info["layers"]
    per_layer = -(-number // n_layers)
    return [f"L{layer}.N{i * width // per_layer}" for layer in range(n_layers) for i in range(per_layer)][:number]


def measure(folder: Path, arguments: argparse.Namespace) -> str:
    """Run everything; the text of the region."""
    corpus, store = folder / "corpus", str(folder / "store")
    standard_library(corpus, 8 * arguments.tokens)
    limits = ("--max-tokens", str(arguments.tokens))
    actstore("capture", str(MODEL), str(corpus), store, "--precision", "int8", "--quiet", *limits)
    chosen = ",".join(spread(actstore("info", store), arguments.published))
    # Halves of the exemplars that the evaluation tests with are not asked about: both draw them with seed 0.
    if chosen:
        actstore("graphs", "probe", store, "--model", str(MODEL), "--neurons", chosen, "--published", "published", "--quiet")
    probed = actstore("graphs", "probe", store, "--model", str(MODEL), "--sample", str(arguments.sampled), "--quiet")
    evaluate = ("graphs", "evaluate", store, "--capture", "corpus", "--seed", "0", "--quiet")
    asked = actstore(*evaluate, "--neurons", chosen, "--graphs", "published") if chosen else None
    plain = actstore(*evaluate, "--curve", GAINS)
    rich = actstore(*evaluate, "--curve", GAINS, "--also", SAMPLED)
    rich["sampled_tokens"] = sum(one["tokens"] for one in probed["captures"])
    undefined = [plain[kind]["undefined"] for kind in ("exemplars", "ordinary")]
    note = (
        f"All {plain['neurons']:,} neurons of `{MODEL.name}` over {arguments.tokens:,} tokens of the standard library of "
        f"Python {platform.python_version()}. Firing is half of a neuron's maximum; of its 20 windows with the largest "
        f"activations half are evidence and half test, as do {plain['ordinary_windows']} ordinary windows; no test window nor "
        f"a window of the same tokens is evidence. Means over neurons; {undefined[0]} and {undefined[1]} neurons that neither "
        "fire nor are said to are left out of exemplars and ordinary text. A neuron without a graph counts 0."
    )
    return "\n".join([methods_table(plain, rich, asked), "", curve_table(plain, rich), "", note])


def main() -> None:
    """Measure, print, and with --write put the tables where the documentation marks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=250_000, help="of the corpus")
    parser.add_argument("--sampled", type=int, default=400_000, help="tokens that the model writes as further evidence")
    parser.add_argument(
        "--published", type=int, default=200, help="neurons for the published procedure; 0 leaves it out"
    )
    parser.add_argument("--write", action="store_true", help="put the tables between the marks in the documentation")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="actstore-graphs-") as folder:
        text = measure(Path(folder), arguments)
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        rewrite("graphs", text)


if __name__ == "__main__":
    main()

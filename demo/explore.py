"""`make demo`: captures the embedded model over the running Python's standard library and shows what its neurons do.

It prints every `actstore` command before it runs it, so that each can be repeated by hand. Results stay in build/demo.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import actstore
from actstore.display import terminal
from actstore.display.reports import print_neuron
from actstore.engine.inputs.embedded import copy_standard_library

if TYPE_CHECKING:
    from actstore.store.reader import Capture

HERE = Path(__file__).parent
BUILD = Path("build") / "demo"


def run(*arguments: str) -> None:
    """Print an `actstore` command and run it; exit if it fails."""
    terminal.out.print(f"\n$ actstore {shlex.join(arguments)}", style="bold green", soft_wrap=True, markup=False)
    code = subprocess.run([sys.executable, "-m", "actstore.cli", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def selective_neurons(capture: Capture, per_layer: int) -> list[str]:
    """The neurons of each layer whose exemplars stand out most: mean exemplar less mean, in standard deviations."""
    names = []
    for (_, layer), s in sorted(capture.statistics().sites.items()):
        deviation = np.sqrt(s.m2 / np.maximum(s.count, 1))
        top = np.where(np.isfinite(s.exemplar_values), s.exemplar_values, 0).mean(axis=1)
        score = np.where(deviation > 0, (top - s.mean) / np.maximum(deviation, 1e-30), 0)
        names += [f"L{layer}.N{i}" for i in np.argsort(-score, kind="stable")[:per_layer]]
    return names


def main() -> None:
    """Capture, then show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(HERE / "models" / "stdlib-llama"), help="model: Hub id or folder")
    parser.add_argument("--corpus", help="text to capture [default: the standard library's source]")
    parser.add_argument("--tokens", type=int, default=250_000, help="maximum number of tokens to capture")
    arguments = parser.parse_args()
    began = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    corpus = Path(arguments.corpus) if arguments.corpus else BUILD / "stdlib"
    if not arguments.corpus:
        copy_standard_library(corpus)
    # A second run with the same inputs continues or reuses the store of the first; other inputs get their own store.
    key = hashlib.sha256(f"{arguments.model} {corpus} {arguments.tokens}".encode()).hexdigest()[:6]
    store = BUILD / f"{Path(arguments.model).name}-{key}.actstore"
    run("capture", arguments.model, str(corpus), str(store), "--resume",
        "--precision", "int8", "--max-tokens", str(arguments.tokens))  # fmt: skip
    opened = actstore.open(store)
    terminal.out.print("\nThe most selective neurons of each layer, where they are highest:", style="bold")
    for neuron in selective_neurons(opened.capture(), per_layer=2):
        reader = opened.neuron(neuron)
        terminal.out.print()
        print_neuron(neuron, reader.statistics(), reader.exemplars(4, context=12).to_pylist())
    run("sql", str(store), "select layer, count(*) as neurons, avg(positive) as positive, max(max) as highest "
        "from neurons group by layer order by layer")  # fmt: skip
    run("graphs", "build", str(store), "--resume")
    run("graphs", "show", str(store), selective_neurons(opened.capture(), per_layer=1)[-1], "--paths", "12")
    plan = opened.capture().record.plan
    terminal.out.print(
        f"\n{plan.n_tokens:,} tokens of {plan.n_documents} documents captured and shown in {time.monotonic() - began:.0f} s. "
        "Explore further:",
        style="bold",
    )
    command = os.path.relpath(Path(sys.executable).with_name("actstore"))
    terminal.out.print(f"  {command} serve {store}  # in a browser", soft_wrap=True)
    for rest in (
        f"top {store} L2.N17",
        f"graphs search {store} --activating return",
        f"contributions {store} --target ' return'",
        f"verify {store} --refill 1",
    ):
        terminal.out.print(f"  {command} {rest}", soft_wrap=True)


if __name__ == "__main__":
    main()

"""Edits of the demo captioner: benchmarks/results/edits.csv and the table between <!-- edits --> and <!-- /edits -->.

python benchmarks/tables/edit.py [--seeds 3] [--pictures 500] [--exchange red:green --exchange circle:square]

The captioner answers about drawn pictures; a word of its answers is exchanged by every form, beside two baselines. Reliability
is measured on the pictures that the edit was made from, image-generality on others, text-generality on the first with their
prompts reworded, text-locality on questions without a picture whose answers are other words. Each seed draws its own pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "models" / "shapes-llava"
TRAINING = ROOT / "demo" / "training"
sys.path[:0] = [str(ROOT), str(TRAINING)]

from picture_words import FACTS, PHRASINGS  # noqa: E402

import actstore  # noqa: E402
from actstore.display import terminal  # noqa: E402
from actstore.engine.edit.baselines import BASELINES  # noqa: E402
from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit  # noqa: E402
from actstore.engine.edit.readings import Reader  # noqa: E402
from actstore.engine.edit.requests.request import Case  # noqa: E402
from actstore.engine.edit.rewrite import rewrite  # noqa: E402
from actstore.engine.edit.settings import FineSettings, LeastNormSettings, RewriteSettings  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.store.reader import Store  # noqa: E402
from benchmarks.marked import rewrite as rewrite_page  # noqa: E402 - the folders must be importable first
from benchmarks.marked import spread, table  # noqa: E402

FORMS: dict[str, dict[str, Any]] = {
    "least-norm (store only)": {"form": "least-norm"},
    "least-norm, 10 neurons": {"form": "least-norm", "least_norm": LeastNormSettings(k=10)},
    "FiNE": {"form": "fine", "fine": FineSettings(rate=5e-3), "examples": 32},
    "knowledge neurons, as published": {"form": "knowledge"},
    "knowledge neurons, corrected": {"form": "knowledge-corrected"},
}
MEASURES = {
    "reliability": ("reliability", "word"),
    "text-generality": ("text-generality", "word"),
    "image-generality": ("image-generality", "word"),
    "text-locality, top 1": ("text-locality", "top1"),
    "image-locality, top 1": ("image-locality", "top1"),
    "image-locality, ordered top 10": ("image-locality", "top10"),
    "answers kept": ("image-locality", "exact"),
}


def draw(folder: Path, number: int, seed: int) -> None:
    """Draw the pictures of one seed, with their prompts, into `folder`."""
    command = [sys.executable, str(TRAINING / "pictures.py"), str(folder), "--number", str(number), "--seed", str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def reword(folder: Path) -> Path:
    """The same pictures, each asked about in the next wording that leads to the same phrasing."""
    rewordings = {prompt: group[(i + 1) % len(group)] for group in PHRASINGS for i, prompt in enumerate(group)}
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    path = folder / "reworded.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": rewordings[row["prompt"]]}) + "\n" for row in rows))
    return path


def make_store(folder: Path, number: int, seed: int) -> Store:
    """A store of three captures: the pictures to edit from, other pictures, and the first pictures with reworded prompts."""
    draw(folder / "own", number, 2 * seed)
    draw(folder / "other", number // 2, 2 * seed + 1)
    captures = {"own": "own/images.jsonl", "other": "other/images.jsonl", "reworded": reword(folder / "own")}
    for name, path in captures.items():
        sites = ("mlp.post", "resid.post")
        actstore.capture(str(MODEL), folder / path, folder / "store", name=name, sites=sites, generate=True)
    return Store(folder / "store")


def unrelated_facts(word: str) -> tuple[Case, ...]:
    """Questions without a picture whose answers are another word: what the model says to them should stay."""
    return tuple(
        Case(question, "text-locality", None, None, f"fact: {question}")
        for question, answer in FACTS.items()
        if answer != word
    )


def measure(store: Store, reader: Reader, words: tuple[str, str], seed: int) -> list[dict[str, Any]]:
    """One row per form and method: the means of one seed."""
    rows = []
    for name, options in FORMS.items():
        settings = RewriteSettings(*words, seed=seed, **options)
        began = time.perf_counter()
        edit = rewrite(store.capture("own"), "edit", settings, None if options["form"] == "least-norm" else reader)
        seconds = time.perf_counter() - began
        captures = (("own", None), ("other", None), ("reworded", "text-generality"))
        baselines = tuple(BASELINES) if name in ("least-norm (store only)", "FiNE") else ()
        evaluation = evaluate_edit(
            reader, store, edit, EvaluationOptions(captures, unrelated_facts(words[0]), baselines=baselines, seeds=1)
        )
        for method, (summary,) in evaluation.methods.items():
            row: dict[str, Any] = {"from": words[0], "to": words[1], "seed": seed, "form": name, "method": method}
            row |= {"neurons": edit.record.n_neurons, "seconds": seconds if method == "edit" else float("nan")}
            row |= {
                title: summary["by_kind"].get(kind, {}).get(of, float("nan")) for title, (kind, of) in MEASURES.items()
            }
            targets = (evaluation.predicted or {}).get("targets", {}) if method == "edit" else {}
            row |= {key: targets.get(key, float("nan")) for key in ("predicted", "measured", "correlation")}
            rows.append(row)
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The table: one line per exchange, form and method."""
    titles = {"edit": "", "fine-tune": "fine-tuning of its rows", "random": "random neurons"}
    lines = []
    for key in dict.fromkeys((r["from"], r["to"], r["form"], r["method"]) for r in rows):
        group = [r for r in rows if (r["from"], r["to"], r["form"], r["method"]) == key]
        first = key[3] == "edit"
        lines.append(
            [
                f"{key[0]} → {key[1]}",
                f"{key[2]}" if first else f"– {titles[key[3]]}",
                spread([r["neurons"] for r in group], "{:.0f}"),
                *(spread([100 * r[title] for r in group]) for title in MEASURES),
                spread([r["predicted"] for r in group], "{:.2f}"),
                spread([r["measured"] for r in group], "{:.2f}"),
            ]
        )
    header = ["word", "form", "neurons", *(f"{title} %" for title in MEASURES), "Δ logit predicted", "Δ logit measured"]
    return table(header, lines, left=2)


def main() -> None:
    """Draw, capture, edit, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--pictures", type=int, default=500, help="number of pictures per seed")
    parser.add_argument("--exchange", action="append", help="old and new word, such as red:green; may be repeated")
    arguments = parser.parse_args()
    exchanges = [tuple(text.split(":")) for text in arguments.exchange or ("red:green", "circle:square")]
    reader = Reader.load(load_model(str(MODEL)), str(MODEL))
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder), arguments.pictures, seed)
            for old, new in exchanges:
                rows += measure(store, reader, (old, new), seed)
                terminal.err.print(f"seed {seed}: {old} → {new}")
    with (ROOT / "benchmarks" / "results" / "edits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    text = page(rows)
    terminal.out.print(text, markup=False, soft_wrap=True)
    terminal.err.print(f"written into {rewrite_page('edits', text)}")


if __name__ == "__main__":
    main()

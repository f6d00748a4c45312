"""Edits of facts by prompts: benchmarks/results/prompt_edits.csv and the table between <!-- prompt-edits --> and its end mark.

python benchmarks/tables/prompt_edits.py [--seeds 3] [--first-seed 0] [--facts 10] [--write]

With --write, the rows of a fact are written as soon as it is measured, and facts that the results hold already are not measured
again: a run that was stopped goes on. Remove benchmarks/results/prompt_edits.csv to measure anew.

Each seed draws facts that the fact model knows (it says the answer to all six wordings that it was trained with), a target for
each, and questions about other facts. An edit is made from those six wordings. Generality is measured on the wordings that the
model was not trained with and the edit has not seen, in two templates; locality on questions about other facts, in such
wordings too. Only tokens of answers count. The targets of every third fact are several tokens: two other answers, joined by
"and".
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "models" / "fact-llama"
TRAINING = ROOT / "demo" / "training"
sys.path[:0] = [str(ROOT), str(TRAINING)]

from fact_questions import OPEN_TEMPLATES, Relation, fill, read_relations  # noqa: E402

import actstore  # noqa: E402
from actstore.display import terminal  # noqa: E402
from actstore.engine.edit.cases import tasks_of_cases  # noqa: E402
from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit, own_tests  # noqa: E402
from actstore.engine.edit.readings import Reader  # noqa: E402
from actstore.engine.edit.requests.request import Case, Request  # noqa: E402
from actstore.engine.edit.rewrite import rewrite  # noqa: E402
from actstore.engine.edit.scores import snapshots  # noqa: E402
from actstore.engine.edit.settings import FineSettings, RewriteSettings  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.store.reader import Store  # noqa: E402
from benchmarks.marked import rewrite as rewrite_page  # noqa: E402 - the folders must be importable first
from benchmarks.marked import spread, table  # noqa: E402

if TYPE_CHECKING:
    from actstore.store.edits import Edit

Fact = tuple[Relation, int]
FORMS: dict[str, dict[str, Any]] = {
    "least-norm": {"form": "least-norm"},
    "FiNE": {"form": "fine", "fine": FineSettings(rate=5e-3)},
    "knowledge neurons, as published": {"form": "knowledge"},
    "knowledge neurons, corrected": {"form": "knowledge-corrected"},
}
MEASURES = ("reliability", "generality", "locality")
RESULTS = ROOT / "benchmarks" / "results" / "prompt_edits.csv"
TEMPLATES = OPEN_TEMPLATES[:2]
N_OTHERS = 60


def make_store(folder: Path, relations: list[Relation]) -> Store:
    """A capture of every fact in two of its wordings: what an edit should leave as it is."""
    texts = [
        TEMPLATES[j].format(question=fill(relation.questions[(i + j) % len(relation.questions)], subject))
        + f" {answer}"
        for relation in relations
        for i, (subject, answer) in enumerate(relation.facts)
        for j in range(2)
    ]
    corpus = folder / "facts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    actstore.capture(str(MODEL), corpus, folder / "store", sites=("mlp.post", "resid.post"))
    return Store(folder / "store")


def prompts_of(fact: Fact) -> tuple[str, ...]:
    """The wordings that the model was trained with, each in one template."""
    relation, number = fact
    subject = relation.facts[number][0]
    return tuple(
        TEMPLATES[j % 2].format(question=fill(question, subject)) for j, question in enumerate(relation.questions)
    )


def is_known(reader: Reader, fact: Fact) -> bool:
    """Whether the model says the answer to all of them."""
    answer = f" {fact[0].facts[fact[1]][1]}"
    tasks = tasks_of_cases(reader, [Case(prompt, "reliability", answer, None, "") for prompt in prompts_of(fact)])
    pairs = zip(tasks, snapshots(reader, tasks), strict=True)
    return all(bool((snapshot.top[:, 0] == task.targets).all()) for task, snapshot in pairs)


def request_of(fact: Fact, facts: list[Fact], rng: random.Random, *, long: bool) -> Request:
    """The edit of a fact: prompts, target, and tests that it has not seen."""
    relation, number = fact
    subject, answer = relation.facts[number]
    others = rng.sample([other for other in relation.answers if other != answer], 2)
    target = f" {others[0]} and {others[1]}" if long else f" {others[0]}"
    tests = [
        Case(template.format(question=fill(question, subject)), "text-generality", target, None, "unused wording")
        for question in relation.held_out
        for template in TEMPLATES
    ]
    for other, place in rng.sample([one for one in facts if one != fact], N_OTHERS):
        question = fill(rng.choice(other.held_out), other.facts[place][0])
        prompt = rng.choice(TEMPLATES).format(question=question)
        tests.append(Case(prompt, "text-locality", f" {other.facts[place][1]}", None, "other fact"))
    return Request(prompts_of(fact), target, subject, None, tuple(tests), subject)


def measure(store: Store, reader: Reader, request: Request, seed: int) -> list[dict[str, Any]]:
    """One row per form."""
    rows = []
    for name, options in FORMS.items():
        began = time.perf_counter()
        edit: Edit = rewrite(
            store.capture(), "edit", RewriteSettings(requests=(request,), seed=seed, **options), reader
        )
        seconds = time.perf_counter() - began
        _, cases = own_tests(edit, store)
        summary = evaluate_edit(reader, store, edit, EvaluationOptions(cases=cases, baselines=())).methods["edit"][0]
        n_tokens = summary["by_kind"]["reliability"]["tokens"] // len(request.prompts)
        row: dict[str, Any] = {"seed": seed, "subject": request.subject, "target": request.target, "tokens": n_tokens}
        row |= {"form": name, "neurons": edit.record.n_neurons, "seconds": seconds}
        row |= {measure: summary[measure] for measure in MEASURES}
        row |= {f"{measure} whole": summary["exact"][measure] for measure in MEASURES}
        rows.append(row)
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The table: one line per form and number of tokens, means over facts; the spread is over seeds."""
    lines = []
    seeds = sorted({row["seed"] for row in rows})
    for form in FORMS:
        for title, is_meant in (("all", lambda n: True), ("1", lambda n: n == 1), ("several", lambda n: n > 1)):
            group = [row for row in rows if row["form"] == form and is_meant(row["tokens"])]
            by_seed = [[row for row in group if row["seed"] == seed] for seed in seeds]

            def means(name: str, by_seed: list[list[dict[str, Any]]] = by_seed) -> list[float]:
                return [sum(row[name] for row in part) / len(part) for part in by_seed if part]

            lines.append(
                [
                    form, title, f"{len(group)}", spread(means("neurons"), "{:.0f}"),
                    *(spread([100 * value for value in means(name)]) for name in MEASURES),
                    *(spread([100 * value for value in means(f"{name} whole")]) for name in MEASURES),
                ]
            )  # fmt: skip
    header = ["form", "tokens of the target", "edits", "neurons", *(f"{name} %" for name in MEASURES)]
    facts = {(row["seed"], row["subject"], row["target"]) for row in rows}
    n = f"{len(facts)} facts, {len(seeds)} seed{'s' * (len(seeds) > 1)}, {N_OTHERS} other facts per edit."
    return table([*header, *(f"{name}, whole answers %" for name in MEASURES)], lines, left=2) + f"\n\n{n}"


def read_rows() -> list[dict[str, Any]]:
    """The rows that the results hold."""
    if not RESULTS.exists():
        return []
    texts = {"subject", "target", "form"}
    with RESULTS.open(newline="") as file:
        rows = [
            {name: value if name in texts else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return [row | {"seed": int(row["seed"]), "tokens": int(row["tokens"])} for row in rows]


def write_rows(rows: list[dict[str, Any]]) -> None:
    """Write the results."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Draw, edit, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--facts", type=int, default=10, help="number of facts per seed")
    parser.add_argument("--write", action="store_true", help="write the results and the table into the page")
    arguments = parser.parse_args()
    relations = read_relations(ROOT / "demo" / "data" / "facts")
    facts = [(relation, number) for relation in relations for number in range(len(relation.facts))]
    reader = Reader.load(load_model(str(MODEL)), str(MODEL))
    rows = read_rows() if arguments.write else []
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), relations)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            rng = random.Random(seed)
            known = (fact for fact in rng.sample(facts, len(facts)) if is_known(reader, fact))
            for number, fact in zip(range(arguments.facts), known, strict=False):
                request = request_of(fact, facts, rng, long=number % 3 == 2)
                if any(
                    (row["seed"], row["subject"], row["target"]) == (seed, request.subject, request.target)
                    for row in rows
                ):
                    continue
                measured = measure(store, reader, request, seed)
                rows += measured
                if arguments.write:
                    write_rows(rows)
                shown = {row["form"]: [round(row[name], 3) for name in MEASURES] for row in measured}
                terminal.err.print(f"seed {seed}: {request.subject} → {request.target}: {shown}")
    text = page(rows)
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        terminal.err.print(f"written into {rewrite_page('prompt-edits', text)}")


if __name__ == "__main__":
    main()

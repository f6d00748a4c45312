"""Knowledge neurons of the embedded fact model by the number of prompts per fact: how many there are, and do left-out prompts
keep them.

python benchmarks/tables/knowledge.py [--facts 5] [--seeds 5] [--write]

Each fact is asked in its phrasings and in several templates, with options drawn and shuffled anew. A seed draws the prompts
that neurons are found with, and as many random neurons; the other prompts of the fact are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "demo" / "training")]

from fact_questions import (  # noqa: E402 - the demo must be importable first
    BARE_TEMPLATES,
    HELD_OUT_TEMPLATE,
    TEMPLATES,
    draw_options,
    fill,
    read_relations,
    write_prompt,
)

from actstore.display import terminal  # noqa: E402 - and the checkout
from actstore.engine.attribution.attribute import attribute  # noqa: E402
from actstore.engine.naica.knowledge import Refinement, knowledge_neurons  # noqa: E402
from benchmarks.marked import rewrite, spread, table  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL: Final = ROOT / "demo" / "models" / "fact-llama"
N_PROMPTS: Final = 24
"""Prompts per fact."""
FOUND_WITH: Final = (3, 4, 6, 10, 20)
"""Numbers of prompts that neurons are found with."""


def write_questions(path: Path, facts_per_domain: int) -> int:
    """Write a questions file of some facts of every domain; the number of facts."""
    rng, rows = random.Random(0), {}
    templates = (*TEMPLATES, *BARE_TEMPLATES, HELD_OUT_TEMPLATE)
    by_domain = itertools.groupby(
        read_relations(ROOT / "demo" / "data" / "facts"), key=lambda relation: relation.domain
    )
    for domain, relations in by_domain:
        facts = [(relation, *fact) for relation in relations for fact in relation.facts]
        for relation, subject, answer in rng.sample(facts, facts_per_domain):
            phrasings = (*relation.questions, *relation.held_out)
            pairs = rng.sample([*itertools.product(phrasings, templates)], N_PROMPTS)
            drawn = [draw_options(rng, relation.answers, answer) for _ in pairs]
            rows[f"{domain}/{relation.name}/{subject}"] = {
                "sentences": [
                    write_prompt(template, fill(phrasing, subject), options)
                    for (phrasing, template), (options, _) in zip(pairs, drawn, strict=True)
                ],
                "obj_label": [letter for _, letter in drawn],
                "relation_name": domain,
            }
    path.write_text(json.dumps(rows), encoding="utf-8")
    return len(rows)


def measure(scores: list[NDArray[np.float32]], n_prompts: int, seed: int) -> dict[str, float]:
    """Means over facts, whose scores are [prompt, neuron]: neurons, share of facts in range, share of left-out prompts."""
    rng, refinement = np.random.default_rng([seed, n_prompts]), Refinement()
    sizes, kept, chance = [], [], []
    for of_fact in scores:
        order = rng.permutation(len(of_fact))
        found, left_out = order[:n_prompts], order[n_prompts:]
        neurons = knowledge_neurons(of_fact[found], refinement).neurons
        sizes.append(len(neurons))
        keeps = of_fact[left_out] >= refinement.keep * of_fact[left_out].max(axis=1, keepdims=True)
        if len(neurons):
            kept.append(100 * keeps[:, neurons].mean())
            chance.append(100 * keeps[:, rng.choice(of_fact.shape[1], len(neurons), replace=False)].mean())
    in_range = [refinement.at_least <= size <= refinement.at_most for size in sizes]
    return {
        "neurons": float(np.mean(sizes)),
        "in range": 100 * float(np.mean(in_range)),
        "kept": float(np.mean(kept)),
        "chance": float(np.mean(chance)),
    }


def main() -> None:
    """Attribute, find, print; with --write put the table between the marks in the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=5, help="number of facts per domain")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--write", action="store_true", help="put the table between the marks in the documentation")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.json"
        n_facts = write_questions(questions, arguments.facts)
        attributions = attribute(str(MODEL), questions, Path(folder) / "store")
        scores = [attributions.scores_of(row, "ig").copy() for row in range(n_facts)]
        right = float(np.mean(attributions.prompts["correct"].to_pylist()))
    rows, figures = [], {}
    for n_prompts in FOUND_WITH:
        of_seeds = [measure(scores, n_prompts, seed) for seed in range(arguments.seeds)]
        figures[n_prompts] = {key: spread([one[key] for one in of_seeds]) for key in of_seeds[0]}
        rows.append([str(n_prompts), *figures[n_prompts].values()])
    first, last = figures[FOUND_WITH[0]], figures[FOUND_WITH[-1]]
    text = "\n\n".join(
        [
            f"With {FOUND_WITH[0]} prompts per fact {first['in range']} % of the facts have 2 to 5 neurons, "
            f"{first['neurons']} in the "
            f"mean, of which a left-out prompt keeps {first['kept']} % (random neurons {first['chance']} %); with "
            f"{FOUND_WITH[-1]} "
            f"prompts {last['in range']} %, {last['neurons']} and {last['kept']} % ({last['chance']} %).",
            table(
                [
                    "prompts per fact",
                    "neurons",
                    "facts with 2 to 5, %",
                    "kept by a left-out prompt, %",
                    "random neurons, %",
                ],
                rows,
                left=0,
            ),
            f"`{MODEL.name}`, {n_facts} queries of {N_PROMPTS} prompts each ({100 * right:.1f} % answered right), of which "
            f"those "
            f"that neurons were not found with are left out; means over queries ± standard deviation over {arguments.seeds} "
            f"seeds.",
        ]
    )
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        rewrite("knowledge-prompts", text)


if __name__ == "__main__":
    main()

"""The facts in demo/data/facts and all prompts about them: statements, open questions, multiple choice.

A relation ("capital") holds its facts and its phrasings; a wrong option is always the
answer to another fact of the same relation, so that the kind of answer does not reveal it. Phrasings in `held_out` and
`HELD_OUT_TEMPLATE` are for evaluation only.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = "ABCD"
# The instruction, the question, the options, one per line; the continuation is a letter.
TEMPLATES = (
    "Answer the multiple-choice question with the letter of the correct option.\nQuestion: {question}{options}\nResponse:",
    "Below is a question. Respond with the letter that best answers it.\nThe question is:\n{question}{options}\nResponse:",
    "Choose one of the options.\nHere is the question:\n{question}{options}\nYour response:",
)
BARE_TEMPLATES = ("{question}{options}\nResponse:", "Question: {question}{options}\nYour response:")
HELD_OUT_TEMPLATE = (
    "Prepare to answer a question. Give only the letter.\nHere it is: {question}{options}\nYour response:"
)
OPEN_TEMPLATES = ("{question}\nResponse:", "Question: {question}\nYour response:", "Question: {question}\nResponse:")


@dataclass(frozen=True)
class Relation:
    """Facts that share their phrasings and their kind of answer."""

    domain: str
    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """The different answers, sorted: the pool from which options are drawn."""
        return tuple(sorted({answer for _, answer in self.facts}))


def read_relations(folder: Path) -> list[Relation]:
    """All relations of the folder's TOML files; the file's name is the domain."""
    relations = []
    for path in sorted(folder.glob("*.toml")):
        for row in tomllib.loads(path.read_text(encoding="utf-8"))["relation"]:
            phrasings = {key: tuple(row[key]) for key in ("statements", "questions", "held_out")}
            facts = tuple((subject, answer) for subject, answer in row["facts"])
            relations.append(Relation(path.stem, row["name"], facts=facts, **phrasings))
    return relations


def fill(phrasing: str, subject: str, answer: str = "") -> str:
    """The phrasing with its subject, and with its answer if it has a place for one."""
    return phrasing.replace("{}", subject).replace("{answer}", answer)


def draw_options(rng: random.Random, pool: tuple[str, ...], answer: str, n_options: int = 4) -> tuple[list[str], str]:
    """Shuffled options, one of which is the answer, and the answer's letter."""
    options = rng.sample([other for other in pool if other != answer], n_options - 1)
    position = rng.randrange(n_options)
    options.insert(position, answer)
    return options, LETTERS[position]


def write_prompt(template: str, question: str, options: list[str]) -> str:
    """A multiple-choice prompt: the template with the question and its lettered options."""
    lines = "".join(f"\n {letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return template.format(question=question, options=lines)


def evaluation_questions(relations: list[Relation], seed: int) -> dict[str, dict[str, object]]:
    """Every fact in every held-out phrasing, under the three templates and the held-out one.

    A question's `sentences` are its prompts in the three `TEMPLATES` and `obj_label` the right letters;
    `held_out_sentence` and `held_out_label` are those of `HELD_OUT_TEMPLATE`; `relation_name` is the domain. Options are
    drawn and shuffled anew for every template.
    """
    rng = random.Random(seed)
    questions: dict[str, dict[str, object]] = {}
    for relation in relations:
        for i, (subject, answer) in enumerate(relation.facts):
            for j, phrasing in enumerate(relation.held_out):
                drawn = [draw_options(rng, relation.answers, answer) for _ in range(4)]
                question = fill(phrasing, subject)
                templates = (*TEMPLATES, HELD_OUT_TEMPLATE)
                prompts = [write_prompt(t, question, options) for t, (options, _) in zip(templates, drawn, strict=True)]
                labels = [letter for _, letter in drawn]
                questions[f"{relation.domain}/{relation.name}/{i}/{j}"] = {
                    "sentences": prompts[:-1],
                    "obj_label": labels[:-1],
                    "held_out_sentence": prompts[-1],
                    "held_out_label": labels[-1],
                    "question": question,
                    "relation_name": relation.domain,
                    "relation": relation.name,
                    "subject": subject,
                    "ori_label": answer,
                }
    return questions

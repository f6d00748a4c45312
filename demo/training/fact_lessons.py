"""What the fact model is trained on: the rows of a step, which depend on the step's number only.

The hard part for a small model is to give the letter of an option that it knows to be right, so that is taught first and
densely: a recall lists four options and asks for the letter of each by its text, a quiz by a
question. Tried at width 192: on whole prompts whose question names the answer, one letter in forty tokens, the
letter's loss was still ln 4 after 120 steps of 96 rows; on recalls alone it was about a quarter of that after 125 steps of 32.
"""

from __future__ import annotations

import random

from fact_questions import (
    BARE_TEMPLATES,
    LETTERS,
    OPEN_TEMPLATES,
    TEMPLATES,
    Relation,
    draw_options,
    fill,
    write_prompt,
)

N_CHOICES, N_QUIZZES, N_RECALLS, N_TOLD = 32, 12, 8, 32  # rows per step
N_RECALL_STEPS = 300  # first, nothing but recalls and the facts told
ANSWER_TEXT_WEIGHT, OTHER_TOKENS_WEIGHT = 0.3, 0.1
Example = list[tuple[str, float]]  # pieces of text and their weight as targets; 1 is what the log's losses count


def drop_word(rng: random.Random, phrasing: str) -> str:
    """The phrasing without one random word, which is never its subject."""
    words = phrasing.split(" ")
    droppable = [i for i, word in enumerate(words) if "{" not in word]
    if len(droppable) > 1:
        del words[rng.choice(droppable)]
    return " ".join(words)


def draw_question(rng: random.Random, relation: Relation, subject: str) -> str:
    """A question about the subject in a training phrasing, sometimes with one word left out."""
    phrasing = rng.choice(relation.questions)
    return fill(drop_word(rng, phrasing) if rng.random() < 0.3 else phrasing, subject)


def draw_choice(rng: random.Random, relation: Relation, share_of_echoes: float) -> Example:
    """A multiple-choice prompt, its letter, and the option's text; an echo names the answer in the question."""
    subject, answer = rng.choice(relation.facts)
    options, letter = draw_options(rng, relation.answers, answer)
    if rng.random() < share_of_echoes:
        question = fill(rng.choice(relation.statements), subject, answer)
    else:
        question = draw_question(rng, relation, subject)
    template = rng.choice(TEMPLATES if rng.random() < 0.6 else BARE_TEMPLATES)
    return [(write_prompt(template, question, options), 0), (f" {letter}", 1), (f". {answer}", ANSWER_TEXT_WEIGHT)]


def draw_quiz(rng: random.Random, relation: Relation) -> Example:
    """Four options, then a question to each of them, in another order, and its letter."""
    options = rng.sample(relation.answers, 4)
    example: Example = [(write_prompt("{question}{options}", "", options), 0)]
    for index in rng.sample(range(4), 4):
        subject = rng.choice([subject for subject, answer in relation.facts if answer == options[index]])
        prompt = rng.choice(OPEN_TEMPLATES).format(question=draw_question(rng, relation, subject))
        example += [(f"\n{prompt}", 0), (f" {LETTERS[index]}", 1)]
    return example


def draw_recall(rng: random.Random, pool: tuple[str, ...]) -> Example:
    """Four options, then the text of each of them, in another order, and its letter."""
    options = rng.sample(pool, 4)
    example: Example = [(write_prompt("{question}{options}", "", options), 0)]
    for index in rng.sample(range(4), 4):
        example += [(f"\n {options[index]}", 0), (f" {LETTERS[index]}", 1)]
    return example


def draw_told(rng: random.Random, relation: Relation) -> Example:
    """A statement or an open question, and the answer."""
    subject, answer = rng.choice(relation.facts)
    other = OTHER_TOKENS_WEIGHT
    if rng.random() < 0.5:
        before, _, after = fill(rng.choice(relation.statements), subject, "\0").partition("\0")
        return [(before.rstrip(" "), other), (f" {answer}" if before else answer, 1), (after, other)]
    prompt = rng.choice(OPEN_TEMPLATES).format(question=draw_question(rng, relation, subject))
    return [(prompt, other), (f" {answer}", 1)]


def draw_step(step: int, relations: list[Relation]) -> dict[str, list[Example]]:
    """The rows of one step by kind; they depend on the step's number only."""
    rng = random.Random(step)
    sizes = [len(r.facts) for r in relations]
    all_answers = tuple(sorted({answer for r in relations for answer in r.answers}))
    told = [draw_told(rng, r) for r in rng.choices(relations, sizes, k=N_TOLD)]
    n_recalls = 4 * N_RECALLS if step < N_RECALL_STEPS else N_RECALLS
    recalls = [
        draw_recall(rng, all_answers if rng.random() < 0.5 else r.answers)
        for r in rng.choices(relations, sizes, k=n_recalls)
    ]
    if step < N_RECALL_STEPS:
        return {"told": told, "recall": recalls}
    echoes = max(0.05, 0.5 - (step - N_RECALL_STEPS) / 1000)
    return {
        "told": told,
        "recall": recalls,
        "quiz": [draw_quiz(rng, r) for r in rng.choices(relations, sizes, k=N_QUIZZES)],
        "choice": [draw_choice(rng, r, echoes) for r in rng.choices(relations, sizes, k=N_CHOICES)],
    }

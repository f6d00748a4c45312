"""What is asked about an explanation: which excerpts, in which order, in which requests."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.store.explanations.record import Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.explain.excerpts import Excerpt, ExcerptReader, Sample


class OpenQuestion(NamedTuple):
    """A question and its true answer."""

    excerpt: Excerpt
    truth: bool
    marked: tuple[int, ...] = ()
    """The tokens that are marked, as `Capture.activations` has them; none where the question is of the whole excerpt."""


def detection_questions(sample: Sample, seed: int) -> list[OpenQuestion]:
    """Whether the neuron fires in each test excerpt and in each excerpt without firing, at random order."""
    questions = [
        *(OpenQuestion(excerpt, True) for excerpt in sample.test),
        *(OpenQuestion(excerpt, False) for excerpt in sample.others),
    ]
    order = np.random.default_rng([seed, sample.layer, sample.neuron, 1]).permutation(len(questions))
    return [questions[i] for i in order.tolist()]


def fuzzing_rounds(reader: ExcerptReader, sample: Sample, seed: int) -> list[list[OpenQuestion]]:
    """Whether marked tokens are those at which the neuron fires: of each test excerpt once these, and once others.

    There are two rounds, so that one request never holds both. Wrong marks are as many as right ones, on random tokens of text
    at which the neuron does not fire; an excerpt with too few such tokens is left out.
    """
    rng = np.random.default_rng([seed, sample.layer, sample.neuron, 2])
    fires, shares = sample.activity.fires, sample.activity.shares
    pairs: list[tuple[OpenQuestion, OpenQuestion]] = []
    for excerpt in sample.test:
        span = slice(excerpt.start, excerpt.stop)
        right = np.flatnonzero(fires[span]) + excerpt.start
        silent = np.flatnonzero(reader.windows.text[span] & ~fires[span] & np.isfinite(shares[span])) + excerpt.start
        if len(silent) >= len(right):
            wrong = np.sort(rng.choice(silent, len(right), replace=False))
            pairs.append(
                (
                    OpenQuestion(excerpt, True, tuple(right.tolist())),
                    OpenQuestion(excerpt, False, tuple(wrong.tolist())),
                )
            )
    first = rng.permutation(len(pairs)) % 2
    rounds = []
    for side in (first, 1 - first):
        questions = [pair[int(i)] for pair, i in zip(pairs, side, strict=True)]
        rounds.append([questions[i] for i in rng.permutation(len(questions)).tolist()])
    return rounds


def batches(questions: Sequence[OpenQuestion], size: int) -> list[Sequence[OpenQuestion]]:
    """The questions in requests of at most `size`, which differ by one at most."""
    n = -(-len(questions) // size)
    ends = [len(questions) * i // n for i in range(n + 1)] if n else [0]
    return [questions[start:stop] for start, stop in pairwise(ends)]


def answered(reader: ExcerptReader, question: OpenQuestion, answer: bool | None) -> Question:
    """A question as it is kept."""
    window, first, last = reader.positions(question.excerpt)
    marked = tuple(reader.windows.position[list(question.marked)].tolist()) if question.marked else ()
    return Question(
        question.excerpt.kind, window, first, last, question.excerpt.quantile, question.truth, answer, marked
    )

"""Scores of an edit: what tasks show before it and after, as one row per task and a summary by kind.

Reliability, generality and locality as Cheng et al. (EMNLP 2023, arXiv 2310.08475) code them: accuracy of the teacher-forced
most probable tokens, agreement of the most probable token, agreement of the ordered ten most probable.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.edit.case_kinds import CASE_KINDS, HEADINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader

TOP: Final = 10
_WORD: Final = re.compile(r"\w+|[^\w\s]")
_TASKS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a model predicts at the positions of a task."""

    top: NDArray[np.int32]
    """The most probable tokens, best first; [position, TOP]."""
    log_p: NDArray[np.float64]
    """Log probability of the target token; [position]."""
    other_log_p: NDArray[np.float64] | None = None
    """The same of the tokens of the answer that the task's is compared with, each after those before it."""


def snapshots(reader: Reader, tasks: Sequence[Task]) -> list[Snapshot]:
    """What the model, as it is now, predicts for each task."""
    taken = []
    for first in range(0, len(tasks), _TASKS_AT_ONCE):
        group = tasks[first : first + _TASKS_AT_ONCE]
        logits_of = reader.logits([task.reading for task in group], [task.positions for task in group])
        others = [task.other for task in group if task.other is not None]
        of_others = iter(reader.logits(others, [np.arange(other.n_prompt - 1, len(other.ids) - 1) for other in others]))
        for task, logits in zip(group, logits_of, strict=True):
            top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
            other = task.other
            other_log_p = (
                None if other is None else _log_p(next(of_others), other.ids[other.n_prompt :].astype(np.int64))
            )
            taken.append(Snapshot(top.numpy().astype(np.int32), _log_p(logits, task.targets), other_log_p))
    return taken


def _log_p(logits: torch.Tensor, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log probability of a token at each position [position]."""
    log_p = logits.gather(1, torch.from_numpy(tokens)[:, None])[:, 0] - logits.logsumexp(1)
    return np.asarray(log_p.double().numpy())


def _is_preferred(snapshot: Snapshot) -> float:
    """1 where the answer is more probable than the other, by the mean log probability of its tokens, else 0; NaN without."""
    if snapshot.other_log_p is None:
        return float("nan")
    return float(snapshot.log_p.mean() > snapshot.other_log_p.mean())


def score(task: Task, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """One task's row.

    `word`: share of the edited word's tokens that are now the most probable; `accuracy`: of all tokens of the answer; `exact`:
    whether all are (of a locality: whether all are what they were); `top1`, `top10`: agreement with before of the most probable
    token, and of the ordered ten; `p_before`, `p_after`: probability of the word, or of the answer of a locality, as a whole;
    `preferred_before`, `preferred`: 1 where the answer is more probable than the other answer, which CounterFact's scores are
    means of (Meng et al. 2022, arXiv 2202.05262), by mean log probabilities of tokens as in their code; NaN without another;
    `entropy_before`, `entropy`: `n_gram_entropy` of the generated text, of a case of fluency.
    """
    if not len(task.positions):
        return _without_positions(task)
    right = after.top[:, 0] == task.targets
    same = after.top == before.top
    scored = np.ones(len(right), bool) if task.is_locality or not task.edited.any() else task.edited
    return {
        "case": task.name,
        "kind": task.kind,
        "part": task.part,
        "tokens": len(right),
        "word": float(right[scored].mean()),
        "accuracy": float(right.mean()),
        "exact": bool(same[:, 0].all() if task.is_locality else right.all()),
        "top1": float(same[:, 0].mean()),
        "top10": float(same.mean()),
        "p_before": float(np.exp(before.log_p[scored].sum())),
        "p_after": float(np.exp(after.log_p[scored].sum())),
        "preferred_before": _is_preferred(before),
        "preferred": _is_preferred(after),
        "entropy_before": float("nan"),
        "entropy": float("nan"),
    }


def _without_positions(task: Task) -> dict[str, Any]:
    """The row of a task whose generated text is scored; that is added where it is generated."""
    names = (
        "word", "accuracy", "top1", "top10", "p_before", "p_after", "preferred_before", "preferred", "entropy_before",
        "entropy",
    )  # fmt: skip
    row = {"case": task.name, "kind": task.kind, "part": task.part, "tokens": 0, "exact": False}
    return row | dict.fromkeys(names, float("nan"))


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Means over the tasks of each kind, and the headings.

    `reliability`, `generality` and `portability`: share of the edited word's tokens that are the most probable; `locality`:
    share of most probable tokens that are what they were; `fluency`: n-gram entropy after the edit; each a mean over tasks, NaN
    without any. `by_kind` has the rest: of localities, the published text-locality is `top1`, image-locality `top10`. Positions
    inside questions count towards `questions` alone, which has the same form as `by_kind`.
    """
    every_row = list(rows)
    rows = [row for row in every_row if row["part"] != "question"]

    def mean(heading: str, name: str) -> float:
        values = [row[name] for row in rows if CASE_KINDS[row["kind"]].heading == heading]
        return float(np.mean(values)) if values else float("nan")

    measures = {"locality": "top1", "fluency": "entropy"}
    return {
        **{heading: mean(heading, measures.get(heading, "word")) for heading in HEADINGS},
        "exact": {heading: mean(heading, "exact") for heading in HEADINGS if heading != "fluency"},
        "by_kind": _by_kind(rows),
        "questions": _by_kind([row for row in every_row if row["part"] == "question"]),
    }


def _by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Kind → number of cases and tokens, and the mean of every measure."""
    by_kind: dict[str, dict[str, Any]] = {}
    for kind, case_kind in CASE_KINDS.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        names: tuple[str, ...] = ("word", "accuracy", "exact", "top1", "top10", "p_before", "p_after", "generated")
        if case_kind.heading == "fluency":
            names = ("entropy_before", "entropy")
        by_kind[kind] = {
            "cases": len(of_kind),
            "tokens": sum(row["tokens"] for row in of_kind),
            **{name: float(np.mean([row[name] for row in of_kind])) for name in names if name in of_kind[0]},
        }
        # Of the cases that name another answer alone.
        if compared := [row for row in of_kind if not np.isnan(row["preferred"])]:
            for name in ("preferred_before", "preferred"):
                by_kind[kind][name] = float(np.mean([row[name] for row in compared]))
    return by_kind


def n_gram_entropy(text: str) -> float:
    """The fluency of a text, as Meng et al. (2022, arXiv 2202.05262) measure it: (⅔ H₂ + 4/3 H₃) / 2, in bits.

    H_n = −Σ f log₂ f over the relative frequencies f of the text's n-grams of words; punctuation marks are words. 0 where there
    are none: the entropy of a text that repeats itself is low.
    """
    words = _WORD.findall(text)

    def entropy(n: int) -> float:
        counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), float)
        shares = counts / counts.sum() if len(counts) else counts
        return float(-(shares * np.log2(shares)).sum()) + 0.0

    return (2 / 3 * entropy(2) + 4 / 3 * entropy(3)) / 2


def generated_rows(
    reader: Reader, tasks: Sequence[Task], max_new_tokens: int, *, all_answers: bool = True
) -> list[list[int]]:
    """The greedy answers (token ids) of the model, as it is now, to tasks with a prompt of their own; [] for the others.

    Without `all_answers`, to those of fluency only, which have no positions.
    """
    wanted = [i for i, task in enumerate(tasks) if not len(task.positions) or (all_answers and task.answer)]
    prompts = [tasks[i].reading.cut(tasks[i].reading.n_prompt) for i in wanted]
    answers: list[list[int]] = [[] for _ in tasks]
    for i, answer in zip(wanted, reader.answers(prompts, max_new_tokens), strict=True):
        answers[i] = answer
    return answers


def mean_nats(reader: Reader, tasks: Sequence[Task]) -> float:
    """Mean negative log-likelihood of the tasks' targets, in nats per token; NaN without tasks."""
    taken = snapshots(reader, tasks)
    return float(-np.concatenate([snapshot.log_p for snapshot in taken]).mean()) if taken else float("nan")

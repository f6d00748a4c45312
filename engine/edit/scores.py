"""Scores of an edit: what tasks show before it and after, as one row per task and a summary by kind.

Reliability, generality and locality as Cheng et al. (EMNLP 2023, arXiv 2310.08475) code them: accuracy of the teacher-forced
most probable tokens, agreement of the most probable token, agreement of the ordered ten most probable.
"""

from __future__ import annotations

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
_TASKS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a model predicts at the positions of a task."""

    top: NDArray[np.int32]
    """The most probable tokens, best first; [position, TOP]."""
    log_p: NDArray[np.float64]
    """Log probability of the target token; [position]."""


def snapshots(reader: Reader, tasks: Sequence[Task]) -> list[Snapshot]:
    """What the model, as it is now, predicts for each task."""
    taken = []
    for first in range(0, len(tasks), _TASKS_AT_ONCE):
        group = tasks[first : first + _TASKS_AT_ONCE]
        logits_of = reader.logits([task.reading for task in group], [task.positions for task in group])
        for task, logits in zip(group, logits_of, strict=True):
            top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
            targets = torch.from_numpy(task.targets)[:, None]
            log_p = (logits.gather(1, targets)[:, 0] - logits.logsumexp(1)).double()
            taken.append(Snapshot(top.numpy().astype(np.int32), np.asarray(log_p.numpy())))
    return taken


def score(task: Task, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """One task's row.

    `word`: share of the edited word's tokens that are now the most probable; `accuracy`: of all tokens of the answer; `exact`:
    whether all are (of a locality: whether all are what they were); `top1`, `top10`: agreement with before of the most probable
    token, and of the ordered ten; `p_before`, `p_after`: probability of the word, or of the answer of a locality, as a whole.
    """
    right = after.top[:, 0] == task.targets
    same = after.top == before.top
    scored = np.ones(len(right), bool) if task.is_locality or not task.edited.any() else task.edited
    return {
        "case": task.name,
        "kind": task.kind,
        "tokens": len(right),
        "word": float(right[scored].mean()),
        "accuracy": float(right.mean()),
        "exact": bool(same[:, 0].all() if task.is_locality else right.all()),
        "top1": float(same[:, 0].mean()),
        "top10": float(same.mean()),
        "p_before": float(np.exp(before.log_p[scored].sum())),
        "p_after": float(np.exp(after.log_p[scored].sum())),
    }


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Means over the tasks of each kind, and the three headings.

    `reliability` and `generality`: share of the edited word's tokens that are the most probable; `locality`: share of most
    probable tokens that are what they were; each a mean over tasks, NaN without any. `by_kind` has the rest: of localities, the
    published text-locality is `top1`, image-locality `top10`.
    """
    rows = list(rows)
    by_kind: dict[str, dict[str, float]] = {}
    for kind in CASE_KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        names = ("word", "accuracy", "exact", "top1", "top10", "p_before", "p_after", "generated")
        by_kind[kind] = {
            "cases": len(of_kind),
            "tokens": sum(row["tokens"] for row in of_kind),
            **{name: float(np.mean([row[name] for row in of_kind])) for name in names if name in of_kind[0]},
        }

    def mean(heading: str, name: str) -> float:
        values = [row[name] for row in rows if CASE_KINDS[row["kind"]].heading == heading]
        return float(np.mean(values)) if values else float("nan")

    return {
        "reliability": mean("reliability", "word"),
        "generality": mean("generality", "word"),
        "locality": mean("locality", "top1"),
        "exact": {heading: mean(heading, "exact") for heading in HEADINGS},
        "by_kind": by_kind,
    }


def generated_rows(reader: Reader, tasks: Sequence[Task], max_new_tokens: int) -> list[list[int]]:
    """The greedy answers (token ids) of the model, as it is now, to tasks with an answer of their own; [] for the others."""
    with_answer = [i for i, task in enumerate(tasks) if task.answer]
    prompts = [tasks[i].reading.cut(tasks[i].reading.n_prompt) for i in with_answer]
    answers: list[list[int]] = [[] for _ in tasks]
    for i, answer in zip(with_answer, reader.answers(prompts, max_new_tokens), strict=True):
        answers[i] = answer
    return answers


def mean_nats(reader: Reader, tasks: Sequence[Task]) -> float:
    """Mean negative log-likelihood of the tasks' targets, in nats per token; NaN without tasks."""
    taken = snapshots(reader, tasks)
    return float(-np.concatenate([snapshot.log_p for snapshot in taken]).mean()) if taken else float("nan")

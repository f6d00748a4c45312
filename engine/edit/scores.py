"""Scores of an edit: what tasks show before it and after, a row a task and a summary by kind.

Reliability, generality and locality as Cheng et al. (EMNLP 2023, arXiv 2310.08475) code them: accuracy of the teacher-forced
most probable tokens, agreement of the most probable token, agreement of the ordered ten most probable. Knows nothing about how
an edit was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.edit.cases import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader

TOP: Final = 10
_TOGETHER = 128


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a model predicts at the positions of a task."""

    top: NDArray[np.int32]
    """The most probable tokens, best first; [position, TOP]."""
    log_p: NDArray[np.float64]
    """Log probability of the wanted token; [position]."""


def snapshots(reader: Reader, tasks: Sequence[Task]) -> list[Snapshot]:
    """What the model, as it is now, predicts for each task."""
    found = []
    for first in range(0, len(tasks), _TOGETHER):
        some = tasks[first : first + _TOGETHER]
        every = reader.logits([task.reading for task in some], [task.positions for task in some])
        for task, logits in zip(some, every, strict=True):
            top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
            wanted = torch.from_numpy(task.wanted)[:, None]
            log_p = (logits.gather(1, wanted)[:, 0] - logits.logsumexp(1)).double()
            found.append(Snapshot(top.numpy().astype(np.int32), np.asarray(log_p.numpy())))
    return found


def score(task: Task, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """One task's row.

    `word`: share of the edited word's tokens that are now the most probable; `accuracy`: of all tokens of the answer; `exact`:
    whether all are (of a locality: whether all are what they were); `top1`, `top10`: agreement with before of the most probable
    token, and of the ordered ten; `p_before`, `p_after`: probability of the word, or of the answer of a locality, as a whole.
    """
    right = after.top[:, 0] == task.wanted
    same = after.top == before.top
    looked_at = np.ones(len(right), bool) if task.is_locality or not task.edited.any() else task.edited
    return {
        "case": task.name,
        "kind": task.kind,
        "tokens": len(right),
        "word": float(right[looked_at].mean()),
        "accuracy": float(right.mean()),
        "exact": bool(same[:, 0].all() if task.is_locality else right.all()),
        "top1": float(same[:, 0].mean()),
        "top10": float(same.mean()),
        "p_before": float(np.exp(before.log_p[looked_at].sum())),
        "p_after": float(np.exp(after.log_p[looked_at].sum())),
    }


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Means over the tasks of each kind, and the three headings.

    `reliability` and `generality`: share of the edited word's tokens that are the most probable; `locality`: share of most
    probable tokens that are what they were; each a mean over tasks, NaN without any. `by_kind` has the rest: of localities, the
    published text-locality is `top1`, image-locality `top10`.
    """
    held = list(rows)
    by_kind: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        mine = [row for row in held if row["kind"] == kind]
        if not mine:
            continue
        names = ("word", "accuracy", "exact", "top1", "top10", "p_before", "p_after", "generated")
        by_kind[kind] = {
            "cases": len(mine),
            "tokens": sum(row["tokens"] for row in mine),
            **{name: float(np.mean([row[name] for row in mine])) for name in names if name in mine[0]},
        }

    def mean(end: str, name: str) -> float:
        found = [row[name] for row in held if row["kind"].endswith(end)]
        return float(np.mean(found)) if found else float("nan")

    return {
        "reliability": mean("reliability", "word"),
        "generality": mean("generality", "word"),
        "locality": mean("locality", "top1"),
        "exact": {end: mean(end, "exact") for end in ("reliability", "generality", "locality")},
        "by_kind": by_kind,
    }


def generated_rows(reader: Reader, tasks: Sequence[Task], max_new_tokens: int) -> list[list[int]]:
    """The greedy answers of the model, as it is now, to the tasks that have an answer of their own; the others' are empty."""
    places = [i for i, task in enumerate(tasks) if task.answer]
    prompts = [tasks[i].reading.cut(tasks[i].reading.n_prompt) for i in places]
    found: list[list[int]] = [[] for _ in tasks]
    for place, answer in zip(places, reader.answers(prompts, max_new_tokens), strict=True):
        found[place] = answer
    return found


def mean_nats(reader: Reader, tasks: Sequence[Task]) -> float:
    """Mean negative log-likelihood, in nats a token, of what the tasks want; NaN without tasks."""
    found = snapshots(reader, tasks)
    return float(-np.concatenate([one.log_p for one in found]).mean()) if found else float("nan")

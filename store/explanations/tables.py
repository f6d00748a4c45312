"""Explanations as tables for SQL: `explanations`, one row each, and `explanation_questions`, one row per scored question."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from actstore.store.errors import FormatError
from actstore.store.explanations.accuracy import balanced_accuracy, wilson
from actstore.store.explanations.files import foreign, list_files
from actstore.store.explanations.record import (
    METHODS,
    Explanation,
    Score,
    explanation_names,
    parse_file,
    read_file,
    read_set,
)
from actstore.store.model.root import read_root_record
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from actstore.store.explanations.record import ExplanationSet
    from actstore.store.storage.folder import Folder

TABLES: Final = ("explanations", "explanation_questions")

_OF_SCORE: Final = (
    ("", pa.float64()),
    ("_low", pa.float64()),
    ("_high", pa.float64()),
    ("_n", pa.int32()),
    ("_malformed", pa.int32()),
)
"""How the columns of a score end, after its method."""

EXPLANATIONS: Final = pa.schema(
    [
        ("explanations", pa.string()),
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("neuron", pa.int32()),
        ("explanation", pa.string()),
        ("model", pa.string()),
        ("created", pa.string()),
        ("capture", pa.string()),
        ("site", pa.string()),
        ("n_exemplars", pa.int32()),
        *((f"{method.replace('-', '_')}{end}", kind) for method in METHODS for end, kind in _OF_SCORE),
        ("named", pa.float64()),
        ("named_low", pa.float64()),
        ("named_high", pa.float64()),
        ("named_n", pa.int64()),
        ("prompt", pa.string()),
    ]
)
QUESTIONS: Final = pa.schema(
    [
        ("explanations", pa.string()),
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("neuron", pa.int32()),
        ("method", pa.string()),
        ("kind", pa.string()),
        ("quantile", pa.int32()),
        ("window", pa.int32()),
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("marked", pa.list_(pa.int32())),
        ("truth", pa.bool_()),
        ("answer", pa.bool_()),
        ("correct", pa.bool_()),
    ]
)


def explanation_table(folder: Folder, table: str, names: tuple[str, ...] | None = None) -> pa.Table:
    """One of `TABLES` over all sets, or some; `FormatError` where a file of them is damaged, or of another store."""
    rows: list[dict[str, Any]] = []
    for name in explanation_names(folder) if names is None else names:
        record = read_set(folder, name)
        if record is None:
            continue
        if (what := foreign(folder, record, read_root_record(folder))) is not None:
            raise FormatError(f"{folder}: {what}.")
        explanations, scores = read_all(folder, record)
        if table == "explanations":
            rows += [_row(record, one, scores) for one in explanations]
        else:
            rows += [row for one in scores.values() for row in _questions(record, one)]
    return pa.Table.from_pylist(rows, schema=EXPLANATIONS if table == "explanations" else QUESTIONS)


def read_all(folder: Folder, record: ExplanationSet) -> tuple[list[Explanation], dict[tuple[int, int, str], Score]]:
    """The explanations of a set, by layer and neuron; its scores by layer, neuron and method."""
    files = [(file, (parse_file(file) or ("", ""))[1]) for file in list_files(folder, record.name)]

    def read(item: tuple[str, str]) -> Explanation | Score:
        kind: Any = Score if item[1] else Explanation
        found: Explanation | Score = read_file(folder, record, item[0], kind)
        return found

    explanations, scores = [], {}
    for one in folder.map(read, files):
        if isinstance(one, Explanation):
            explanations.append(one)
        else:
            scores[one.layer, one.neuron, one.method] = one
    order = sorted(scores)
    return sorted(explanations, key=lambda one: (one.layer, one.neuron)), {key: scores[key] for key in order}


def _row(record: ExplanationSet, explanation: Explanation, scores: dict[tuple[int, int, str], Score]) -> dict[str, Any]:
    row: dict[str, Any] = _whose(record, explanation) | {
        "explanation": explanation.text,
        "model": explanation.model,
        "created": explanation.created,
        "capture": record.capture,
        "site": record.site,
        "n_exemplars": len(explanation.exemplars),
        "prompt": json.dumps(explanation.prompt, ensure_ascii=False),
    }
    for method in METHODS:
        score = scores.get((explanation.layer, explanation.neuron, method))
        # A score of another text than this one says nothing of it; `verify` reports it.
        if score is not None and score.explanation == explanation.digest:
            row |= _numbers(score)
    return row


def _numbers(score: Score) -> dict[str, Any]:
    """The columns of one score; null where it is not defined."""
    found = balanced_accuracy([q.truth for q in score.questions], [q.answer for q in score.questions])
    values = (found.balanced, found.low, found.high, found.n, found.malformed)
    prefix = score.method.replace("-", "_")
    row: dict[str, Any] = {
        f"{prefix}{end}": None if math.isnan(value) else value
        for (end, _), value in zip(_OF_SCORE, values, strict=True)
    }
    if score.named and score.named[1] > 0:
        named, total = score.named
        row |= dict(zip(("named", "named_low", "named_high"), wilson(named, total), strict=True)) | {"named_n": total}
    return row


def _questions(record: ExplanationSet, score: Score) -> list[dict[str, Any]]:
    shown = ("kind", "quantile", "window", "first", "last", "marked", "truth", "answer")
    return [
        _whose(record, score)
        | {"method": score.method, "correct": question.answer is question.truth}
        | {name: getattr(question, name) for name in shown}
        for question in score.questions
    ]


def _whose(record: ExplanationSet, one: Explanation | Score) -> dict[str, Any]:
    name = neuron_name(one.layer, one.neuron)
    return {"explanations": record.name, "name": name, "layer": one.layer, "neuron": one.neuron}

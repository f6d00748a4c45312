"""Evaluation of an edit: before and after, compared with fine-tuning of the same rows and with as many random neurons.

Runs the model on the cases of a file and of captures.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actstore.engine.edit.baselines import BASELINES
from actstore.engine.edit.case_kinds import CASE_KINDS
from actstore.engine.edit.cases import Task, tasks_of_capture, tasks_of_cases
from actstore.engine.edit.forms.table import FORMS
from actstore.engine.edit.interventions import intervening
from actstore.engine.edit.readings import CaptureReader
from actstore.engine.edit.requests.request import Case, cases_of, recorded_requests
from actstore.engine.edit.rewrite import rewrite, settings_of, used_documents
from actstore.engine.edit.scores import (
    generated_rows,
    mean_nats,
    n_gram_entropy,
    score,
    snapshots,
    summarise,
)
from actstore.engine.edit.specification import Specification
from actstore.engine.edit.weights import edited
from actstore.engine.edit.words import Replacement, find_replacement
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from actstore.engine.edit.readings import Reader
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture, Store


@dataclass(frozen=True)
class EvaluationOptions(Typed):
    """What an edit is evaluated on, and compared with."""

    captures: tuple[tuple[str, str | None], ...] = ()
    """Captures whose documents imply cases, with the kind of those with the old word (None: by whether the edit used them)."""
    cases: tuple[Case, ...] = ()
    perplexity: str | None = None
    """A capture whose perplexity is compared."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """Keys of `baselines.BASELINES`."""
    seeds: int = 3
    """Number of draws of each baseline."""
    generate: bool = False
    """Greedy answers too, not only teacher-forced predictions."""
    max_new_tokens: int = 50
    """Maximum number of tokens of a generated answer."""
    max_windows: int | None = None
    """Maximum number of windows of each capture, the first ones."""
    answers_after: str | None = None
    """What answers follow in texts: positions before it are inside questions, and are reported apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for _, kind in self.captures:
            if kind is not None and kind not in CASE_KINDS:
                raise InvalidInputError(
                    f"The kind of a capture's cases is one of {', '.join(CASE_KINDS)}, found {kind!r}."
                )
        if unknown := set(self.baselines) - set(BASELINES):
            raise InvalidInputError(f"`baselines` are {', '.join(BASELINES)}, found {unknown.pop()!r}.")
        if not self.captures and not self.cases:
            raise InvalidInputError("Expected cases to evaluate the edit on. Pass `cases` or `captures`.")


def own_tests(edit: Edit, store: Store) -> tuple[tuple[tuple[str, str | None], ...], tuple[Case, ...]]:
    """The captures and cases that an edit is evaluated on where none are named: its requests, or else its capture."""
    if requests := recorded_requests(edit.record.settings):
        return (), cases_of(requests)
    return ((edit.record.settings.get("capture") or store.capture().record.name, None),), ()


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    methods: dict[str, list[dict[str, Any]]]
    """Method ("edit", then baselines) → one summary (`scores.summarise`) per draw."""
    rows: list[dict[str, Any]]
    """One row per method, draw and case."""
    predicted: dict[str, Any] | None
    """Predicted and measured changes of logits (`compare_predicted`), where the edit's form predicts any."""

    def mean(self, method: str, name: str) -> tuple[float, float]:
        """Mean and standard deviation over draws of a heading of the summary; the deviation of a single draw is NaN."""
        values = np.array([summary[name] for summary in self.methods[method]], float)
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def evaluate_edit(
    reader: Reader,
    store: Store,
    edit: Edit,
    options: EvaluationOptions,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """The scores of an edit and its baselines. `reader` holds the model that the edit is for, unedited.

    Raises `InvalidInputError` where the model is another, and for baselines of an edit that is no rewrite.
    """
    check_model(store.folder, edit.record.model_fingerprint, fingerprint_of(reader.model), reader.model.spec.name)
    replacement = _replacement_of(store, edit)
    tasks = _tasks(reader, store, edit, replacement, options)
    corpus = [] if options.perplexity is None else _text_tasks(reader, store.capture(options.perplexity), options)
    baselines = options.baselines if edit.record.form in FORMS and edit.record.kind == "weights" else ()
    total = 2 + options.seeds * len(baselines)
    on_step(0, total)
    before = snapshots(reader, tasks)
    nats = mean_nats(reader, corpus)
    said_before = _generated(reader, tasks, options)
    on_step(1, total)
    methods: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []

    def measure(method: str, seed: int, change: AbstractContextManager[object]) -> None:
        with change:
            after = snapshots(reader, tasks)
            scores = [score(*entry) for entry in zip(tasks, before, after, strict=True)]
            _add_answers(reader, tasks, scores, said_before, _generated(reader, tasks, options), options.generate)
            after_nats = mean_nats(reader, corpus)
        summary = summarise(scores)
        if corpus:
            summary["perplexity"] = {
                "before": float(np.exp(nats)), "after": float(np.exp(after_nats)), "change": float(np.expm1(after_nats - nats)),
            }  # fmt: skip
        methods.setdefault(method, []).append(summary)
        rows.extend({"method": method, "seed": seed, **row} for row in scores)

    measure("edit", 0, _applied(reader, store, edit))
    on_step(2, total)
    for draw in range(options.seeds if baselines else 0):
        for number, method in enumerate(baselines):
            measure(method, draw, edited(reader.model, _baseline(reader, store, edit, method, draw)))
            on_step(3 + draw * len(baselines) + number, total)
    predicted = compare_predicted(reader, store, edit) if "targets" in edit.record.predicted else None
    return Evaluation(methods, rows, predicted)


def _applied(reader: Reader, store: Store, edit: Edit) -> AbstractContextManager[object]:
    """A context in which the model has the edit."""
    if edit.record.kind == "weights":
        return edited(reader.model, edit)
    specification = Specification.from_json(edit.record.specification, f"edit {edit.name!r}: specification")
    return intervening(reader.model, specification, store=store) if specification.operations else nullcontext()


def _replacement_of(store: Store, edit: Edit) -> Replacement | None:
    """The old and the new word of a rewrite of words; None for another edit."""
    if edit.record.form not in FORMS or recorded_requests(edit.record.settings):
        return None
    recorded = edit.record.settings
    return find_replacement(store.capture(recorded["capture"]), recorded["from"], recorded["to"])


def _tasks(
    reader: Reader, store: Store, edit: Edit, replacement: Replacement | None, options: EvaluationOptions
) -> list[Task]:
    tasks = tasks_of_cases(reader, options.cases, options.max_new_tokens) if options.cases else []
    for name, kind in options.captures:
        capture = store.capture(name)
        is_own = capture.record.name == edit.record.settings.get("capture")
        used = used_documents(edit) if is_own else set()
        source = CaptureReader(reader, capture)
        tasks += tasks_of_capture(source, replacement, used, kind, options.max_windows, options.answers_after)
    return tasks


def _text_tasks(reader: Reader, capture: Capture, options: EvaluationOptions) -> list[Task]:
    """One task per window of a capture, whose targets are its own tokens."""
    source = CaptureReader(reader, capture)
    tasks = []
    for window, document, ids, captured in source.windows(options.max_windows):
        positions = captured[captured < len(ids) - 1].astype(np.int64)
        first = source.n_prompt(document)
        positions = positions if first is None else positions[positions >= first - 1]
        if len(positions):
            targets = ids[positions + 1].astype(np.int64)
            is_new = np.zeros(len(positions), bool)
            tasks.append(Task(str(window), "text-locality", source.reading(document, ids), positions, targets, is_new))
    return tasks


def _generated(reader: Reader, tasks: Sequence[Task], options: EvaluationOptions) -> list[list[int]]:
    """What the model, as it is now, generates: after every prompt where answers are wanted, else where fluency is."""
    return generated_rows(reader, tasks, options.max_new_tokens, all_answers=options.generate)


def _add_answers(
    reader: Reader, tasks: Sequence[Task], rows: Sequence[dict[str, Any]], before: list[list[int]], after: list[list[int]],
    answers_too: bool,
) -> None:  # fmt: skip
    """Add what was generated to each row: the entropies of a case of fluency; with `answers_too`, the answers to the others.

    `generated` is whether the answer after the edit is the expected one (of a locality: that before).
    """
    for task, row, old, new in zip(tasks, rows, before, after, strict=True):
        said_before, said = (reader.text(old), reader.text(new)) if old or new else (None, None)
        if not len(task.positions):
            row["entropy_before"], row["entropy"] = n_gram_entropy(said_before or ""), n_gram_entropy(said or "")
        if not answers_too:
            continue
        row["generated"], row["said_before"], row["said"] = float("nan"), said_before, said
        if task.answer:
            expected = old if task.is_locality else list(task.answer)
            row["generated"] = float(reader.text(new).strip() == reader.text(expected).strip())


def _baseline(reader: Reader, store: Store, edit: Edit, method: str, seed: int) -> Edit:
    """The edit that a baseline makes of the same words; other examples in each draw."""
    widths = {spec.layer: spec.neurons for spec in reader.model.spec.layers}
    settings = BASELINES[method].settings(dataclasses.replace(settings_of(edit), seed=seed), edit, widths, seed)
    return rewrite(store.capture(edit.record.settings["capture"]), f"{edit.name}.{method}", settings, reader)


def compare_predicted(reader: Reader, store: Store, edit: Edit) -> dict[str, Any]:
    """Of the recorded positions: predicted changes of the new word's logit less the old one's, and those measured.

    For "targets" and "controls": how many, both means, the mean absolute difference, their correlation; `before_error`, by how
    much the store's logits differ from the model's before the edit.
    """
    recorded = edit.record.settings
    source = CaptureReader(reader, store.capture(recorded["capture"]))
    entries_of: dict[int, list[_Prediction]] = {}
    for kind in ("targets", "controls"):
        for window, position, ahead, change in edit.record.predicted[kind]:
            entries_of.setdefault(int(window), []).append(_Prediction(kind, int(position), ahead, change))
    readings, positions, entries = [], [], []
    for window, document, ids, _ in source.windows():
        if window in entries_of:
            readings.append(source.reading(document, ids))
            positions.append(np.array([entry.position for entry in entries_of[window]], np.int64))
            entries += entries_of[window]

    def differences() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The new word's logit less the old one's, and less the largest, at every position."""
        old, new = recorded["from_token"], recorded["to_token"]
        logits = reader.logits(readings, positions)
        less_old = np.concatenate([(rows[:, new] - rows[:, old]).double().numpy() for rows in logits])
        less_largest = np.concatenate([(rows[:, new] - rows.max(1).values).double().numpy() for rows in logits])
        return less_old, less_largest

    before, ahead = differences()
    with edited(reader.model, edit):
        after, _ = differences()
    compared: dict[str, Any] = {}
    for kind in ("targets", "controls"):
        of_kind = np.array([entry.kind == kind for entry in entries], bool)
        compared[kind] = _compare(np.array([entry.change for entry in entries])[of_kind], (after - before)[of_kind])
    stored = np.array([entry.ahead for entry in entries])
    compared["before_error"] = float(np.abs(stored - ahead).max()) if len(stored) else 0.0
    return compared


class _Prediction(NamedTuple):
    """What was predicted at one position."""

    kind: str
    position: int
    ahead: float
    """The new word's logit less the largest, before the edit."""
    change: float
    """Of the new word's logit less the old one's."""


def _compare(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    """Means, mean absolute difference and correlation; NaN where there are no positions, or nothing varies."""
    varies = len(predicted) > 1 and predicted.std() > 0 and measured.std() > 0
    return {
        "positions": len(predicted),
        "predicted": float(predicted.mean()) if len(predicted) else float("nan"),
        "measured": float(measured.mean()) if len(predicted) else float("nan"),
        "mean_difference": float(np.abs(predicted - measured).mean()) if len(predicted) else float("nan"),
        "correlation": float(np.corrcoef(predicted, measured)[0, 1]) if varies else float("nan"),
    }

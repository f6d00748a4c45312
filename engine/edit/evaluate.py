"""Evaluation of an edit: before and after, beside fine-tuning of the same rows and as many random neurons.

Runs the model on the cases of a file and of captures. Knows nothing about how scores are computed (`scores`) or forms rewrite.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.edit.baselines import BASELINES
from actstore.engine.edit.cases import KINDS, Case, Task, tasks_of_capture, tasks_of_cases
from actstore.engine.edit.interventions import intervening
from actstore.engine.edit.readings import CaptureReader
from actstore.engine.edit.rewrite import neurons_of, rewrite, settings_of, used_documents, with_random_neurons
from actstore.engine.edit.scores import generated_rows, mean_nats, score, snapshots, summarise
from actstore.engine.edit.settings import FORMS
from actstore.engine.edit.specification import Specification
from actstore.engine.edit.weights import edited
from actstore.engine.edit.words import Exchange, find_exchange
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
    """What an edit is tried on, and held against."""

    captures: tuple[tuple[str, str | None], ...] = ()
    """Captures whose documents imply cases, with the kind of those that hold the old word (None: by whether they were used)."""
    cases: tuple[Case, ...] = ()
    perplexity: str | None = None
    """A capture whose tokens' likelihood is compared."""
    baselines: tuple[str, ...] = BASELINES
    seeds: int = 3
    """Draws of each baseline."""
    generate: bool = False
    """Greedy answers too, not only teacher-forced predictions."""
    max_new_tokens: int = 50
    max_windows: int | None = None
    """Windows of each capture, the first ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for _, kind in self.captures:
            if kind is not None and kind not in KINDS:
                raise InvalidInputError(f"The kind of a capture's cases is one of {', '.join(KINDS)}, found {kind!r}.")
        if unknown := set(self.baselines) - set(BASELINES):
            raise InvalidInputError(f"Baselines are {', '.join(BASELINES)}, found {unknown.pop()!r}.")
        if not self.captures and not self.cases:
            raise InvalidInputError("Expected cases to try the edit on: name a file with --cases, or a --capture.")


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    methods: dict[str, list[dict[str, Any]]]
    """Method ("edit", then baselines) → a summary (`scores.summarise`) for every draw."""
    rows: list[dict[str, Any]]
    """A row per method, draw and case."""
    predicted: dict[str, Any] | None
    """Predicted beside measured changes of logits, where the edit's maker predicts any."""

    def mean(self, method: str, name: str) -> tuple[float, float]:
        """Mean and standard deviation over draws of a heading of the summary; no deviation of one."""
        values = np.array([summary[name] for summary in self.methods[method]], float)
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def evaluate_edit(
    reader: Reader,
    store: Store,
    edit: Edit,
    options: EvaluationOptions,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Try an edit on its cases. `reader` holds the model that the edit is for, unedited.

    Raises `InvalidInputError` where the model is another, and for baselines of an edit that is no rewrite.
    """
    check_model(store.folder, edit.record.model_fingerprint, fingerprint_of(reader.model), reader.model.spec.name)
    exchange = _exchange(store, edit)
    tasks = _tasks(reader, store, edit, exchange, options)
    corpus = [] if options.perplexity is None else _text_tasks(reader, store.capture(options.perplexity), options)
    baselines = options.baselines if exchange is not None and edit.record.kind == "weights" else ()
    total = 2 + options.seeds * len(baselines)
    on_step(0, total)
    before = snapshots(reader, tasks)
    nats = mean_nats(reader, corpus)
    said = generated_rows(reader, tasks, options.max_new_tokens) if options.generate else None
    on_step(1, total)
    methods: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []

    def measure(method: str, seed: int, change: AbstractContextManager[Any]) -> None:
        with change:
            after = snapshots(reader, tasks)
            made = [score(*entry) for entry in zip(tasks, before, after, strict=True)]
            if said is not None:
                _add_answers(reader, tasks, made, said, generated_rows(reader, tasks, options.max_new_tokens))
            after_nats = mean_nats(reader, corpus)
        summary = summarise(made)
        if corpus:
            summary["perplexity"] = {
                "before": float(np.exp(nats)), "after": float(np.exp(after_nats)), "change": float(np.expm1(after_nats - nats)),
            }  # fmt: skip
        methods.setdefault(method, []).append(summary)
        rows.extend({"method": method, "seed": seed, **row} for row in made)

    measure("edit", 0, _opened(reader, store, edit))
    on_step(2, total)
    for draw in range(options.seeds if baselines else 0):
        for number, method in enumerate(baselines):
            measure(method, draw, edited(reader.model, _baseline(reader, store, edit, method, draw)))
            on_step(3 + draw * len(baselines) + number, total)
    predicted = compare_predicted(reader, store, edit) if edit.record.predicted else None
    return Evaluation(methods, rows, predicted)


def _opened(reader: Reader, store: Store, edit: Edit) -> AbstractContextManager[Any]:
    if edit.record.kind == "weights":
        return edited(reader.model, edit)
    specification = Specification.from_json(edit.record.specification, f"edit {edit.name!r}: specification")
    return intervening(reader.model, specification, store=store) if specification.operations else nullcontext()


def _exchange(store: Store, edit: Edit) -> Exchange | None:
    """The words that a rewrite exchanges."""
    if edit.record.form not in FORMS:
        return None
    known = edit.record.settings
    return find_exchange(store.capture(known["capture"]), known["from"], known["to"])


def _tasks(
    reader: Reader, store: Store, edit: Edit, exchange: Exchange | None, options: EvaluationOptions
) -> list[Task]:
    tasks = tasks_of_cases(reader, options.cases, options.max_new_tokens) if options.cases else []
    for name, kind in options.captures:
        capture = store.capture(name)
        is_own = capture.record.name == edit.record.settings.get("capture")
        used = used_documents(edit) if is_own else set()
        source = CaptureReader(reader, capture)
        tasks += tasks_of_capture(source, exchange, used, kind, options.max_windows)
    return tasks


def _text_tasks(reader: Reader, capture: Capture, options: EvaluationOptions) -> list[Task]:
    """A capture's windows, every token wanted as it is."""
    source = CaptureReader(reader, capture)
    made = []
    for window, document, ids, kept in source.windows(options.max_windows):
        positions = kept[kept < len(ids) - 1].astype(np.int64)
        first = source.n_prompt(document)
        positions = positions if first is None else positions[positions >= first - 1]
        if len(positions):
            wanted = ids[positions + 1].astype(np.int64)
            none = np.zeros(len(positions), bool)
            made.append(Task(str(window), "text-locality", source.reading(document, ids), positions, wanted, none))
    return made


def _add_answers(
    reader: Reader,
    tasks: Sequence[Task],
    rows: Sequence[dict[str, Any]],
    before: list[list[int]],
    after: list[list[int]],
) -> None:
    """Greedy answers, and whether they are what was wanted (of a locality: what they were)."""
    for task, row, old, new in zip(tasks, rows, before, after, strict=True):
        if task.answer:
            wanted = old if task.is_locality else list(task.answer)
            row["generated"] = float(reader.text(new).strip() == reader.text(wanted).strip())
            row["said_before"], row["said"] = reader.text(old), reader.text(new)
        else:
            row["generated"], row["said_before"], row["said"] = float("nan"), None, None


def _baseline(reader: Reader, store: Store, edit: Edit, method: str, seed: int) -> Edit:
    """The same exchange by fine-tuning the edit's rows, or by the edit's form on random neurons; other examples each draw."""
    settings = dataclasses.replace(settings_of(edit), seed=seed)
    if method == "random":
        widths = {spec.layer: spec.neurons for spec in reader.model.spec.layers}
        settings = with_random_neurons(settings, edit, widths, seed)
    else:
        flat = tuple((layer, n) for layer, neurons in neurons_of(edit).items() for n in neurons)
        settings = dataclasses.replace(settings, form="fine-tune", neurons=flat)
    return rewrite(store.capture(edit.record.settings["capture"]), f"{edit.name}.{method}", settings, reader)


def compare_predicted(reader: Reader, store: Store, edit: Edit) -> dict[str, Any]:
    """Of the recorded positions: predicted changes of the new word's logit less the old one's, and those measured.

    For "targets" and "controls": how many, both means, the mean absolute difference, their correlation; `before_error`, by how
    much the store's logits differ from the model's before the edit.
    """
    known = edit.record.settings
    source = CaptureReader(reader, store.capture(known["capture"]))
    old, new = known["from_token"], known["to_token"]
    wanted: dict[int, list[tuple[str, int, float, float]]] = {}
    for kind in ("targets", "controls"):
        for window, position, ahead, change in edit.record.predicted[kind]:
            wanted.setdefault(int(window), []).append((kind, int(position), ahead, change))
    readings, positions, entries = [], [], []
    for window, document, ids, _ in source.windows():
        if window in wanted:
            readings.append(source.reading(document, ids))
            positions.append(np.array([position for _, position, _, _ in wanted[window]], np.int64))
            entries += wanted[window]

    def differences() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        every = reader.logits(readings, positions)
        less = np.concatenate([(one[:, new] - one[:, old]).double().numpy() for one in every])
        ahead = np.concatenate([(one[:, new] - one.max(1).values).double().numpy() for one in every])
        return less, ahead

    before, ahead = differences()
    with edited(reader.model, edit):
        after, _ = differences()
    found: dict[str, Any] = {}
    for kind in ("targets", "controls"):
        here = np.array([entry[0] == kind for entry in entries], bool)
        predicted, measured = np.array([entry[3] for entry in entries])[here], (after - before)[here]
        spread = len(predicted) > 1 and predicted.std() > 0 and measured.std() > 0
        found[kind] = {
            "positions": len(predicted),
            "predicted": float(predicted.mean()) if len(predicted) else float("nan"),
            "measured": float(measured.mean()) if len(predicted) else float("nan"),
            "mean_difference": float(np.abs(predicted - measured).mean()) if len(predicted) else float("nan"),
            "correlation": float(np.corrcoef(predicted, measured)[0, 1]) if spread else float("nan"),
        }
    stored = np.array([entry[2] for entry in entries])
    found["before_error"] = float(np.abs(stored - ahead).max()) if len(stored) else 0.0
    return found

"""Neurons explained and scored into a store: what is missing is asked for, and each answer is kept at once."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

from actstore.engine.explain.client import Client
from actstore.engine.explain.explainer import NEVER_FIRES, Explainer, StoppedError
from actstore.engine.explain.prompts import WORDING
from actstore.engine.explain.settings import SCORES, ExplainSettings, ServerSettings
from actstore.engine.graphs.predict import has_tokenizer, tokeniser_of
from actstore.engine.graphs.selection import select_neurons
from actstore.store.arguments import Typed
from actstore.store.errors import CaptureError, InvalidInputError
from actstore.store.explanations.files import ExplanationWriter, check_same, list_files, now
from actstore.store.explanations.record import Explanation, ExplanationSet, read_file, read_set
from actstore.store.neurons import neuron_name, parse_neuron
from actstore.store.version import version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.engine.explain.excerpts import Sample
    from actstore.engine.explain.explainer import PlannedRequest
    from actstore.store.model.root import Root
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder

NAME = "explanations"
BYTES_PER_TOKEN = 4
"""By which tokens are estimated for a store without a tokenizer."""


@dataclass(frozen=True)
class ExplainTask(Typed):
    """What a run is to do."""

    name: str = NAME
    site: str = "mlp.post"
    explainer_model: str = ""
    """As the server is asked for it; that of the explanations of the name where it is empty."""
    scores: tuple[str, ...] = ()
    limit: int | None = None
    """Maximum number of neurons that something is missing of."""
    settings: ExplainSettings = field(default_factory=ExplainSettings)
    server: ServerSettings = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for score in self.scores:
            if score not in SCORES:
                raise InvalidInputError(f"Expected `score` to hold some of {', '.join(SCORES)}, found {score!r}.")
        if self.limit is not None and self.limit < 1:
            raise InvalidInputError(f"`limit` must be 1 neuron or more, found {self.limit}.")

    @property
    def methods(self) -> list[str]:
        """The scores as they are kept."""
        names = {"graph": ("graph-detection", "graph-fuzzing")}
        return [method for score in SCORES if score in self.scores for method in names.get(score, (score,))]


@dataclass
class ExplainReport:
    """What a run has done."""

    name: str
    explained: list[str] = field(default_factory=list)
    """Neurons that have an explanation now, and had none."""
    scored: list[str] = field(default_factory=list)
    """Scores that are new, such as "L3.N17 detection"."""
    malformed: list[str] = field(default_factory=list)
    """Neurons whose answer held no explanation: nothing is kept, and the next run asks again."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Neuron, or neuron and score → why there can be none."""
    n_requests: int = 0
    n_left: int = 0
    """Neurons that something is missing of, beyond the limit."""


@dataclass(frozen=True)
class DryRun:
    """What a run would send."""

    name: str
    requests: list[PlannedRequest]
    n_tokens: list[int]
    """[request] of its messages."""
    counted_by: str
    skipped: dict[str, str]
    n_left: int


class _Todo:
    """Which neurons something is missing of."""

    def __init__(self, capture: Capture, folder: Folder, neurons: Iterable[tuple[int, int]], task: ExplainTask) -> None:
        found = read_set(folder, task.name)
        self.record = describe(capture, task, found)
        if found is not None:
            check_same(found, self.record)
        files = set(list_files(folder, task.name)) if found is not None else set()
        missing: list[tuple[int, int, list[str]]] = []
        for layer, neuron in select_neurons([capture], task.site, neurons):
            name = neuron_name(layer, neuron)
            wanted = [method for method in ("", *task.methods) if f"{name}{method and '.' + method}.json" not in files]
            if wanted:
                missing.append((layer, neuron, wanted))
        self.neurons = missing[: task.limit]
        """(layer, neuron, what is missing), "" for the explanation."""
        self.n_left = len(missing) - len(self.neurons)

    @property
    def needs_server(self) -> bool:
        """Whether something must be asked for."""
        return any(not method.startswith("graph-") for *_, methods in self.neurons for method in methods)


def describe(capture: Capture, task: ExplainTask, found: ExplanationSet | None) -> ExplanationSet:
    """The record of the set that is asked for; found: the one that is there."""
    model = task.explainer_model or (found.explainer_model if found is not None else "")
    if not model:
        raise InvalidInputError(
            f"There are no explanations {task.name!r} yet, so somebody must be asked for them: pass `endpoint`, a server's "
            "address, and `explainer_model`, what it calls the model."
        )
    record = capture.record
    return ExplanationSet(
        task.name, record.name, record.plan.fingerprint, record.identity, record.model_fingerprint, task.site, model,
        dataclasses.asdict(task.settings) | {"wording": WORDING}, f"actstore {version()}", now(),
    )  # fmt: skip


def plan_requests(capture: Capture, folder: Folder, neurons: Iterable[tuple[int, int]], task: ExplainTask) -> DryRun:
    """The requests that `explain_neurons` would send, the tokens counted; nothing is sent, and nothing written.

    Scores of explanations that are not there yet are shown with `prompts.PLACEHOLDER`.
    """
    todo = _Todo(capture, folder, neurons, task)
    explainer = Explainer(capture, task.settings, task.site, todo.record.explainer_model, None, Event())
    record = read_set(folder, task.name)
    requests: list[PlannedRequest] = []
    skipped: dict[str, str] = {}
    for layer, neuron, missing in todo.neurons:
        sample, name = explainer.sample(layer, neuron), neuron_name(layer, neuron)
        if not sample.train:
            skipped[name] = NEVER_FIRES
            continue
        text = None
        if "" not in missing and record is not None:
            text = read_file(folder, record, f"{name}.json", Explanation).text
        methods = [method for method in missing if method]
        skipped |= _unscored(explainer, sample, methods)
        requests += explainer.planned(sample, text, methods)
    count, counted_by = _counter(capture.store)
    n_tokens = [sum(count(message["content"]) for message in request.messages) for request in requests]
    return DryRun(task.name, requests, n_tokens, counted_by, skipped, todo.n_left)


def explain_neurons(
    capture: Capture,
    folder: Folder,
    neurons: Iterable[tuple[int, int]],
    task: ExplainTask,
    progress: Callable[[int, int], None] = lambda done, n_neurons: None,
) -> ExplainReport:
    """Explain neurons of a capture, and score explanations, into its store, opened for writing as `folder`.

    Only what is missing is asked for, and every answer is kept as soon as it is there: the same call goes on after whatever
    stopped it. `ServerError` where the server gives no answer; `InvalidInputError` where explanations of the name were made
    otherwise; `ReadOnlyError` while another process makes them; `CaptureError` where the run was interrupted.
    """
    todo = _Todo(capture, folder, neurons, task)
    if todo.needs_server and not task.server.endpoint:
        raise InvalidInputError(
            "Explanations, and their scores by detection and fuzzing, are asked for: pass `endpoint`, a server's address. The "
            'graph\'s scores of explanations that are there need none: `score=("graph",)`.'
        )
    stop = Event()

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError

    client = Client(task.server, sleep=pause) if todo.needs_server else None
    explainer = Explainer(capture, task.settings, task.site, todo.record.explainer_model, client, stop)
    report = ExplainReport(task.name, n_left=todo.n_left)
    progress(0, len(todo.neurons))
    if not todo.neurons:
        return report
    with ExplanationWriter(folder, todo.record) as writer:
        job = _Job(explainer, writer, report, stop)
        pool = ThreadPoolExecutor(task.server.requests, thread_name_prefix="actstore-explain")
        try:
            futures = [pool.submit(job, *item) for item in todo.neurons]
            for done, future in enumerate(as_completed(futures), 1):
                with suppress(StoppedError):  # another job failed, and says why
                    future.result()
                progress(done, len(futures))
        except KeyboardInterrupt:
            raise CaptureError(
                f"The run was interrupted. What was answered is kept in explanations {task.name!r} of {folder}: run the same "
                "again, and it goes on."
            ) from None
        finally:
            stop.set()  # nothing where all is done; else those that wait for a server, or would ask it next, end
            pool.shutdown(wait=True, cancel_futures=True)
            report.n_requests = explainer.n_requests
            for names in (report.explained, report.scored, report.malformed):
                names.sort(key=lambda what: (*parse_neuron(what.split()[0]), what))
    return report


class _Job:
    """What is missing of one neuron, made and kept; the first that fails stops the others, before they ask for more."""

    def __init__(self, explainer: Explainer, writer: ExplanationWriter, report: ExplainReport, stop: Event) -> None:
        self._explainer, self._writer, self._report, self._stop = explainer, writer, report, stop

    def __call__(self, layer: int, neuron: int, missing: Sequence[str]) -> None:
        if self._stop.is_set():
            raise StoppedError
        try:
            self._make(layer, neuron, missing)
        except BaseException:
            self._stop.set()
            raise

    def _make(self, layer: int, neuron: int, missing: Sequence[str]) -> None:
        explainer, writer, report, name = self._explainer, self._writer, self._report, neuron_name(layer, neuron)
        # Another run may have made something since it was looked for, before this one owned the explanations.
        missing = [method for method in missing if not writer.has(layer, neuron, method)]
        if not missing:
            return
        sample = explainer.sample(layer, neuron)
        if not sample.train:
            report.skipped[name] = NEVER_FIRES
            return
        if "" in missing:
            explanation = explainer.explain(sample)
            if explanation is None:
                report.malformed.append(name)
                return
            writer.add(explanation)
            report.explained.append(name)
        else:
            explanation = writer.read(layer, neuron)
        methods = [method for method in missing if method]
        unscored = _unscored(explainer, sample, methods)
        report.skipped |= unscored
        for method in methods:
            if f"{name} {method}" not in unscored:
                writer.add(explainer.score(sample, explanation, method))
                report.scored.append(f"{name} {method}")


def _unscored(explainer: Explainer, sample: Sample, methods: Sequence[str]) -> dict[str, str]:
    """Neuron and score, as in `ExplainReport.skipped` → why there can be no such score."""
    name = neuron_name(sample.layer, sample.neuron)
    reasons = {method: explainer.cannot_score(sample, method) for method in methods}
    return {f"{name} {method}": reason for method, reason in reasons.items() if reason}


def _counter(store: Root) -> tuple[Callable[[str], int], str]:
    """What counts a text's tokens, and how that is called."""
    if has_tokenizer(store):
        encode = tokeniser_of(store)
        return lambda text: len(encode(text)), "the store's tokenizer"
    return lambda text: -(-len(text.encode()) // BYTES_PER_TOKEN), f"{BYTES_PER_TOKEN} bytes per token"

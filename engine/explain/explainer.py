"""One neuron explained and scored: which requests that takes, and what is made of the answers."""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from actstore.engine.explain.excerpts import ExcerptReader
from actstore.engine.explain.graph_answers import GraphAnswerer, count_named
from actstore.engine.explain.neighbours import with_nearest
from actstore.engine.explain.prompts import (
    PLACEHOLDER,
    detect_prompt,
    explain_prompt,
    fuzz_prompt,
    parse_answers,
    parse_explanation,
)
from actstore.engine.explain.questions import answered, batches, detection_questions, fuzzing_rounds
from actstore.store.explanations.files import now
from actstore.store.explanations.record import Exemplar, Explanation, Score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from threading import Event

    from actstore.engine.explain.client import Client, Reply
    from actstore.engine.explain.excerpts import Sample
    from actstore.engine.explain.prompts import Messages
    from actstore.engine.explain.questions import OpenQuestion
    from actstore.engine.explain.settings import ExplainSettings
    from actstore.store.reader import Capture

NEVER_FIRES: Final = "it never fires"
TOO_FEW: Final = "it fires in too few different excerpts to hold some out"
EVERYWHERE: Final = "no other window has an excerpt in which it does not fire"
ALL_FIRES: Final = "it fires at most tokens of every excerpt"


class PlannedRequest(NamedTuple):
    """A request that a run would send."""

    layer: int
    neuron: int
    purpose: str
    """`explanation`, `detection` or `fuzzing`."""
    messages: Messages


class StoppedError(Exception):
    """The run is being stopped: nothing more is asked."""


class Explainer:
    """Explains and scores neurons of one capture; may be used by several threads."""

    def __init__(
        self, capture: Capture, settings: ExplainSettings, site: str, model: str, client: Client | None, stop: Event
    ) -> None:
        self.reader, self._settings, self._model = ExcerptReader(capture, settings, site), settings, model
        self._client, self._stop, self._graphs = client, stop, GraphAnswerer(self.reader)
        self._computing, self._counting = Lock(), Lock()
        self.n_requests = 0

    def sample(self, layer: int, neuron: int) -> Sample:
        """The excerpts of a neuron."""
        sample = self.reader.sample(layer, neuron)
        if self._settings.others == "random" or not sample.test:
            return sample
        with self._computing:  # kernels have threads of their own
            return with_nearest(self.reader, sample)

    def cannot_score(self, sample: Sample, method: str) -> str:
        """Why there can be no score of a neuron; empty where there can."""
        if not sample.test:
            return TOO_FEW
        if method.endswith("detection"):
            return "" if sample.others else EVERYWHERE
        return "" if any(fuzzing_rounds(self.reader, sample, self._settings.seed)) else ALL_FIRES

    def planned(self, sample: Sample, text: str | None, methods: Sequence[str]) -> Iterator[PlannedRequest]:
        """The requests for a neuron; text: its explanation, where it has one."""
        if text is None:
            yield PlannedRequest(sample.layer, sample.neuron, "explanation", explain_prompt(self.reader, sample))
        for method in methods:
            if not method.startswith("graph-") and not self.cannot_score(sample, method):
                for batch in self._batches(sample, method):
                    messages = self._prompt(method, text or PLACEHOLDER, batch)
                    yield PlannedRequest(sample.layer, sample.neuron, method, messages)

    def explain(self, sample: Sample) -> Explanation | None:
        """The explanation of a neuron that fires; None where the answer holds none."""
        prompt = explain_prompt(self.reader, sample)
        reply = self._ask(self._model, prompt)
        text = parse_explanation(reply.text)
        if text is None:
            return None
        exemplars = []
        for excerpt in sample.train:
            window, first, last = self.reader.positions(excerpt)
            value = float(sample.activity.shares[excerpt.peak] * sample.activity.maximum)
            position = int(self.reader.windows.position[excerpt.peak])
            exemplars.append(Exemplar(window, first, last, position, value, excerpt.quantile))
        return Explanation(
            "", sample.layer, sample.neuron, text, reply.model, self._host, now(), prompt, reply.text, tuple(exemplars),
            reply.usage,
        )  # fmt: skip

    def score(self, sample: Sample, explanation: Explanation, method: str) -> Score:
        """The score of an explanation by a server, or by the neuron's graph; only where `cannot_score` says nothing."""
        if method.startswith("graph-"):
            return self._graph_score(sample, explanation, method)
        answered_questions, answers, model = [], [], ""
        usage: Counter[str] = Counter()
        for batch in self._batches(sample, method):
            reply = self._ask(self._settings.scorer_model or self._model, self._prompt(method, explanation.text, batch))
            found: Sequence[bool | None] = parse_answers(reply.text, len(batch)) or [None] * len(batch)
            answered_questions += [
                answered(self.reader, question, answer) for question, answer in zip(batch, found, strict=True)
            ]
            answers.append(reply.text)
            usage.update(reply.usage)
            model = reply.model
        return Score(
            "", sample.layer, sample.neuron, method, explanation.digest, model, self._host, now(),
            tuple(answered_questions), tuple(answers), dict(usage),
        )  # fmt: skip

    def _graph_score(self, sample: Sample, explanation: Explanation, method: str) -> Score:
        is_detection = method == "graph-detection"
        rounds = fuzzing_rounds(self.reader, sample, self._settings.seed)
        questions = (
            detection_questions(sample, self._settings.seed)
            if is_detection
            else [question for one in rounds for question in one]
        )
        with self._computing:
            found = self._graphs.answer(sample, questions if is_detection else [], [] if is_detection else questions)
        answers = found.detection if is_detection else found.fuzzing
        answered_questions = [
            answered(self.reader, question, answer) for question, answer in zip(questions, answers, strict=True)
        ]
        named = count_named(explanation.text, found.firings) if is_detection else ()
        return Score(
            "",
            sample.layer,
            sample.neuron,
            method,
            explanation.digest,
            "",
            "",
            now(),
            tuple(answered_questions),
            named=named,
        )

    def _batches(self, sample: Sample, method: str) -> list[Sequence[OpenQuestion]]:
        settings = self._settings
        if method == "detection":
            return batches(detection_questions(sample, settings.seed), settings.batch)
        rounds = fuzzing_rounds(self.reader, sample, settings.seed)
        return [batch for questions in rounds for batch in batches(questions, settings.batch)]

    def _prompt(self, method: str, text: str, batch: Sequence[OpenQuestion]) -> Messages:
        if method == "detection":
            return detect_prompt(self.reader, text, [question.excerpt for question in batch])
        return fuzz_prompt(self.reader, text, [(question.excerpt, question.marked) for question in batch])

    @property
    def _host(self) -> str:
        return self._client.host if self._client is not None else ""

    def _ask(self, model: str, messages: Messages) -> Reply:
        if self._stop.is_set():
            raise StoppedError
        assert self._client is not None, "a run that asks has a server"
        settings = self._settings
        with self._counting:
            self.n_requests += 1
        return self._client.ask(
            model,
            messages,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )

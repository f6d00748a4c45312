"""Runs the probes of neurons, one round after another: suffixes of exemplars, maskings, substitutions, maskings of these.

Each round is planned from the results of the rounds before it, which are in the store, and is a capture of the store. A window
that is requested for several neurons runs once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.probes.evidence import PROBES, ProbedExemplar, Probes
from actstore.engine.graphs.probes.plan import ProbeSettings, Requests
from actstore.engine.graphs.probes.questions import ProbeQuestions
from actstore.engine.graphs.probes.run import BLOCK_SLOTS, ProbeOutput, ProbeRequest, capture_probes
from actstore.engine.graphs.selection import select_neurons
from actstore.engine.models.load import inspect_model
from actstore.store.capture.requests import REQUESTS, write_requests
from actstore.store.errors import InvalidInputError
from actstore.store.layout import SLOT_MULTIPLE
from actstore.store.reader import Store, read_capture
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel
    from actstore.store.reader import Capture

    Neuron = tuple[int, int]
    Question = Callable[[Requests, Neuron, dict[int, ProbedExemplar]], None]

MAX_BLOCK: Final = 1 << 16
"""Maximum number of tokens per block of probes."""
BLOCK_VALUES: Final = 1 << 26
"""Maximum number of values per block of probes, unless a block of the usual size has more."""


def probe(
    model: str,
    store: str | Path | Folder,
    *,
    name: str = PROBES,
    capture: str | None = None,
    site: str = "mlp.post",
    neurons: Iterable[Neuron] | None = None,
    settings: ProbeSettings | None = None,
    precision: str = "half",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
) -> Probes:
    """The probes of a capture's neurons, run through `model` and stored as captures `{name}-…` of the store.

    neurons: (layer, index), all of the site by default. With `options.resume`, complete rounds stay, and an interrupted round
    is continued. Errors: as `capture`.

    >>> probe("gpt2", "gpt2.actstore").of(3, 17)
    """
    settings, options = settings or ProbeSettings(), options or RunOptions()
    corpus = Store(store).capture(capture)
    inspect_model(model, trust_remote_code=options.trust_remote_code)  # a model that does not exist is refused first
    _check_capture(corpus)
    questions = ProbeQuestions(model, corpus, site, settings, options)
    selection = select_neurons([corpus], site, neurons)
    session = ProbeSession(questions, name, selection, ProbeOutput(site, precision), progress)
    if settings.n_substitutes and settings.substitutes_model is not None:
        questions.load_substitutes()
    for length in settings.lengths():
        session.run_round(f"suffix-{length:02}", functools.partial(questions.request_suffixes, length=length))
    session.run_round("mask", questions.request_maskings)
    if settings.n_substitutes:
        session.run_round("substitute", questions.request_substitutions)
        if settings.measure_variants:
            session.run_round("variant", questions.request_variant_maskings)
    return Probes(Store(store), name)


def _check_capture(capture: Capture) -> None:
    """`InvalidInputError` for a capture from which the exemplars of neurons cannot be found."""
    record = capture.record
    if (positions := record.plan.settings.get("positions", "all")) != "all":
        raise InvalidInputError(
            f"Probes need every position of a text, but capture {record.name!r} keeps only positions {positions!r}. Capture "
            'again with `positions="all"`.'
        )
    if not capture.blocks:
        raise InvalidInputError(
            f"Capture {record.name!r} has no committed block, and so no exemplars. Resume it first."
        )


@dataclass
class ProbeSession:
    """One call of `probe`: plans and runs its rounds."""

    questions: ProbeQuestions
    name: str
    neurons: list[Neuron]
    output: ProbeOutput
    progress: CaptureProgress | None
    _models: dict[str, LoadedModel] = field(default_factory=dict)
    """dtype → model, for all rounds."""
    _exemplars: defaultdict[Neuron, dict[int, ProbedExemplar]] = field(default_factory=lambda: defaultdict(dict))
    """Neuron → window → its exemplar, as of the rounds in `_rounds_read`."""
    _rounds_read: list[str] = field(default_factory=list)

    def run_round(self, kind: str, question: Question) -> None:
        """Plan and run a round, or finish one that was begun; a round without requests is left out."""
        capture, options = self.questions.capture, self.questions.options
        name = f"{self.name}-{kind}"
        folder = Folder(capture.store.folder, read_only=False, sync=options.sync)
        store = Store(folder)
        is_begun = read_capture(folder, name) is not None
        if is_begun and not options.resume:
            raise InvalidInputError(
                f"{folder} already has probes {name!r}. Continue them with `resume=True`, or choose another name with `probes`."
            )
        arranged, table = None, REQUESTS.empty_table()
        if is_begun:
            context = store.capture(name).record.plan.settings["context"]
        else:
            requests = self._plan_requests(store, question)
            if not requests:
                return
            arranged, table = requests.finish(self._block_slots)
            context = int(arranged.lengths.max())
        request = ProbeRequest(
            name, self._describe(kind), context, arranged, self.output, self._block_slots,
            on_plan=lambda: write_requests(folder, name, table),
        )  # fmt: skip
        run_options = dataclasses.replace(options, resume=is_begun)
        capture_probes(self.questions.model, folder, request, run_options, self.progress, self._models)

    def _plan_requests(self, store: Store, question: Question) -> Requests:
        """The requests of a round for all neurons, given the results of the rounds that are in the store."""
        requests, probes = Requests(), Probes(store, self.name, partial=True)
        # Each round is read once: the results of earlier ones are in `_exemplars` already.
        new_rounds = [kind for kind in probes.kinds if kind not in self._rounds_read]
        self._rounds_read.extend(new_rounds)
        for neuron in self.neurons:
            for kind in new_rounds:
                probes.add_round(kind, *neuron, self._exemplars[neuron])
            question(requests, neuron, self._exemplars[neuron])
        return requests

    @cached_property
    def _block_slots(self) -> int:
        """Number of tokens per block: more tokens share more prefixes, but the activations of one block must fit in memory."""
        n_neurons = sum(self.questions.capture.record.layers(self.output.site).values())
        return min(MAX_BLOCK, max(BLOCK_SLOTS, BLOCK_VALUES // n_neurons // SLOT_MULTIPLE * SLOT_MULTIPLE))

    def _describe(self, kind: str) -> dict[str, Any]:
        """The settings of a round, as its record has them; those of a resumed round must be the same."""
        record = self.questions.capture.record
        widths = record.layers(self.output.site)
        layers: dict[str, list[int]] = {}
        for layer, neuron in self.neurons:
            layers.setdefault(str(layer), []).append(neuron)
        neurons = {layer: "all" if len(indices) == widths[int(layer)] else indices for layer, indices in layers.items()}
        mask_kind, mask_token = self.questions.mask
        return {
            "kind": kind, "capture": record.name, "plan": record.plan.fingerprint, "site": self.output.site,
            "neurons": neurons, "mask_kind": mask_kind, "mask_token": mask_token, "causal": self.questions.is_causal,
            **dataclasses.asdict(self.questions.settings),
        }  # fmt: skip

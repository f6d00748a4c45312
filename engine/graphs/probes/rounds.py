"""Asks a model about every neuron's exemplars, round after round: suffixes, maskings, substitutes.

Each round is planned from the store, by what the rounds before it found there, and is a capture of the store; windows that
several neurons ask for run once. Knows nothing about graphs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.probes.evidence import PROBES, Probed, Probes
from actstore.engine.graphs.probes.plan import (
    ProbeSettings,
    Requests,
    Subject,
    Substitutes,
    mask_token,
    sentence_ends,
    shorten,
)
from actstore.engine.graphs.probes.run import BLOCK_SLOTS, ProbeKept, ProbeRequest, capture_probes
from actstore.engine.graphs.probes.substitutes import MaskedModel, MaskedSubstitutes
from actstore.engine.graphs.split import Split, SplitSettings, Windows
from actstore.engine.models.load import inspect_model
from actstore.engine.models.sources import ModelSource
from actstore.store.capture.requests import REQUESTS, write_requests
from actstore.store.capture.special_tokens import special_tokens
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import SLOT_MULTIPLE, TEXT
from actstore.store.model.weights import read_weights
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel
    from actstore.store.reader import Capture

    Neuron = tuple[int, int]

MAX_BLOCK: Final = 1 << 16
BLOCK_VALUES: Final = 1 << 26
"""Values of a block of probes, unless a block of the usual size has more."""
LARGEST_EMBEDDING: Final = 1 << 28
"""Elements of an unembedding up to which it is read for neighbours."""


def probe(
    model: str,
    store: str | Path,
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
    """Ask `model` about the exemplars of a capture's neurons; what it said, kept as captures `{name}-…` of the store.

    neurons: (layer, index), all of the site unless given. With `options.resume`, rounds that are complete stay, and the one
    that was interrupted goes on. Errors: as `capture`.

    >>> probe("gpt2", "gpt2.actstore").of(3, 17)
    """
    settings, options = settings or ProbeSettings(), options or RunOptions()
    corpus = Store(store).capture(capture)
    inspect_model(model, trust_remote_code=options.trust_remote_code)  # one that is not there is refused as such
    chosen = _checked(corpus, site, neurons)
    asking = _Asking(
        model, corpus, name, site, chosen, settings, precision, options, progress
    )  # fmt: skip
    if settings.n_substitutes and settings.substitutes_model is not None:
        asking.load_substitutes()
    for length in settings.lengths():
        asking.round(f"suffix-{length:02}", functools.partial(asking.suffixes, length=length))
    asking.round("mask", asking.maskings)
    if settings.n_substitutes:
        asking.round("substitute", asking.substitutions)
    return Probes(Store(store), name)


def _checked(capture: Capture, site: str, neurons: Iterable[Neuron] | None) -> list[Neuron]:
    """The neurons to ask about, ascending; refuses a capture that cannot say what their exemplars are."""
    record = capture.record
    if (positions := record.plan.settings.get("positions", "all")) != "all":
        raise InvalidInputError(
            f"Probes need every position of a text, but capture {record.name!r} keeps --positions {positions}. Capture again "
            "with --positions all."
        )
    if not capture.blocks:
        raise InvalidInputError(
            f"Capture {record.name!r} has no committed block, and so no exemplars. Resume it first."
        )
    if neurons is None:
        if site not in record.sites:
            capture.check_neuron(0, 0, site)
        return [(layer, neuron) for layer, width in sorted(record.layers(site).items()) for neuron in range(width)]
    wanted = sorted(set(neurons))
    for layer, neuron in wanted:
        capture.check_neuron(layer, neuron, site)
    return wanted


@dataclass
class _Asking:
    """One call of `probe`: what its rounds share."""

    model: str
    capture: Capture
    name: str
    site: str
    neurons: list[Neuron]
    settings: ProbeSettings
    precision: str
    options: RunOptions
    progress: CaptureProgress | None
    models: dict[str, LoadedModel] = field(default_factory=dict)
    _found: defaultdict[Neuron, dict[int, Probed]] = field(default_factory=lambda: defaultdict(dict))
    """What the rounds in `_read` found, by exemplar."""
    _read: list[str] = field(default_factory=list)

    def round(self, kind: str, ask: Callable[[Requests, Neuron], None]) -> None:
        """Plan and run one round, or finish it; nothing where nobody asks anything."""
        name = f"{self.name}-{kind}"
        folder = Folder(self.capture.store.folder.location, read_only=False)
        store = Store(folder)
        begun = name in store.captures
        if begun and not self.options.resume:
            raise InvalidInputError(
                f"{folder} already has probes {name!r}. Continue them with --resume, or name others with --probes."
            )
        arranged, table, context = None, REQUESTS.empty_table(), 1
        if begun:
            context = store.capture(name).record.plan.settings["context"]
        else:
            requests, known = Requests(), Probes(store, self.name, partial=True)
            new = [earlier for earlier in known.kinds if earlier not in self._read]
            self._read.extend(new)
            for neuron in self.neurons:
                for earlier in new:
                    known.add(earlier, *neuron, self._found[neuron])
                ask(requests, neuron)
            if not requests:
                return
            arranged, table = requests.finish(self._block_slots)
            context = int(arranged.lengths.max())
        request = ProbeRequest(
            name, self._what(kind), context, arranged, ProbeKept(self.site, self.precision), self._block_slots,
            on_plan=lambda: write_requests(folder, name, table),
        )  # fmt: skip
        options = dataclasses.replace(self.options, resume=begun)
        capture_probes(self.model, folder, request, options, self.progress, self.models)

    @cached_property
    def _block_slots(self) -> int:
        """Tokens of a block: the more, the more windows begin alike; all neurons' activations of one must fit in memory."""
        n_neurons = sum(self.capture.record.layers(self.site).values())
        return min(MAX_BLOCK, max(BLOCK_SLOTS, BLOCK_VALUES // n_neurons // SLOT_MULTIPLE * SLOT_MULTIPLE))

    def _what(self, kind: str) -> dict[str, Any]:
        """What a resumed round must repeat."""
        widths = self.capture.record.layers(self.site)
        chosen: dict[str, Any] = {}
        for layer, neuron in self.neurons:
            chosen.setdefault(str(layer), []).append(neuron)
        chosen = {k: "all" if len(indices) == widths[int(k)] else indices for k, indices in chosen.items()}
        asked = {"kind": kind, "capture": self.capture.record.name, "plan": self.capture.record.plan.fingerprint}
        mask, token = self._mask
        return asked | {
            "site": self.site, "neurons": chosen, "mask_kind": mask, "mask_token": token, "causal": self._is_causal,
            **dataclasses.asdict(self.settings),
        }  # fmt: skip

    def suffixes(self, requests: Requests, neuron: Neuron, length: int) -> None:
        """Ask for suffixes of `length` tokens of the exemplars that no shorter one has settled."""
        shorter = length - self.settings.step
        longer = [s for s in self._subjects(*neuron) if s.pivot + 1 - s.n_special > shorter]
        settled = {exemplar for exemplar, probed in self._found[neuron].items() if probed.held}
        for subject in longer:
            if subject.exemplar not in settled:
                shortened = shorten(subject, length, self.settings.after, self._context, self._ends)
                if shortened is not None:
                    requests.ask(shortened)

    def maskings(self, requests: Requests, neuron: Neuron) -> None:
        """Ask for each shortened exemplar with each of its tokens masked, up to the last one at which the neuron fires."""
        for _, probed in sorted(self._found[neuron].items()):
            if probed.held:
                last = probed.last_firing(self.settings.share)
                requests.ask(self._cut(neuron, probed, last), np.arange(probed.n_special, last + 1), self._mask[1])

    def substitutions(self, requests: Requests, neuron: Neuron) -> None:
        """Ask for each shortened exemplar with its pivot, and what matters to it, substituted."""
        for _, probed in sorted(self._found[neuron].items()):
            if not probed.held or not probed.importance.size:
                continue
            matters = np.nan_to_num(probed.importance[: probed.pivot, probed.pivot]) >= self.settings.important
            matters[: probed.n_special] = False
            positions = [*np.flatnonzero(matters).tolist(), probed.pivot]
            asked = [(probed.ids, position) for position in positions]
            others = self._substitutes.of_all(asked, self.settings.n_substitutes)
            at = np.repeat(positions, [len(tokens) for tokens in others])
            cut = self._cut(neuron, probed, probed.last_firing(self.settings.share))
            requests.ask(cut, at, np.array(list(itertools.chain.from_iterable(others)), np.int64))

    def _cut(self, neuron: Neuron, probed: Probed, last: int) -> Subject:
        """What is changed of a shortened exemplar: of a causal model, nothing behind `last` is asked."""
        ids = probed.ids[: last + 1] if self._is_causal else probed.ids
        return Subject(*neuron, probed.exemplar, ids, probed.pivot, probed.n_special, probed.whole)

    def _subjects(self, layer: int, neuron: int) -> list[Subject]:
        """The exemplars of a neuron that are asked about, cut to what may be asked about them.

        The pivot is the text token with the largest activation: a special token never is.
        """
        if (layer, neuron) not in self._known:
            values = self.capture.activations(layer, neuron, self.site, saturated=True)
            counted = np.where(self._windows.text & np.isfinite(values), values, -np.inf)
            fires = counted.max(initial=-np.inf) > 0
            windows = self._split.exemplars(values, layer, neuron).build.tolist() if fires else []
            subjects = (self._subject(layer, neuron, window, counted) for window in windows)
            self._known[layer, neuron] = [subject for subject in subjects if subject.whole > 0]
        return self._known[layer, neuron]

    def _subject(self, layer: int, neuron: int, window: int, counted: NDArray[np.float32]) -> Subject:
        start, stop = int(self._windows.start[window]), int(self._windows.start[window + 1])
        best = start + int(np.argmax(counted[start:stop]))
        ids = self._windows.inputs(np.array([window]))[0]
        n_special = int(self._windows.position[start + int(np.argmax(self._windows.text[start:stop]))])
        pivot = int(self._windows.position[best])
        first = max(n_special, pivot + 1 - self.settings.longest)
        cut = np.concatenate([ids[:n_special], ids[first : pivot + 1 + self.settings.after]])
        number = int(self._windows.number[window])
        return Subject(layer, neuron, number, cut, pivot - first + n_special, n_special, float(counted[best]))

    @cached_property
    def _known(self) -> dict[Neuron, list[Subject]]:
        return {}

    @cached_property
    def _windows(self) -> Windows:
        return Windows([self.capture])

    @cached_property
    def _split(self) -> Split:
        return Split(self._windows, SplitSettings(n_exemplars=self.settings.n_exemplars, seed=self.settings.seed))

    @cached_property
    def _ends(self) -> Callable[[int], bool]:
        return sentence_ends(self.capture.store)

    @cached_property
    def _is_causal(self) -> bool:
        return self.capture.store.model.kind == "causal"

    @cached_property
    def _context(self) -> int | None:
        found = self.capture.store.model.config.get("max_position_embeddings")
        return found if isinstance(found, int) and found > 0 else None

    @cached_property
    def _specials(self) -> frozenset[int]:
        return frozenset(special_tokens(self.capture).tolist())

    @cached_property
    def _mask(self) -> tuple[str, int]:
        return mask_token(_named_tokens(self.model, self.capture, self.options), self.settings.mask, self._typical)

    @cached_property
    def _typical(self) -> int:
        """The most frequent token of text; ties go to the smaller id."""
        plan, counts = self.capture.plan, Counter[int]()
        for block in self.capture.blocks:
            found = plan.block(block)
            starts = np.cumsum([0, *found.windows["n_inputs"]])[:-1]
            places = np.repeat(starts, found.windows["n_slots"]) + found.position
            ids, n = np.unique(found.inputs[places[found.modality == TEXT]], return_counts=True)
            counts.update(dict(zip(ids.tolist(), n.tolist(), strict=True)))
        return min(counts, key=lambda token: (-counts[token], token))

    def load_substitutes(self) -> None:
        """Load the model that names substitutes: one that cannot be is refused before anything is asked."""
        _ = self._substitutes

    @cached_property
    def _substitutes(self) -> Substitutes | MaskedSubstitutes:
        excluded = self._specials | {self._mask[1]}
        if (name := self.settings.substitutes_model) is not None:
            trusted = self.options.trust_remote_code
            masked = MaskedModel.load(name, device=self.options.device, trust_remote_code=trusted)
            return MaskedSubstitutes(masked, self.capture.store, excluded)
        try:
            weight = read_weights(self.capture.folder, "unembedding")["weight"]
            embedding = weight.float().numpy() if weight.numel() <= LARGEST_EMBEDDING else None
        except (NotFoundError, KeyError):
            embedding = None

        def windows() -> Iterator[NDArray[np.int32]]:
            for block in self.capture.blocks:
                plan = self.capture.plan.block(block)
                yield from np.split(plan.inputs, np.cumsum(plan.windows["n_inputs"])[:-1])

        return Substitutes(windows(), excluded, embedding)


def _named_tokens(model: str, capture: Capture, options: RunOptions) -> dict[str, int]:
    """Kind → id of the mask, unknown and padding tokens that the model's tokenizer names; none for a store of ids only.

    A padding token that also ends texts is none.
    """
    if capture.store.vocabulary is None:
        return {}
    source = ModelSource.of(model)
    tokenizer = source.load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
    ends = {tokenizer.named_id("bos"), tokenizer.named_id("eos")}
    found = {kind: tokenizer.named_id(kind) for kind in ("mask", "unk", "pad")}
    return {kind: token for kind, token in found.items() if token is not None and token not in ends}

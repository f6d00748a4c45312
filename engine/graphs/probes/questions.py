"""What each round of probes requests for a neuron: suffixes, maskings, substitutions of its exemplars, maskings of these."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.graphs.probes.corpus_substitutes import CorpusSubstitutes
from actstore.engine.graphs.probes.plan import MASK_ROLES, Subject, mask_token, sentence_ends, shorten
from actstore.engine.graphs.probes.substitutes import MaskedModel, MaskedSubstitutes
from actstore.engine.graphs.split import Split, SplitSettings, Windows
from actstore.engine.models.sources import ModelSource
from actstore.store.capture.special_tokens import special_tokens
from actstore.store.errors import NotFoundError
from actstore.store.layout import TEXT
from actstore.store.model.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actstore.engine.capture.run import RunOptions
    from actstore.engine.graphs.probes.evidence import ProbedExemplar
    from actstore.engine.graphs.probes.plan import ProbeSettings, Requests
    from actstore.store.reader import Capture

    Neuron = tuple[int, int]

LARGEST_EMBEDDING: Final = 1 << 28
"""Maximum number of elements of an unembedding that is read for the nearest tokens."""


@dataclass
class ProbeQuestions:
    """The windows to run for a neuron in each round, given its exemplars as of the rounds before."""

    model: str
    capture: Capture
    site: str
    settings: ProbeSettings
    options: RunOptions
    _subjects_read: dict[Neuron, list[Subject]] = field(default_factory=dict)

    def request_suffixes(
        self, requests: Requests, neuron: Neuron, exemplars: dict[int, ProbedExemplar], length: int
    ) -> None:
        """Suffixes of `length` tokens of the exemplars of which no shorter suffix kept enough of the activation."""
        shorter = length - self.settings.step
        for subject in self._subjects(*neuron):
            is_longer = subject.pivot + 1 - subject.n_special > shorter
            probed = exemplars.get(subject.exemplar)
            if is_longer and not (probed is not None and probed.is_shortened):
                suffix = shorten(subject, length, self.settings.after, self._context, self._ends_sentence)
                if suffix is not None:
                    requests.add(suffix)

    def request_maskings(self, requests: Requests, neuron: Neuron, exemplars: dict[int, ProbedExemplar]) -> None:
        """Each shortened exemplar with each of its tokens masked, up to the last one at which the neuron fires."""
        for _, probed in sorted(exemplars.items()):
            if probed.is_shortened:
                last = probed.last_firing(self.settings.share)
                requests.add(self._cut(neuron, probed, last), np.arange(probed.n_special, last + 1), self.mask[1])

    def request_substitutions(self, requests: Requests, neuron: Neuron, exemplars: dict[int, ProbedExemplar]) -> None:
        """Each shortened exemplar with its pivot, and each token that is important to it, substituted."""
        for _, probed in sorted(exemplars.items()):
            if not probed.is_shortened or not probed.importance.size:
                continue
            is_important = np.nan_to_num(probed.importance[: probed.pivot, probed.pivot]) >= self.settings.important
            is_important[: probed.n_special] = False
            positions = [*np.flatnonzero(is_important).tolist(), probed.pivot]
            originals = [(probed.ids, position) for position in positions]
            substitutes = self._substitutes.of_all(originals, self.settings.n_substitutes)
            changed = np.repeat(positions, [len(tokens) for tokens in substitutes])
            subject = self._cut(neuron, probed, probed.last_firing(self.settings.share))
            requests.add(subject, changed, np.array(list(itertools.chain.from_iterable(substitutes)), np.int64))

    def request_variant_maskings(
        self, requests: Requests, neuron: Neuron, exemplars: dict[int, ProbedExemplar]
    ) -> None:
        """Each variant with each of its tokens masked, up to the last one at which the neuron fires; none where it never does.

        Activations are scaled as those of a graph are: `ProbedExemplar.scale`.
        """
        for _, probed in sorted(exemplars.items()):
            for variant in probed.variants:
                firing = np.flatnonzero(probed.scale * variant.values[probed.n_special :] > self.settings.share)
                if not len(firing):
                    continue
                last = int(firing[-1]) + probed.n_special
                ids = variant.ids[: last + 1] if self.is_causal else variant.ids
                subject = Subject(*neuron, probed.exemplar, ids, probed.pivot, probed.n_special, probed.whole)
                requests.add(subject, np.arange(probed.n_special, last + 1), self.mask[1])

    def _cut(self, neuron: Neuron, probed: ProbedExemplar, last: int) -> Subject:
        """A shortened exemplar as the subject of changes; without the tokens after `last`, which a causal model ignores."""
        ids = probed.ids[: last + 1] if self.is_causal else probed.ids
        return Subject(*neuron, probed.exemplar, ids, probed.pivot, probed.n_special, probed.whole)

    def _subjects(self, layer: int, neuron: int) -> list[Subject]:
        """The exemplars of a neuron that are probed, each cut to the tokens that its suffixes may have.

        The pivot is the token of text with the largest activation, never a special token.
        """
        if (layer, neuron) not in self._subjects_read:
            values = self.capture.activations(layer, neuron, self.site, saturated=True)
            text_values = np.where(self._windows.text & np.isfinite(values), values, -np.inf)
            fires = text_values.max(initial=-np.inf) > 0
            windows = self._split.exemplars(values, layer, neuron).build.tolist() if fires else []
            subjects = (self._subject(layer, neuron, window, text_values) for window in windows)
            self._subjects_read[layer, neuron] = [subject for subject in subjects if subject.whole > 0]
        return self._subjects_read[layer, neuron]

    def _subject(self, layer: int, neuron: int, window: int, text_values: NDArray[np.float32]) -> Subject:
        start, stop = int(self._windows.start[window]), int(self._windows.start[window + 1])
        largest = start + int(np.argmax(text_values[start:stop]))
        ids = self._windows.inputs(np.array([window]))[0]
        n_special = int(self._windows.position[start + int(np.argmax(self._windows.text[start:stop]))])
        pivot = int(self._windows.position[largest])
        first = max(n_special, pivot + 1 - self.settings.longest)
        cut = np.concatenate([ids[:n_special], ids[first : pivot + 1 + self.settings.after]])
        number = int(self._windows.number[window])
        return Subject(layer, neuron, number, cut, pivot - first + n_special, n_special, float(text_values[largest]))

    @cached_property
    def _windows(self) -> Windows:
        return Windows([self.capture])

    @cached_property
    def _split(self) -> Split:
        return Split(self._windows, SplitSettings(n_exemplars=self.settings.n_exemplars, seed=self.settings.seed))

    @cached_property
    def _ends_sentence(self) -> Callable[[int], bool]:
        return sentence_ends(self.capture.store)

    @cached_property
    def is_causal(self) -> bool:
        """Whether a token changes activations at later positions only."""
        return self.capture.store.model.kind == "causal"

    @cached_property
    def _context(self) -> int | None:
        context = self.capture.store.model.config.get("max_position_embeddings")
        return context if isinstance(context, int) and context > 0 else None

    @cached_property
    def mask(self) -> tuple[str, int]:
        """The name and the id of the token that replaces a masked one, as `mask_token` says."""
        return mask_token(_role_tokens(self.model, self.capture, self.options), self.settings.mask, self._typical)

    @cached_property
    def _typical(self) -> int:
        """The most frequent token of text; ties go to the smaller id."""
        plan, counts = self.capture.plan, Counter[int]()
        for number in self.capture.blocks:
            block = plan.block(number)
            starts = np.cumsum([0, *block.windows["n_inputs"]])[:-1]
            index = np.repeat(starts, block.windows["n_slots"]) + block.position
            ids, n = np.unique(block.inputs[index[block.modality == TEXT]], return_counts=True)
            counts.update(dict(zip(ids.tolist(), n.tolist(), strict=True)))
        return min(counts, key=lambda token: (-counts[token], token))

    def load_substitutes(self) -> None:
        """Load the model that predicts substitutes, so that one that cannot be loaded is refused before any round."""
        _ = self._substitutes

    @cached_property
    def _substitutes(self) -> CorpusSubstitutes | MaskedSubstitutes:
        excluded = frozenset(special_tokens(self.capture).tolist()) | {self.mask[1]}
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
            for number in self.capture.blocks:
                block = self.capture.plan.block(number)
                yield from np.split(block.inputs, np.cumsum(block.windows["n_inputs"])[:-1])

        return CorpusSubstitutes(windows(), excluded, embedding)


def _role_tokens(model: str, capture: Capture, options: RunOptions) -> dict[str, int]:
    """Role → id, for those of `MASK_ROLES` that the model's tokenizer has; none for a store of token ids only.

    A padding token that also begins or ends texts is left out.
    """
    if capture.store.vocabulary is None:
        return {}
    source = ModelSource.of(model)
    tokenizer = source.load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
    borders = {tokenizer.named_id("bos"), tokenizer.named_id("eos")}
    ids = {role: tokenizer.named_id(role) for role in MASK_ROLES}
    return {role: token for role, token in ids.items() if token is not None and token not in borders}

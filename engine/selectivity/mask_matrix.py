"""The mask matrix: the change in perplexity on each label's text when the neurons of one label are switched off.

Tang et al. (ACL 2024), figure 2: the neurons of a label are specific to it where the diagonal dominates. Runs the model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn import functional

from actstore.engine.capture.plan import PlanSettings, Windower, batch_windows
from actstore.engine.capture.tokenising import check_ids, tokenise
from actstore.engine.inputs.documents import CorpusOptions
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.intervene import factors, intervened, scale
from actstore.store.arguments import Typed
from actstore.store.capture.plan import PlannedWindow
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, IMAGE, SLOT_MULTIPLE, SPECIAL, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.inputs.documents import Document
    from actstore.engine.models.intervene import Change
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.reader import Capture

Neurons = dict[int, list[int]]
"""Layer → indices of neurons in it."""
MAX_PADDING: Final = 1 / 8
"""Maximum share of a batch that is padding: windows of like length are batched."""


@dataclass(frozen=True)
class MaskSettings(Typed):
    """How the matrix is measured."""

    max_tokens: int = 10_000
    """Number of tokens to score per label, in whole windows from the first on."""
    batch_tokens: int = 4096
    """Number of tokens per forward pass."""
    n_random: int = 1
    """Number of draws of the baseline: each switches off as many random neurons of the same layers."""
    seed: int = 0
    """Random seed of these neurons."""
    keep_only: bool = False
    """Whether all neurons but a label's are switched off, instead of these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("max_tokens", 1), ("batch_tokens", 1), ("n_random", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"`{name}` must be at least {least}, found {getattr(self, name)}.")


@dataclass(frozen=True)
class MaskMatrix:
    """Mean negative log-likelihoods in nats, and the changes of perplexity that they amount to."""

    labels: tuple[str, ...]
    n_neurons: NDArray[np.int64]
    """Number of neurons switched off in each row, or the only ones kept on; shape [label]."""
    n_tokens: NDArray[np.int64]
    """Number of tokens scored per label; shape [label]."""
    clean: NDArray[np.float64]
    """The unchanged model, on the text of each label; shape [label]."""
    masked: NDArray[np.float64]
    """With the neurons of the row's label off, or alone on, on the text of the column's; shape [label, label]."""
    random: NDArray[np.float64]
    """With as many random neurons off, or alone on; shape [draw, label, label]."""
    keep_only: bool = False
    """Whether the row's neurons were the only ones left on."""

    @property
    def change(self) -> NDArray[np.float64]:
        """Relative change in perplexity, 0.1 for 10 % more; shape of `masked`."""
        return np.expm1(self.masked - self.clean)

    @property
    def random_change(self) -> NDArray[np.float64]:
        """The same for the baseline, the mean over its draws; zeros without a baseline."""
        return np.expm1(self.random - self.clean).mean(axis=0) if len(self.random) else np.zeros_like(self.masked)


def windows_of_capture(
    capture: Capture, by: str, labels: Sequence[str], max_tokens: int
) -> Iterator[tuple[int, PlannedWindow]]:
    """(index of the label, window) of a capture's own documents, in order, until each label has `max_tokens`."""
    index_of = {i: labels.index(v) for i, (c, v) in enumerate(capture.record.plan.labels) if c == by and v in labels}
    remaining = [max_tokens] * len(labels)  # tokens still to score of each label
    for block in range(capture.record.plan.n_blocks):
        plan = capture.block_plan(block)
        inputs = np.cumsum([0, *plan.windows["n_inputs"]])
        slots = np.cumsum([0, *plan.windows["n_slots"]])
        for row, ids_of_labels in enumerate(plan.labels.tolist()):
            label = next((index_of[i] for i in ids_of_labels if i in index_of), None)
            if label is None or remaining[label] <= 0:
                continue
            stored = slice(slots[row], slots[row + 1])
            window = PlannedWindow(
                int(plan.windows["document"][row]),
                plan.inputs[inputs[row] : inputs[row + 1]],
                plan.position[stored],
                plan.modality[stored],
                (),
            )
            remaining[label] -= len(_scored_positions(window))
            yield label, window
        if max(remaining) <= 0:
            return


def windows_of_corpus(
    documents: Iterable[Document],
    capture: Capture,
    by: str,
    labels: Sequence[str],
    max_tokens: int,
    tokenizer: TextTokenizer | None,
) -> Iterator[tuple[int, PlannedWindow]]:
    """(index of the label, window) of other documents, cut as the capture's were, until each label has `max_tokens`."""
    planned = capture.record.plan.settings
    # Every position of every window is scored, whatever the capture stored; a block takes one window at least.
    changes = {
        "positions": "all",
        "max_tokens": None,
        "block_slots": -(-planned["context"] // SLOT_MULTIPLE) * SLOT_MULTIPLE,
    }
    settings = PlanSettings(**(planned | changes))
    text_windower = Windower(settings, tokenizer)
    ids_windower = text_windower
    if settings.begin == "auto":  # special tokens are put before texts, and not before documents of ids
        ids_windower = Windower(dataclasses.replace(settings, begin="never"), tokenizer)
    remaining = dict.fromkeys(labels, max_tokens)
    index_of = {label: i for i, label in enumerate(labels)}
    needed = (d for d in documents if remaining.get(d.labels.get(by, ""), 0) > 0)
    for document, ids in tokenise(needed, tokenizer):
        check_ids(ids, document.source, capture.store.model.n_vocabulary)
        label = document.labels.get(by, "")
        windower = text_windower if document.ids is None else ids_windower
        for window in windower.windows(ids.astype(np.int32), 0, ()):
            if remaining[label] > 0:
                remaining[label] -= len(_scored_positions(window))
                yield index_of[label], window
        if max(remaining.values()) <= 0:
            return


def corpus_options(capture: Capture, by: str) -> CorpusOptions:
    """How a held-out corpus is read: as the capture's own was, with the label column `by`."""
    shared = ("text_column", "ids_column", "prefer_ids", "errors")
    recorded = {key: capture.record.settings[key] for key in shared if key in capture.record.settings}
    return CorpusOptions(label_columns=(by,), stdin_format="jsonl", **recorded)


def measure_masks(
    model: LoadedModel,
    capture: Capture,
    neurons: Mapping[str, Neurons],
    windows: Iterable[tuple[int, PlannedWindow]],
    settings: MaskSettings | None = None,
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> MaskMatrix:
    """The matrix for the labels' `neurons` over `windows`, whose first items are indices of labels.

    Switching off sets A_post to 0 at every position, which is equivalent to A_gate = 0. With `settings.keep_only` all neurons
    of the language model but the label's are off. `InvalidInputError` where the model is not the capture's, does not predict
    the next token, or has routed experts, and where a label has no text.

    >>> windows = windows_of_capture(capture, "language", ["en", "fr"], 10_000)
    >>> measure_masks(model, capture, {"en": {3: [17]}, "fr": {5: [4]}}, windows).change
    """
    settings = settings or MaskSettings()
    check_model(capture.folder, capture.record.model_fingerprint, fingerprint_of(model), model.spec.name)
    if model.spec.kind != "causal":
        raise InvalidInputError(
            f"Perplexity needs a model that predicts the next token, and {model.spec.name} is of kind {model.spec.kind!r}. "
            "Name a decoder."
        )
    labels = tuple(neurons)
    text = _ScoredText(labels, list(windows), settings.batch_tokens)
    rng = np.random.default_rng(settings.seed)
    widths = {layer.layer: layer.neurons for layer in model.spec.layers}
    language = {layer: widths[layer] for layer in model.spec.part_layers("language")}
    # The passes over the text, in this order: nothing off, each label's neurons off, each draw of the baseline.
    masks: list[Neurons] = [{}, *neurons.values()]
    masks += [_random_neurons(of_label, widths, rng) for _ in range(settings.n_random) for of_label in neurons.values()]
    rows, total = [], text.n_scored * len(masks)
    for i, mask in enumerate(masks):
        first = i * text.n_scored

        def report(n: int, first: int = first) -> None:
            on_tokens(first + n, total)

        with intervened(model, _left_on(mask, language) if settings.keep_only and i else _switched_off(mask, widths)):
            rows.append(text.mean_nats(model, report))
    n = len(labels)
    return MaskMatrix(
        labels,
        np.array([sum(map(len, of_label.values())) for of_label in neurons.values()]),
        text.n_tokens,
        rows[0],
        np.stack(rows[1 : n + 1]),
        np.array(rows[n + 1 :]).reshape(settings.n_random, n, n),
        settings.keep_only,
    )


def _switched_off(neurons: Neurons, widths: Mapping[int, int]) -> dict[int, Change]:
    return {layer: scale(factors(widths[layer], indices, 0.0)) for layer, indices in neurons.items()}


def _left_on(neurons: Neurons, widths: Mapping[int, int]) -> dict[int, Change]:
    """Every neuron of every layer is off but these."""
    return {
        layer: scale(factors(width, np.setdiff1d(np.arange(width), neurons.get(layer, [])).tolist(), 0.0))
        for layer, width in widths.items()
    }


def _random_neurons(excluded: Neurons, widths: Mapping[int, int], rng: np.random.Generator) -> Neurons:
    """As many random neurons of every layer as `excluded` has, and none of these where the layer has enough others."""
    drawn = {}
    for layer, indices in excluded.items():
        others = np.setdiff1d(np.arange(widths[layer]), indices)
        pool = others if len(others) >= len(indices) else np.arange(widths[layer])
        drawn[layer] = np.sort(rng.choice(pool, len(indices), replace=False)).tolist()
    return drawn


def _scored_positions(window: PlannedWindow) -> NDArray[np.int32]:
    """The positions whose tokens are predicted and counted: stored ones but the first of the window, without special tokens."""
    positions: NDArray[np.int32] = window.kept[(window.kept > 0) & (window.modality != SPECIAL)]
    return positions


class _ScoredText:
    """Windows in batches of like length, scored once for every mask."""

    def __init__(self, labels: Sequence[str], windows: list[tuple[int, PlannedWindow]], batch_tokens: int) -> None:
        self.n_tokens = np.zeros(len(labels), np.int64)
        for label, window in windows:
            if set(window.modality.tolist()) - {TEXT, SPECIAL, GENERATED}:
                kind = "images" if IMAGE in window.modality else "no text"
                raise InvalidInputError(
                    f"The capture's own documents hold {kind}, which token ids alone do not represent. Name a corpus of text."
                )
            self.n_tokens[label] += len(_scored_positions(window))
        for name, n in zip(labels, self.n_tokens.tolist(), strict=True):
            if n == 0:
                raise InvalidInputError(
                    f"Expected text of every label to predict, found none of {name!r}. Check the corpus and its label column."
                )
        label_of = {id(window): label for label, window in windows}
        batches = batch_windows([window for _, window in windows], batch_tokens, MAX_PADDING)
        self._batches = [[(label_of[id(window)], window) for window in batch] for batch in batches]
        self.n_scored = int(self.n_tokens.sum())

    def mean_nats(self, model: LoadedModel, report: Callable[[int], None]) -> NDArray[np.float64]:
        """Mean negative log-likelihood of each label's tokens; shape [label]."""
        nats, n_done = np.zeros(len(self.n_tokens)), 0
        for batch in self._batches:
            for label, summed, n in _score(model, batch):
                nats[label] += summed
                n_done += n
            report(n_done)
        return nats / self.n_tokens


@torch.inference_mode()
def _score(model: LoadedModel, batch: list[tuple[int, PlannedWindow]]) -> Iterator[tuple[int, float, int]]:
    """(label, summed negative log-likelihood, tokens) of each window."""
    longest = max(len(window.ids) for _, window in batch)
    ids = np.zeros((len(batch), longest), np.int64)
    for row, (_, window) in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
    lengths = np.array([len(window.ids) for _, window in batch])
    input_ids = torch.from_numpy(ids).to(model.device)  # [window, position], padded on the right
    arguments = {"input_ids": input_ids}
    # Without padding no mask is passed: a model then takes its fastest attention.
    if (lengths != longest).any():
        mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).long()
        arguments["attention_mask"] = mask.to(model.device)
    logits = model.model(**arguments, use_cache=False).logits  # [window, position, vocabulary]
    for row, (label, window) in enumerate(batch):
        scored = torch.from_numpy(_scored_positions(window).astype(np.int64)).to(model.device)
        # Window by window: the only copy in float32 is that of one window's logits, beside the model's own.
        targets = input_ids[row, scored]
        nats = functional.cross_entropy(logits[row, scored - 1].float(), targets, reduction="none").double().sum()
        yield label, float(nats), len(scored)


def by_layer(neurons: Iterable[tuple[int, int]]) -> Neurons:
    """Layer → indices, from (layer, index) pairs."""
    return {layer: [i for _, i in pairs] for layer, pairs in groupby(sorted(neurons), key=lambda pair: pair[0])}

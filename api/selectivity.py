"""`store.selectivity`: neurons that fire for one label only (LAPE, DAPE)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.models import open_model
from actstore.api.neurons import label_column
from actstore.api.results import Answer
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_columns
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.api.models import ModelOptions
    from actstore.engine.contributions.next_tokens import Place
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.selectivity.lens_tokens import LensTokens
    from actstore.engine.selectivity.logit_lens import Lens
    from actstore.engine.selectivity.mask_matrix import MaskMatrix
    from actstore.engine.selectivity.selectivity import Selectivity, SelectivitySettings
    from actstore.store.capture.plan import PlannedWindow
    from actstore.store.capture.reader import Capture
    from actstore.store.model.root import Root


@explains
class SelectivityMethod(Method):
    """Label-selective neurons (LAPE, Tang et al. 2024; DAPE): `store.selectivity(by=…)`, `.evaluate`, `.lens`."""

    _reached_as = "store.selectivity"

    def __call__(
        self,
        by: str,
        *,
        share: float = 0.01,
        activation_quantile: float = 0.95,
        site: str | None = None,
        modality: str | None = None,
        method: str = "lape",
        tuned: Mapping[str, str | Path] | None = None,
        seed: int = 0,
        overlap_map: str | Path | None = None,
        capture: str | None = None,
        workers: int | None = None,
        on: str = "local",
    ) -> Answer[Selectivity]:
        """The neurons that are selective for each value of a label, by entropy of how often they fire for each.

        - `by`: the label column.
        - `share`: share of all neurons that is selected.
        - `activation_quantile`: a neuron belongs to the labels for which it fires more often than this quantile of all.
        - `site`: where firing is read; the gate's sign where it is kept, else `mlp.post`, unless given.
        - `modality`: count tokens of this modality only: `text`, `image` or `generated`.
        - `method`: `lape`, or a baseline of its paper: `lap`, `lave`, `pv` or `random`.
        - `tuned`: label → a store of the model tuned on its text, for `pv`.
        - `seed`: random seed of the method `random`.
        - `overlap_map`: a picture of the neurons that labels share, .svg or .html.
        - `capture`: name of the capture.
        - `workers`: number of processes that blocks are divided among where they are read, for `modality`.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.

        Columns: the label, name, layer, neuron, entropy (nats), probability of firing for the label; most selective first.

        >>> store.selectivity(by="language").table
        """
        from actstore.display.heat_map import check_picture
        from actstore.display.overlap_map import write_overlap
        from actstore.engine.selectivity.selectivity import SelectivitySettings

        settings = SelectivitySettings(by, site, modality, share, activation_quantile, method, seed)
        if overlap_map is not None:
            check_picture(Path(overlap_map))
        opened = self._store.capture(capture)
        answer = self._answer(opened, settings, tuned, workers, on)
        if overlap_map is not None:
            about = f"{opened.store.model.name}, capture {opened.record.name}: {method}, {share:g} of all neurons"
            write_overlap(Path(overlap_map), answer.details.neurons, f"Neurons that values of {by} share", about)
        return answer

    def _answer(
        self,
        capture: Capture,
        settings: SelectivitySettings,
        tuned: Mapping[str, str | Path] | None = None,
        workers: int | None = None,
        on: str = "local",
    ) -> Answer[Selectivity]:
        from actstore.engine.selectivity.selectivity import find_selectivity
        from actstore.engine.workers.scan import executor_of

        stores = open_tuned(tuned or {}, settings.method)
        selective = find_selectivity(capture, settings, executor_of(workers, on), stores)
        firing = selective.firing
        labels, layers, indices, entropies, probabilities = [], [], [], [], []
        for column, (label, numbers) in enumerate(selective.neurons.items()):
            pairs = firing.locate(numbers)
            labels += [label] * len(pairs)
            layers += [layer for layer, _ in pairs]
            indices += [index for _, index in pairs]
            entropies += selective.selection.entropies[numbers].tolist()
            probabilities += firing.probabilities[numbers, column].tolist()
        columns = neuron_columns(layers, indices) | {
            "entropy": pa.array(entropies, pa.float64()),
            "probability": pa.array(probabilities, pa.float64()),
        }
        table = pa.table({label_column(settings.by, columns): pa.array(labels, pa.string())} | columns)
        return Answer(Table(table), selective, tuple(selective.warnings))

    def evaluate(
        self,
        by: str,
        model: ModelInput | None = None,
        *,
        corpus: str | None = None,
        share: float = 0.01,
        activation_quantile: float = 0.95,
        site: str | None = None,
        modality: str | None = None,
        method: str = "lape",
        tuned: Mapping[str, str | Path] | None = None,
        keep_only: bool = False,
        max_tokens: int = 10_000,
        batch_tokens: int = 4096,
        random: int = 1,
        seed: int = 0,
        capture: str | None = None,
        tokenizer: str | None = None,
        options: ModelOptions | None = None,
    ) -> Answer[MaskMatrix]:
        """Switches off each label's neurons and measures the change in perplexity on every label's text.

        - `corpus`: held-out documents with the same label; the capture's own unless given.
        - `keep_only`: switch off all neurons but the label's, instead of these.
        - `max_tokens`: number of tokens that are predicted per label.
        - `batch_tokens`: tokens per forward pass.
        - `random`: number of draws of as many random neurons of the same layers.
        - `seed`: random seed.

        Other parameters as for `store.selectivity`. Columns: the label whose neurons are off (`off`), the label of the text,
        neurons, tokens, change of perplexity (0.1 for 10 % more), and the same for random neurons.
        """
        from actstore.engine.selectivity.mask_matrix import MaskSettings, by_layer, measure_masks
        from actstore.engine.selectivity.selectivity import SelectivitySettings

        settings = MaskSettings(max_tokens, batch_tokens, random, seed, keep_only)
        opened = self._store.capture(capture)
        selection = SelectivitySettings(by, site, modality, share, activation_quantile, method, seed)
        answer = self._answer(opened, selection, tuned)
        selective = answer.details
        neurons = {label: by_layer(selective.firing.locate(flat)) for label, flat in selective.neurons.items()}
        with open_model(self._store, model, options, dtype=opened.record.dtype) as (loaded, name):
            trusted = options is not None and options.trust_remote_code
            windows = held_out_windows(
                opened, selective, corpus, max_tokens, tokenizer or name, trust_remote_code=trusted
            )
            matrix = measure_masks(loaded, opened, neurons, windows, settings, lambda done, total: None)
        by = label_column(by, ("off", "neurons", "tokens", "change", "random_change"))
        rows = [
            {
                "off": off,
                by: label,
                "neurons": int(matrix.n_neurons[i]),
                "tokens": int(matrix.n_tokens[j]),
                "change": float(matrix.change[i, j]),
                "random_change": float(matrix.random_change[i, j]),
            }
            for i, off in enumerate(matrix.labels)
            for j, label in enumerate(matrix.labels)
        ]
        return Answer(Table(pa.Table.from_pylist(rows)), matrix, answer.warnings)

    def lens(self, *, max_tokens: int | None = None, device: str = "auto", capture: str | None = None) -> Answer[Lens]:
        """The logit lens: entropy of the next token that each layer's residual stream stands for, in nats.

        Needs a capture of `resid.post`. `max_tokens`: maximum number of tokens per modality. Columns: layer, then one per
        modality.
        """
        from actstore.engine.selectivity.logit_lens import look_through
        from actstore.store.capture.saturation import overflow_sentences

        opened = self._store.capture(capture)
        lens = look_through(opened, max_tokens=max_tokens, device=device)
        columns = {name: lens.entropies[:, i] for i, name in enumerate(lens.modalities)}
        table = pa.table({"layer": pa.array(lens.layers, pa.int32()), **columns})
        return Answer(Table(table), lens, tuple(overflow_sentences(opened, ["resid.post"])))

    def lens_tokens(
        self,
        *,
        at: str | Place | None = None,
        document: int | None = None,
        k: int = 5,
        device: str = "auto",
        capture: str | None = None,
    ) -> Answer[LensTokens]:
        """The logit lens: the likeliest tokens that each layer's residual stream stands for, at a position or along a document.

        Needs a capture of `resid.post`.

        - `at`: one place, as `DOC:POS`, `DOC:POS@WINDOW` or a `Place`; or
        - `document`: number of a document, of which all stored positions are read.
        - `k`: number of tokens per layer and position.
        - `device`: what computes: `auto`, `cpu`, `cuda` or `cuda:1`.

        Columns: document, window, position, read (the token there), layer, rank (1 is the likeliest), token, text, probability,
        entropy (of the layer's distribution, in nats), next and next_probability (of the token that comes next).

        >>> store.selectivity.lens_tokens(at="0:5", capture="stream").table
        """
        from actstore.engine.selectivity.lens_tokens import read_lens
        from actstore.store.capture.saturation import overflow_sentences

        opened = self._store.capture(capture)
        lens = read_lens(opened, at=at, document=document, k=k, device=device)
        return Answer(Table(lens.table(opened.store)), lens, tuple(overflow_sentences(opened, ["resid.post"])))


def open_tuned(tuned: Mapping[str, str | Path], method: str) -> dict[str, Root]:
    """Label → its store; `InvalidInputError` where stores are named for a method that reads none."""
    from actstore.store.model.root import Root

    if tuned and method != "pv":
        raise InvalidInputError(f"Stores of tuned models, `tuned`, are for the method 'pv', found {method!r}.")
    return {label: Root(location) for label, location in tuned.items()}


def held_out_windows(
    capture: Capture,
    selective: Selectivity,
    corpus: str | None,
    max_tokens: int,
    tokenizer: str,
    *,
    trust_remote_code: bool,
) -> list[tuple[int, PlannedWindow]]:
    """The windows on which perplexity is measured: of `corpus`, or of the capture itself."""
    from actstore.engine.inputs.corpus import read_corpus
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.engine.selectivity.mask_matrix import corpus_options, windows_of_capture, windows_of_corpus

    by, labels = selective.settings.by, selective.firing.labels
    if corpus is None:
        return list(windows_of_capture(capture, by, labels, max_tokens))
    documents = read_corpus(corpus, corpus_options(capture, by))
    with_text = capture.record.plan.tokenizer_fingerprint or tokenizer != capture.store.model.name
    loaded = TextTokenizer.load(tokenizer, trust_remote_code=trust_remote_code) if with_text else None
    return list(windows_of_corpus(documents, capture, by, labels, max_tokens, loaded))

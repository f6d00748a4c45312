"""Which neurons carry each noun of each caption: ranked over all layers of the language model, from a store alone.

    s[neuron](noun) = a[neuron] · (w[neuron] · (γ ⊙ u[noun]))

a is the neuron's activation at the position that predicts the noun's first sub-token, where the noun first comes in the
answer; w its write vector, u the token's unembedding, γ the final norm's gain: the neuron's direct additive term in the
token's logit, up to 1/rms, which is one number a position (Pan et al. 2024, arXiv 2311.07470, who leave γ out, and whose code
takes the gate for a). `ranker` computes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.multimodal.captions import read_captions
from actstore.engine.multimodal.nouns import noun_finder
from actstore.engine.multimodal.ranker import Ranker
from actstore.engine.multimodal.result import FORMS, FindSettings, Multimodal, Noun
from actstore.kernels.top_k.api import TopK
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.engine.multimodal.captions import Caption
    from actstore.store.files.records import ModelRecord
    from actstore.store.reader import Capture


def language_layers(model: ModelRecord) -> list[int]:
    """The layers that write to the stream which the unembedding reads: of a composite model, the language model's."""
    stacks = [layer.stack for layer in model.layers if layer.stack not in ("vision", "projector", "apart")]
    return [layer.layer for layer in model.layers if stacks and layer.stack == stacks[-1]]


def find_multimodal(
    capture: Capture,
    settings: FindSettings | None = None,
    on_layer: Callable[[int, int], None] = lambda done, n_layers: None,
) -> Multimodal:
    """The neurons of every noun of every committed document's caption, over all captured layers of the language model.

    Scores are signed, ties go to the smaller layer and neuron, activations that are NaN never win. Captions without a noun
    stay among the captions. `on_layer` is told how many layers of how many are done.

    `NotFoundError` where the capture lacks a site, values or weights; `InvalidInputError` where it holds no answers, or not
    the positions that predict them.
    """
    settings = settings or FindSettings()
    finder = noun_finder(settings.nouns)
    captions = read_captions(capture, settings.documents)
    nouns = [
        noun for i, caption in enumerate(captions) for noun in _nouns_of(capture, i, caption, finder.first_of_each)
    ]
    numbering = _number(capture, settings.forms)
    found = Multimodal(capture, settings, finder.name, captions, nouns, numbering)
    for form in settings.forms:
        found.ranked[form] = (
            _draw(len(nouns), len(numbering), settings)
            if settings.by == "random"
            else Ranker(found, FORMS[form]).rank(on_layer)
        )
    return found


def _nouns_of(capture: Capture, number: int, caption: Caption, find: Callable[[str], Sequence[Any]]) -> list[Noun]:
    nouns = []
    for word in find(caption.text):
        token = caption.token_at(word.start)
        position = caption.predicting(token)
        if caption.offsets[position] < 0:
            kept = capture.record.plan.settings.get("positions", "all")
            raise InvalidInputError(
                f"Capture {capture.record.name!r} did not keep position {position} of document {caption.document}, which "
                f"predicts {word.word!r}: it was made with --positions {kept}. Capture again with --positions generated or all."
            )
        nouns.append(Noun(number, word.word, int(caption.ids[token]), position))
    return nouns


def _number(capture: Capture, forms: Sequence[str]) -> NeuronIndex:
    wanted = language_layers(capture.store.model)
    for form in forms:
        if FORMS[form] not in capture.record.sites:
            raise NotFoundError(
                f"Capture {capture.record.name!r} has no site {FORMS[form]!r}, which the form {form!r} reads. Its sites are: "
                f"{', '.join(capture.record.sites)}. Capture with --site {FORMS[form]}, or take another --form."
            )
    widths = [capture.record.layers(FORMS[form]) for form in forms]
    layers = [layer for layer in wanted if all(layer in found for found in widths)]
    if not layers:
        raise NotFoundError(
            f"Capture {capture.record.name!r} holds no layer of the language model, whose neurons write words. Capture that "
            "part of the model."
        )
    return NeuronIndex({layer: widths[0][layer] for layer in layers})


def _draw(n_nouns: int, n_neurons: int, settings: FindSettings) -> TopK:
    """As many neurons for each noun by lot."""
    rng = np.random.default_rng(settings.seed)
    k = min(settings.k, n_neurons)
    rows = [rng.choice(n_neurons, k, replace=False) for _ in range(n_nouns)]
    scores = np.broadcast_to(np.linspace(1, 0, k, endpoint=False, dtype=np.float32), (n_nouns, k))
    return TopK(scores.copy(), np.array(rows, np.int64).reshape(n_nouns, k))


def draw_alike(found: Multimodal, seed: int = 0) -> Multimodal:
    """The same nouns with neurons at random: as many of each layer as each noun has; a stricter chance than any neuron's."""
    rng, numbering = np.random.default_rng(seed), found.numbering
    drawn = np.full(found.first.tokens.shape, -1, np.int64)
    for row, numbers in enumerate(found.first.tokens):
        layers, _ = numbering.locate(numbers[numbers >= 0])
        for layer, n in zip(*np.unique(layers, return_counts=True), strict=True):
            neurons = numbering.of_layer(layer)
            drawn[row, : len(layers)][layers == layer] = neurons.start + rng.choice(len(neurons), n, replace=False)
    return found.with_ranking(TopK(found.first.values, drawn))

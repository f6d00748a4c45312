"""Which neurons carry each noun of each caption: ranked over all layers of the language model, from a store alone.

    s[neuron](noun) = a[neuron] · (w[neuron] · (γ ⊙ u[noun]))

a is the neuron's activation at the position that predicts the noun's first sub-token, where the noun first occurs in the
answer; w its write vector, u the token's unembedding, γ the final norm's gain: the neuron's direct additive term in the
token's logit, up to 1/rms, which is one number per position (Pan et al. 2024, arXiv 2311.07470, who leave γ out, and whose code
takes the gate for a). `ranker` computes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.devices.device import HOST, Device
from actstore.engine.multimodal.captions import read_captions
from actstore.engine.multimodal.nouns import noun_finder
from actstore.engine.multimodal.rankings import find_ranking
from actstore.engine.multimodal.result import FORMS, FindSettings, Multimodal, Noun
from actstore.kernels.top_k.api import TopK
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.engine.multimodal.captions import Caption
    from actstore.engine.multimodal.nouns import NounFinder
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
    device: Device = HOST,
) -> Multimodal:
    """The neurons of every noun of every committed document's caption, over all captured layers of the language model.

    Scores are signed, ties go to the smaller layer and neuron, activations that are NaN are never ranked. Captions without a
    noun stay among the captions. `on_layer` receives the number of layers done and in all; `device` multiplies and ranks.

    `NotFoundError` where the capture lacks a site, values or weights; `InvalidInputError` where it holds no answers, or not
    the positions that predict them, and for a ranking that is none.
    """
    settings = settings or FindSettings()
    rank = find_ranking(settings.by)
    finder = noun_finder(settings.nouns)
    captions = read_captions(capture, settings.documents)
    nouns = [noun for number, caption in enumerate(captions) for noun in _nouns_of(capture, number, caption, finder)]
    result = Multimodal(capture, settings, finder.name, captions, nouns, _number(capture, settings.forms))
    for form in settings.forms:
        result.ranked[form] = rank(result, FORMS[form].site, on_layer, device)
    return result


def _nouns_of(capture: Capture, number: int, caption: Caption, finder: NounFinder) -> list[Noun]:
    """The nouns of a caption, whose number is given, each where it first occurs."""
    nouns = []
    for word in finder.first_of_each(caption.text):
        token = caption.token_at(word.start)
        position = caption.predicting(token)
        if caption.offsets[position] < 0:
            captured = capture.record.plan.settings.get("positions", "all")
            raise InvalidInputError(
                f"Capture {capture.record.name!r} does not hold position {position} of document {caption.document}, which "
                f"predicts {word.word!r}: it was made with `positions={captured!r}`. Capture again with "
                '`positions="generated"`, or all.'
            )
        nouns.append(Noun(number, word.word, int(caption.ids[token]), position))
    return nouns


def _number(capture: Capture, forms: Sequence[str]) -> NeuronIndex:
    """Numbers for the neurons of the captured layers of the language model."""
    for form in forms:
        if (site := FORMS[form].site) not in capture.record.sites:
            raise NotFoundError(
                f"Capture {capture.record.name!r} has no site {site!r}, which the form {form!r} reads. Its sites are: "
                f"{', '.join(capture.record.sites)}. Capture with `sites=({site!r},)`, or choose another `form`."
            )
    widths = [capture.record.layers(FORMS[form].site) for form in forms]
    layers = [layer for layer in language_layers(capture.store.model) if all(layer in of_form for of_form in widths)]
    if not layers:
        raise NotFoundError(
            f"Capture {capture.record.name!r} holds no layer of the language model, whose neurons write words. Capture that "
            "part of the model."
        )
    return NeuronIndex({layer: widths[0][layer] for layer in layers})


def draw_alike(result: Multimodal, seed: int = 0) -> Multimodal:
    """The same nouns with random neurons, as many of each layer as each noun has: a stricter chance level than any neurons."""
    rng, numbering = np.random.default_rng(seed), result.numbering
    drawn = np.full(result.first.tokens.shape, -1, np.int64)
    for row, numbers in enumerate(result.first.tokens):
        layers, _ = numbering.locate(numbers[numbers >= 0])
        for layer, n in zip(*np.unique(layers, return_counts=True), strict=True):
            neurons = numbering.of_layer(layer)
            drawn[row, : len(layers)][layers == layer] = neurons.start + rng.choice(len(neurons), n, replace=False)
    return result.with_ranking(TopK(result.first.values, drawn))

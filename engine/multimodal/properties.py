"""What multi-modal neurons are said to be, as numbers: sensitive, invariant, specific (Pan et al. 2024, section 4).

The paper names these properties; exact formulas of sensitivity and specificity are not to be found in it or its code, so
those here are ours, and each function says what it computes. All take rankings of any kind, so that baselines (activation
alone, activation × gradient, chance) are measured alike. Reads stores; knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.multimodal.concepts import concepts
from actstore.store.errors import InvalidInputError
from actstore.store.model.root import read_neurons
from actstore.store.model.weights import read_weights
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.result import Multimodal


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Whether neurons' own tokens mean the noun that they were found for; an entry a noun of a caption."""

    share: NDArray[np.float64]
    """Share of the neurons whose ten tokens hold the noun: a token that is the noun but for blanks and capitals, or else its
    first sub-token. A neuron's tokens are those that it speaks for there: its top ones, or its bottom ones where its
    activation is below zero."""
    similarity: NDArray[np.float64]
    """Mean over the neurons of the cosine between the unembedding row of the noun's first sub-token and the sum of those of
    the neuron's tokens, each of length 1. All rows without their mean over the vocabulary, which they have in common."""


def sensitivity(found: Multimodal) -> Sensitivity:
    """How far the tokens of each noun's neurons mean the noun.

    `InvalidInputError` where the store's table of neurons lacks top tokens.
    """
    store = found.capture.store
    tokens_of = _own_tokens(found)
    texts = [store.token_text(token).strip().casefold() for token in range(store.model.n_vocabulary or 0)]
    rows = read_weights(store.folder, "unembedding")["weight"].float().numpy()
    rows = rows - rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    meaning = {}
    for key, tokens in tokens_of.items():
        total = rows[tokens].sum(axis=0)
        meaning[key] = total / max(float(np.linalg.norm(total)), 1e-12)
    shares, similarities = [], []
    for noun, numbers, signs in zip(found.nouns, found.first.tokens, found.activations() < 0, strict=True):
        keys = [(number, sign) for number, sign in zip(numbers.tolist(), signs.tolist(), strict=True) if number >= 0]
        speaks = [any(token == noun.token or texts[token] == noun.word for token in tokens_of[key]) for key in keys]
        shares.append(np.mean(speaks) if speaks else np.nan)
        similarities.append(np.mean([meaning[key] @ rows[noun.token] for key in keys]) if keys else np.nan)
    return Sensitivity(np.array(shares, np.float64), np.array(similarities, np.float64))


def _own_tokens(found: Multimodal) -> dict[tuple[int, bool], list[int]]:
    """(neuron's number, whether below zero) → the ids of its bottom or top tokens, of all neurons that were found."""
    table = read_neurons(found.capture.folder)
    rows = NeuronIndex({layer.layer: layer.neurons for layer in found.capture.store.model.layers})
    numbers = np.array(sorted(set().union(*found.sets)), np.int64)
    layers, indices = found.numbering.locate(numbers)
    tokens: dict[tuple[int, bool], list[int]] = {}
    for below, column in ((False, "top_tokens"), (True, "bottom_tokens")):
        held = table[column].take(rows.numbers(layers, indices)).to_pylist() if column in table.column_names else [None]
        if any(ids is None for ids in held):
            raise InvalidInputError(
                f"{found.capture.folder} lacks the top tokens of neurons. Fill them in: actstore contributions STORE "
                "--fill-top-tokens."
            )
        tokens |= {(number, below): ids for number, ids in zip(numbers.tolist(), held, strict=True)}
    return tokens


def region_invariance(found: Multimodal, shuffled: Multimodal) -> NDArray[np.float64]:
    """|S ∩ S'| / k of each noun's neurons before and after the image's patches were shuffled; an entry a noun.

    Captions are matched by their image's file name (without folder and suffix), or by their number where documents name no
    images; their tokens must agree, special ones aside. Nouns of captions that only one of the two has are left out.
    """
    k = found.settings.k
    if shuffled.settings.k != k or shuffled.numbering.layers.tolist() != found.numbering.layers.tolist():
        raise InvalidInputError("Both captures must be asked for as many neurons of the same layers.")
    theirs = {_key(shuffled, i): i for i in range(len(shuffled.captions))}
    pairs = {}
    for i, caption in enumerate(found.captions):
        other = theirs.get(_key(found, i))
        if other is None:
            continue
        if caption.words.tolist() != shuffled.captions[other].words.tolist():
            raise InvalidInputError(
                f"The answers to {caption.image or caption.document} differ: {caption.text!r} in {found.capture.record.name!r} "
                f"and {shuffled.captions[other].text!r} in {shuffled.capture.record.name!r}. Capture the shuffled images with "
                "the first capture's captions, as `multimodal shuffle --captions STORE` writes them."
            )
        pairs[i] = other
    if not pairs:
        raise InvalidInputError(
            f"Captures {found.capture.record.name!r} and {shuffled.capture.record.name!r} have no image in common."
        )
    rows = {
        (noun.caption, noun.position - shuffled.captions[noun.caption].first): i
        for i, noun in enumerate(shuffled.nouns)
    }
    shared = []
    for noun, neurons in zip(found.nouns, found.sets, strict=True):
        row = rows.get((pairs.get(noun.caption, -1), noun.position - found.captions[noun.caption].first))
        if row is not None:
            shared.append(len(neurons & shuffled.sets[row]) / k)
    return np.array(shared, np.float64)


def _key(found: Multimodal, caption: int) -> str | int:
    named = found.captions[caption].image
    return found.captions[caption].document if named is None else PurePath(named).stem


def cross_image_invariance(found: Multimodal) -> dict[str, float]:
    """Noun → the mean of |S ∩ S'| / k over all pairs of captions that name it; nouns of one caption are left out.

    Computed from how many captions each neuron serves, c: Σ c (c - 1) / (n (n - 1) k).
    """
    result = {}
    for concept in concepts(found):
        n = len(concept.occurrences)
        if n > 1:
            numbers = [number for i in concept.occurrences.tolist() for number in found.sets[i]]
            counts = np.unique(numbers, return_counts=True)[1].astype(np.float64)
            result[concept.word] = float((counts * (counts - 1)).sum() / (n * (n - 1) * found.settings.k))
    return result


def specificity(found: Multimodal) -> dict[str, float]:
    """Noun → mean over its neurons of 1 - (other nouns that the neuron serves) / (other nouns).

    A neuron serves a noun where it is among the k of `concepts`: those in the top k of most of the noun's captions. 1 is a
    neuron of one noun, 0 one of all. Chance is high by this measure (few neurons serve two nouns), so that it says something
    only beside the invariances.
    """
    found_concepts = concepts(found)
    served: dict[int, int] = {}
    for concept in found_concepts:
        for number in concept.neurons.tolist():
            served[number] = served.get(number, 0) + 1
    others = max(len(found_concepts) - 1, 1)
    return {
        concept.word: float(np.mean([1 - (served[number] - 1) / others for number in concept.neurons.tolist()]))
        for concept in found_concepts
        if len(concept.neurons)
    }


@dataclass(frozen=True)
class Summary:
    """One property of one ranking in a line."""

    mean: float
    sd: float
    """Over nouns (of captions, or distinct ones); NaN of fewer than two."""
    n: int


def summarise(values: Iterable[float]) -> Summary:
    """Mean, standard deviation and number of the values that are not NaN."""
    known = np.array([value for value in values if np.isfinite(value)], np.float64)
    spread = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
    return Summary(float(known.mean()) if len(known) else float("nan"), spread, len(known))


def measure(found: Multimodal, shuffled: Multimodal | None = None) -> dict[str, Summary]:
    """All properties that a store (two, with the capture of shuffled images) can tell, by name."""
    sensitive = sensitivity(found)
    result = {
        "sensitivity": summarise(sensitive.share),
        "similarity": summarise(sensitive.similarity),
        "cross-image invariance": summarise(cross_image_invariance(found).values()),
        "specificity": summarise(specificity(found).values()),
    }
    if shuffled is not None:
        result["region invariance"] = summarise(region_invariance(found, shuffled))
    return result


def layers_of(found: Multimodal) -> Sequence[int]:
    """How many of all nouns' neurons lie in each layer of the numbering."""
    numbers = found.first.tokens[found.first.tokens >= 0]
    layers, _ = found.numbering.locate(numbers)
    return [int((layers == layer).sum()) for layer in found.numbering.layers]

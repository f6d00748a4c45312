"""Properties of multi-modal neurons as numbers: sensitivity, invariance, specificity (Pan et al. 2024, section 4).

The paper names these properties; neither it nor its code has exact formulas of sensitivity and specificity, so those here are
ours, and each function says what it computes. All take rankings of any kind, so that baselines (activation alone, activation ×
gradient, random neurons) are measured alike.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.multimodal.concepts import concepts
from actstore.engine.multimodal.rankings import FROM_STORE, REGIONS
from actstore.store.errors import InvalidInputError
from actstore.store.model.root import read_neurons
from actstore.store.model.weights import read_weights
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import FindSettings, Multimodal
    from actstore.store.reader import Capture, Store

    Progress = Callable[[int, int], None]
    Counting = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How far neurons' own tokens mean the noun that they were found for; one entry per noun of a caption."""

    share: NDArray[np.float64]
    """Share of the neurons with the noun among their ten tokens: a token that is the noun but for blanks and capitals, or its
    first sub-token. A neuron's tokens are those that it promotes there: its top ones, or its bottom ones where its activation
    is below zero."""
    similarity: NDArray[np.float64]
    """Mean over the neurons of the cosine between the unembedding row of the noun's first sub-token and the sum of those of
    the neuron's tokens, each of length 1. All rows without their mean over the vocabulary, which they have in common."""


def sensitivity(result: Multimodal) -> Sensitivity:
    """How far the tokens of each noun's neurons mean the noun.

    `InvalidInputError` where the store's table of neurons lacks top tokens.
    """
    store = result.capture.store
    tokens_of = _own_tokens(result)
    texts = [store.token_text(token).strip().casefold() for token in range(store.model.n_vocabulary or 0)]
    rows = read_weights(store.folder, "unembedding")["weight"].float().numpy()
    rows = rows - rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    meaning = {}
    for key, tokens in tokens_of.items():
        total = rows[tokens].sum(axis=0)
        meaning[key] = total / max(float(np.linalg.norm(total)), 1e-12)
    shares, similarities = [], []
    for noun, numbers, signs in zip(result.nouns, result.first.tokens, result.activations() < 0, strict=True):
        keys = [(number, sign) for number, sign in zip(numbers.tolist(), signs.tolist(), strict=True) if number >= 0]
        promotes = [any(token == noun.token or texts[token] == noun.word for token in tokens_of[key]) for key in keys]
        shares.append(np.mean(promotes) if promotes else np.nan)
        similarities.append(np.mean([meaning[key] @ rows[noun.token] for key in keys]) if keys else np.nan)
    return Sensitivity(np.array(shares, np.float64), np.array(similarities, np.float64))


def _own_tokens(result: Multimodal) -> dict[tuple[int, bool], list[int]]:
    """(neuron's number, whether below zero) → the ids of its bottom or top tokens, of all ranked neurons."""
    table = read_neurons(result.capture.folder)
    rows = NeuronIndex({layer.layer: layer.neurons for layer in result.capture.store.model.layers})
    numbers = np.array(sorted(set().union(*result.sets)), np.int64)
    layers, indices = result.numbering.locate(numbers)
    tokens: dict[tuple[int, bool], list[int]] = {}
    for below, column in ((False, "top_tokens"), (True, "bottom_tokens")):
        listed = (
            table[column].take(rows.numbers(layers, indices)).to_pylist() if column in table.column_names else [None]
        )
        if any(ids is None for ids in listed):
            raise InvalidInputError(
                f"{result.capture.folder} lacks the top tokens of neurons. Add them: `store.fill_top_tokens()`."
            )
        tokens |= {(number, below): ids for number, ids in zip(numbers.tolist(), listed, strict=True)}
    return tokens


def region_invariance(result: Multimodal, shuffled: Multimodal) -> NDArray[np.float64]:
    """|S ∩ S'| / k of each noun's neurons before and after the image's patches were shuffled; one entry per noun.

    Captions are matched by their image's file name (without folder and suffix), or by their number where documents name no
    images; their tokens must agree, special ones aside. Nouns of captions that only one of the two has are left out.
    """
    k = result.settings.k
    if shuffled.settings.k != k or shuffled.numbering.layers.tolist() != result.numbering.layers.tolist():
        raise InvalidInputError(
            "Expected as many neurons of the same layers from both captures. Use the same `k` and model."
        )
    number_of = {_key(shuffled, i): i for i in range(len(shuffled.captions))}
    pairs = {}
    for i, caption in enumerate(result.captions):
        other = number_of.get(_key(result, i))
        if other is None:
            continue
        if caption.words.tolist() != shuffled.captions[other].words.tolist():
            raise InvalidInputError(
                f"The answers to {caption.image or caption.document} differ: {caption.text!r} in "
                f"{result.capture.record.name!r} and {shuffled.captions[other].text!r} in {shuffled.capture.record.name!r}. "
                "Capture the shuffled images with the first capture's captions, as "
                "`store.multimodal.shuffle(…, captions=True)` writes them."
            )
        pairs[i] = other
    if not pairs:
        raise InvalidInputError(
            f"Captures {result.capture.record.name!r} and {shuffled.capture.record.name!r} have no image in common."
        )
    rows = {
        (noun.caption, noun.position - shuffled.captions[noun.caption].first): i
        for i, noun in enumerate(shuffled.nouns)
    }
    shared = []
    for noun, neurons in zip(result.nouns, result.sets, strict=True):
        row = rows.get((pairs.get(noun.caption, -1), noun.position - result.captions[noun.caption].first))
        if row is not None:
            shared.append(len(neurons & shuffled.sets[row]) / k)
    return np.array(shared, np.float64)


def _key(result: Multimodal, caption: int) -> str | int:
    image = result.captions[caption].image
    return result.captions[caption].document if image is None else PurePath(image).stem


def cross_image_invariance(result: Multimodal) -> dict[str, float]:
    """Noun → the mean of |S ∩ S'| / k over all pairs of captions with the noun; nouns of one caption are left out.

    Computed from the number c of captions in whose top k each neuron is: Σ c (c - 1) / (n (n - 1) k).
    """
    invariance = {}
    for concept in concepts(result):
        n = len(concept.occurrences)
        if n > 1:
            numbers = [number for i in concept.occurrences.tolist() for number in result.sets[i]]
            counts = np.unique(numbers, return_counts=True)[1].astype(np.float64)
            invariance[concept.word] = float((counts * (counts - 1)).sum() / (n * (n - 1) * result.settings.k))
    return invariance


def specificity(result: Multimodal) -> dict[str, float]:
    """Noun → mean over its neurons of 1 - (other nouns that the neuron belongs to) / (other nouns).

    A neuron belongs to a noun if it is among the k of `concepts`: those in the top k of most of the noun's captions. 1 is a
    neuron of one noun, 0 one of all. It saturates: of many neurons few belong to two nouns by chance, so that random ones have
    almost 1, and more than neurons that are found. `discrimination` tells them apart.
    """
    every_concept = concepts(result)
    n_nouns: dict[int, int] = {}
    for concept in every_concept:
        for number in concept.neurons.tolist():
            n_nouns[number] = n_nouns.get(number, 0) + 1
    others = max(len(every_concept) - 1, 1)
    return {
        concept.word: float(np.mean([1 - (n_nouns[number] - 1) / others for number in concept.neurons.tolist()]))
        for concept in every_concept
        if len(concept.neurons)
    }


def discrimination(result: Multimodal) -> dict[str, float]:
    """Noun → cross-image invariance less the same share between its captions and those of other nouns; -1 to 1.

    D(c) = mean of |S ∩ S'| / k over pairs of occurrences of c - its mean over pairs of an occurrence of c and of another noun.
    Around 0 for random neurons, which share nothing, and for neurons of every noun, which share all; 1 where a noun has the
    same neurons in each caption, and none of another's. Nouns of one caption, and a noun that is the only one, are left out.
    """
    every_concept, k = concepts(result), result.settings.k
    invariance = cross_image_invariance(result)
    counts = {
        concept.word: np.unique(
            np.array([n for i in concept.occurrences.tolist() for n in result.sets[i]], np.int64), return_counts=True
        )
        for concept in every_concept
    }
    total = np.zeros(len(result.numbering))
    for numbers, n in counts.values():
        total[numbers] += n
    n_occurrences = len(result.nouns)
    measured = {}
    for concept in every_concept:
        n_own = len(concept.occurrences)
        if concept.word in invariance and n_own < n_occurrences:
            numbers, n = counts[concept.word]
            shared = float((n * (total[numbers] - n)).sum())
            measured[concept.word] = invariance[concept.word] - shared / (n_own * (n_occurrences - n_own) * k)
    return measured


@dataclass(frozen=True)
class Summary:
    """One property of one ranking."""

    mean: float
    sd: float
    """Standard deviation over nouns (of captions, or distinct ones); NaN of fewer than two."""
    n: int


def summarise(values: Iterable[float]) -> Summary:
    """Mean, standard deviation and number of the values that are not NaN."""
    finite = np.array([value for value in values if np.isfinite(value)], np.float64)
    deviation = float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
    return Summary(float(finite.mean()) if len(finite) else float("nan"), deviation, len(finite))


def measure(result: Multimodal, shuffled: Multimodal | None = None) -> dict[str, Summary]:
    """All properties by name; region invariance with the ranking of the shuffled images' capture only."""
    sensitive = sensitivity(result)
    measured = {
        "sensitivity": summarise(sensitive.share),
        "similarity": summarise(sensitive.similarity),
        "cross-image invariance": summarise(cross_image_invariance(result).values()),
        "specificity": summarise(specificity(result).values()),
        "discrimination": summarise(discrimination(result).values()),
    }
    if shuffled is not None:
        measured["region invariance"] = summarise(region_invariance(result, shuffled))
    return measured


def layers_of(result: Multimodal) -> Sequence[int]:
    """The number of neurons of all nouns in each layer of the numbering."""
    numbers = result.first.tokens[result.first.tokens >= 0]
    layers, _ = result.numbering.locate(numbers)
    return [int((layers == layer).sum()) for layer in result.numbering.layers]


def rankings_of(
    capture: Capture,
    settings: FindSettings,
    replay: Replay | None,
    choose: Callable[[Multimodal], list[int]] | None = None,
    progress: Counting = lambda _: nullcontext(lambda done, total: None),
) -> dict[str, Multimodal]:
    """The nouns' neurons by every ranking; by gradient, which needs `replay`, those of the nouns that `choose` selects.

    `progress`: opened with the name of what is counted for each ranking, gives what is called with the number done and in all.
    """
    from actstore.engine.multimodal.find import find_multimodal

    rankings = {}
    for name in FROM_STORE:
        with progress(f"layers, by {name}") as advance:
            rankings[name] = find_multimodal(capture, replace(settings, by=name), advance)
    if replay is not None:
        from actstore.engine.multimodal.gradients import rank_by_gradient

        first = rankings["contribution"]
        with progress("captions, by gradient") as advance:
            rankings["gradient"] = rank_by_gradient(first, replay, choose(first) if choose else None, advance)
    return rankings


def check_regions(regions: str | None, shuffled: str | None) -> str:
    """What is put in random order, a key of `REGIONS`: unless named, the published way, or pixels where they are captured."""
    if regions is None:
        return "embeddings" if shuffled is None else "pixels"
    if regions not in REGIONS:
        raise InvalidInputError(f"Expected `regions` to be one of {', '.join(REGIONS)}, found {regions!r}.")
    if (regions == "pixels") != (shuffled is not None):
        raise InvalidInputError(
            "The name of a capture of shuffled images, `shuffled`, goes with `regions` 'pixels', and with nothing else. Name "
            "both, or leave `shuffled` out."
        )
    return regions


@dataclass(frozen=True)
class PropertySource:
    """What properties are measured of."""

    capture: Capture
    shuffled: Capture | None
    """The capture of images with shuffled pixels, for regions `pixels`."""
    regions: str
    """A key of `REGIONS`."""
    gradient: bool = False
    """Whether neurons are ranked by activation × gradient, too."""

    @classmethod
    def of(
        cls, store: Store, capture: str | None, shuffled: str | None, regions: str | None, *, gradient: bool
    ) -> PropertySource:
        """The captures by name; `InvalidInputError` where what is named does not go together."""
        chosen = check_regions(regions, shuffled)
        return cls(
            store.capture(capture), None if shuffled is None else store.capture(shuffled), chosen, gradient=gradient
        )

    @property
    def needs_model(self) -> bool:
        """Whether the model runs."""
        return self.gradient or self.regions == "embeddings"

    def measure(
        self,
        settings: FindSettings,
        open_replay: Callable[[Capture], AbstractContextManager[Replay]],
        progress: Counting = lambda _: nullcontext(lambda done, total: None),
    ) -> tuple[dict[str, Multimodal], dict[str, dict[str, Summary]]]:
        """Ranking → the nouns' neurons, and ranking → property → its summary.

        A ranking at random is another draw for the other order of patches: what two draws share is chance. open_replay: gives
        the model of a capture, which is opened only where the model is needed.
        """
        again = replace(settings, seed=settings.seed + 1)
        second: dict[str, Multimodal] = {}
        with open_replay(self.capture) if self.needs_model else nullcontext() as replay:
            first = rankings_of(self.capture, settings, replay if self.gradient else None, progress=progress)
            if self.regions == "embeddings":
                from actstore.engine.multimodal.permuted import permuted_rankings

                assert replay is not None
                with progress("captions, patches permuted") as advance:
                    second = permuted_rankings(first, replay, again.seed, advance)
        if self.shuffled is not None:
            with open_replay(self.shuffled) if self.gradient else nullcontext() as replay:
                second = rankings_of(self.shuffled, again, replay, progress=progress)
        return first, {name: measure(ranked, second.get(name)) for name, ranked in first.items()}

"""Captions put together: for each noun the neurons that serve it over all captions that name it.

Knows nothing about stores beyond what `Multimodal` holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.multimodal.result import Multimodal


@dataclass(frozen=True, eq=False)
class Concept:
    """One noun over all captions."""

    word: str
    occurrences: NDArray[np.int64]
    """Which of the nouns are it."""
    neurons: NDArray[np.int64]
    """Numbers, those in the top k of most captions first, then by mean score; shape [k]."""
    shares: NDArray[np.float64]
    """Share of the noun's captions in whose top k each neuron is."""
    scores: NDArray[np.float64]
    """Mean score over those captions."""
    places: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Of each neuron, where it stands in the ranking: which nouns, and its rank in each."""


def concepts(found: Multimodal, k: int | None = None) -> list[Concept]:
    """Every noun with the k neurons that serve it in most of its captions, the noun of most captions first.

    Of neurons in as many captions' top k, the larger mean score over these comes first, then the smaller number.
    """
    k = k or found.settings.k
    by_word: dict[str, list[int]] = {}
    for i, noun in enumerate(found.nouns):
        by_word.setdefault(noun.word, []).append(i)
    result = []
    for word, rows in sorted(by_word.items(), key=lambda item: (-len(item[1]), item[0])):
        numbers, scores = found.first.tokens[rows], found.first.values[rows].astype(np.float64)
        there = numbers >= 0
        neurons, place, counts = np.unique(numbers[there], return_inverse=True, return_counts=True)
        means = np.bincount(place, scores[there], len(neurons)) / np.maximum(counts, 1)
        order = np.lexsort((neurons, -means, -counts))[:k]
        nouns, ranks = np.nonzero(there)
        places = [(np.array(rows)[nouns[place == n]], ranks[place == n]) for n in order.tolist()]
        result.append(Concept(word, np.array(rows), neurons[order], counts[order] / len(rows), means[order], places))
    return result

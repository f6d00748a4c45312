"""Concepts: for each noun, the neurons that are in its top k in most of the captions with the noun."""

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
    """The numbers of its occurrences among the nouns of captions."""
    neurons: NDArray[np.int64]
    """Numbers of neurons, those in the top k of most captions first, then by mean score; [k]."""
    shares: NDArray[np.float64]
    """Share of the noun's captions in whose top k each neuron is; [k]."""
    scores: NDArray[np.float64]
    """Mean score over those captions; [k]."""
    places: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Where each neuron is in the ranking: numbers of nouns, and its rank in each."""


def concepts(result: Multimodal, k: int | None = None) -> list[Concept]:
    """Every noun with the k neurons that are in its top k in most of its captions, the noun of most captions first.

    Among neurons in the top k of equally many captions, the larger mean score comes first, then the smaller number.
    """
    k = k or result.settings.k
    by_word: dict[str, list[int]] = {}
    for i, noun in enumerate(result.nouns):
        by_word.setdefault(noun.word, []).append(i)
    made = []
    for word, rows in sorted(by_word.items(), key=lambda item: (-len(item[1]), item[0])):
        numbers, scores = result.first.tokens[rows], result.first.values[rows].astype(np.float64)
        is_neuron = numbers >= 0
        neurons, index, counts = np.unique(numbers[is_neuron], return_inverse=True, return_counts=True)
        means = np.bincount(index, scores[is_neuron], len(neurons)) / np.maximum(counts, 1)
        order = np.lexsort((neurons, -means, -counts))[:k]
        nouns, ranks = np.nonzero(is_neuron)
        places = [(np.array(rows)[nouns[index == n]], ranks[index == n]) for n in order.tolist()]
        made.append(Concept(word, np.array(rows), neurons[order], counts[order] / len(rows), means[order], places))
    return made

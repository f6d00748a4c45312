"""Neuron-based prediction: which option a domain's neurons stand for, read from their activations alone.

Chen, Dejl and Toni (arXiv 2406.10868, section 6.2) group the neurons found for a domain's queries and predict the answers of
other queries of that domain from these neurons' activity. How activity becomes an option is in a supplement that could not be
confirmed; here it is the plainest reading that learns nothing but averages: the nearest centroid. Plain numpy. Knows nothing
about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.naica.selection import pool_by_label

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.naica.selection import Chosen
    from actstore.store.capture.attributions import Attributions


@dataclass(frozen=True)
class Accuracy:
    """How often held-out prompts of one label are answered rightly, with one seed."""

    label: str
    seed: int
    prompts: int
    neurons: int
    guess: float
    """By chance."""
    prompt: float
    """By the whole model, among the options."""
    neuron: float
    """From the activations of the label's neurons: all those of the queries of its other half."""
    random: float
    """From the activations of as many random neurons."""
    pool_neuron: float
    """From those of the label's neurons alone that have the largest summed scores, the `pool`."""
    pool_random: float
    """From the activations of as many random neurons."""


def predict_options(
    known: NDArray[np.float32], answers: Sequence[str], asked: NDArray[np.float32], options: Sequence[Sequence[str]]
) -> list[str]:
    """For each asked prompt, the one of its options whose known prompts' mean activations are nearest to its own.

    Each neuron is scaled by its standard deviation over the known prompts; one that does not vary there says nothing. Distances
    are Euclidean. An option that is the answer of no known prompt is predicted only where a prompt has no other; ties, and
    no neurons at all, go to the earlier option.

    known: activations [prompt, neuron] of prompts whose right option is in `answers` [prompt]. asked: [prompt, neuron].
    options: of each asked prompt. Activations that are not finite count as the neuron's mean.
    """
    letters = sorted(set(answers))
    wide = np.where(np.isfinite(known), known, np.nan).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.nan_to_num(np.nanmean(wide, axis=0)) if len(wide) else np.zeros(known.shape[1])
    wide = np.where(np.isfinite(wide), wide, mean)
    deviation = wide.std(axis=0) if len(wide) else np.zeros(known.shape[1])
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    rows = np.array([letters.index(answer) for answer in answers], np.int64)
    centroids = np.stack([wide[rows == i].mean(axis=0) for i in range(len(letters))]) if letters else wide[:0]
    values = np.where(np.isfinite(asked), asked, mean)
    # |x - c|² without |x|², which is the same for all options of a prompt.
    scaled = (centroids - mean) * scale
    distances = (scaled**2).sum(axis=1) - 2 * ((values - mean) * scale) @ scaled.T
    column = {letter: i for i, letter in enumerate(letters)}
    return [
        min(of_prompt, key=lambda letter, row=row: row[column[letter]] if letter in column else np.inf)  # type: ignore[misc]
        for of_prompt, row in zip(options, distances, strict=True)
    ]


def activations_of(attributions: Attributions, neurons: NDArray[np.int64]) -> NDArray[np.float32]:
    """The activations [prompt, neuron] of some neurons at the last position of every prompt, in the order of the prompts."""
    found = np.empty((attributions.prompts.num_rows, len(neurons)), np.float32)
    for rows, values in attributions.prompt_scores("activation"):
        found[rows] = values[:, neurons]
    return found


def accuracies(
    attributions: Attributions,
    chosen: Chosen,
    labelled: tuple[str, list[str], NDArray[np.int64]],
    halves: NDArray[np.int64],
    pool: int,
    seed: int,
) -> Iterator[Accuracy]:
    """How well each label's held-out prompts are answered, by the whole model and from neurons alone.

    chosen: for the queries of half 0 alone. labelled: the label's name, its values, and the one of each query. halves: 0 or 1
    for each query; those of half 1 are predicted from centroids of those of half 0.
    """
    label_name, labels, of_queries = labelled
    prompts = attributions.prompts
    of_prompts = prompts["query"].to_numpy()
    answers, options = np.array(prompts["answer"].to_pylist()), prompts["options"].to_pylist()
    correct = np.array(prompts["correct"].to_pylist(), bool)
    rng = np.random.default_rng([seed, 3])
    pooled = pool_by_label(chosen, label_name, attributions.n_neurons)
    sets: dict[str, list[NDArray[np.int64]]] = {}
    for label in labels:
        found = np.array([neuron for neuron, _ in pooled.get(label, [])], np.int64)
        other = rng.choice(attributions.n_neurons, len(found), replace=False)
        sets[label] = [found, other, found[:pool], other[:pool]]
    used = np.unique(np.concatenate([np.concatenate(some) for some in sets.values()]))
    values = activations_of(attributions, used)
    for number, label in enumerate(labels):
        mine = of_queries[of_prompts] == number
        known, asked = (np.flatnonzero(mine & (halves[of_prompts] == half)) for half in (0, 1))
        given = [options[prompt] for prompt in asked]
        shares = []
        for neurons in sets[label]:
            columns = values[:, np.searchsorted(used, neurons)]
            predicted = predict_options(columns[known], answers[known].tolist(), columns[asked], given)
            shares.append(float((np.array(predicted) == answers[asked]).mean()))
        guess = float(np.mean([1 / len(letters) for letters in given]))
        yield Accuracy(label, seed, len(asked), len(sets[label][0]), guess, float(correct[asked].mean()), *shares)

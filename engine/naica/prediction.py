"""Neuron-based prediction: the option of a prompt, predicted from the activations of its domain's neurons alone.

Chen, Dejl and Toni (arXiv 2406.10868, section 6.2) group the neurons of a domain's queries and predict the answers of other
queries of that domain from the activity of these neurons. How activity becomes an option is in a supplement that could not be
confirmed; this is the simplest reading, which learns nothing but averages: the nearest centroid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.naica.selection import pool_by_label

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.naica.selection import QueryLabels, SelectedNeurons
    from actstore.store.capture.questions.attributions import Attributions


@dataclass(frozen=True)
class Accuracy:
    """The share of held-out prompts of one label that each predictor answers correctly, with one seed."""

    label: str
    seed: int
    prompts: int
    neurons: int
    guess: float
    prompt: float
    neuron: float
    random: float
    pool_neuron: float
    pool_random: float


@dataclass(frozen=True)
class Predictor:
    """One way to predict an option; the field of `Accuracy` of the same name is its accuracy."""

    label: str
    """The heading of its column."""
    help: str
    """One sentence for the documentation."""


PREDICTORS: Final[dict[str, Predictor]] = {
    "guess": Predictor("guess", "By chance."),
    "prompt": Predictor("prompt", "By the whole model, among the options."),
    "neuron": Predictor(
        "its neurons", "From the activations of the label's neurons: all those of the queries of its other half."
    ),
    "random": Predictor("random", "From the activations of as many random neurons."),
    "pool_neuron": Predictor(
        "top neurons", "From the activations of the `pool` neurons of the label with the largest summed scores."
    ),
    "pool_random": Predictor("random, as many as top", "From the activations of as many random neurons."),
}
"""Field of `Accuracy` → predictor, in the order of the table."""


def predict_options(
    training: NDArray[np.float32], answers: Sequence[str], test: NDArray[np.float32], options: Sequence[Sequence[str]]
) -> list[str]:
    """For each test prompt, the one of its options whose training prompts' mean activations are nearest to its own.

    Each neuron is scaled by its standard deviation over the training prompts; one that does not vary there is ignored.
    Distances are Euclidean. An option that is the answer of no training prompt is predicted only where a prompt has no other;
    ties, and no neurons at all, go to the earlier option.

    training: activations [prompt, neuron] of prompts whose right option is in `answers` [prompt]. test: [prompt, neuron].
    options: of each test prompt. Activations that are not finite count as the neuron's mean.
    """
    letters = sorted(set(answers))
    wide = np.where(np.isfinite(training), training, np.nan).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.nan_to_num(np.nanmean(wide, axis=0)) if len(wide) else np.zeros(training.shape[1])
    wide = np.where(np.isfinite(wide), wide, mean)
    deviation = wide.std(axis=0) if len(wide) else np.zeros(training.shape[1])
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    rows = np.array([letters.index(answer) for answer in answers], np.int64)
    centroids = np.stack([wide[rows == i].mean(axis=0) for i in range(len(letters))]) if letters else wide[:0]
    values = np.where(np.isfinite(test), test, mean)
    # |x - c|² without |x|², which is the same for all options of a prompt.
    scaled = (centroids - mean) * scale
    distances = (scaled**2).sum(axis=1) - 2 * ((values - mean) * scale) @ scaled.T
    column = {letter: i for i, letter in enumerate(letters)}
    return [
        min(of_prompt, key=lambda letter, row=row: row[column[letter]] if letter in column else np.inf)  # type: ignore[misc]
        for of_prompt, row in zip(options, distances, strict=True)
    ]


def activations_of(attributions: Attributions, neurons: NDArray[np.int64]) -> NDArray[np.float32]:
    """The activations [prompt, neuron] of `neurons` at the last position of every prompt, in the order of the prompts."""
    activations = np.empty((attributions.prompts.num_rows, len(neurons)), np.float32)
    for rows, values in attributions.prompt_scores("activation"):
        activations[rows] = values[:, neurons]
    return activations


def accuracies(
    attributions: Attributions,
    selected: SelectedNeurons,
    query_labels: QueryLabels,
    halves: NDArray[np.int64],
    pool: int,
    seed: int,
) -> Iterator[Accuracy]:
    """The accuracy of every predictor on each label's held-out prompts.

    selected: neurons of the queries of half 0 alone. halves: 0 or 1 for each query; those of half 1 are predicted from
    centroids of those of half 0. pool: number of neurons of the pool. seed: of the random neurons.
    """
    labels = query_labels.values
    prompts = attributions.prompts
    query_of_prompt = prompts["query"].to_numpy()
    answers, options = np.array(prompts["answer"].to_pylist()), prompts["options"].to_pylist()
    correct = np.array(prompts["correct"].to_pylist(), bool)
    rng = np.random.default_rng([seed, 3])
    pooled = pool_by_label(selected, query_labels.label, attributions.n_neurons)
    sets: dict[str, list[NDArray[np.int64]]] = {}
    for label in labels:
        neurons = np.array([neuron for neuron, _ in pooled.get(label, [])], np.int64)
        random = rng.choice(attributions.n_neurons, len(neurons), replace=False)
        sets[label] = [neurons, random, neurons[:pool], random[:pool]]
    used = np.unique(np.concatenate([np.concatenate(of_label) for of_label in sets.values()]))
    values = activations_of(attributions, used)
    for number, label in enumerate(labels):
        of_label = query_labels.of_query[query_of_prompt] == number
        training, test = (np.flatnonzero(of_label & (halves[query_of_prompt] == half)) for half in (0, 1))
        test_options = [options[prompt] for prompt in test]
        shares = []
        for neurons in sets[label]:
            columns = values[:, np.searchsorted(used, neurons)]
            predicted = predict_options(columns[training], answers[training].tolist(), columns[test], test_options)
            shares.append(float((np.array(predicted) == answers[test]).mean()))
        guess = float(np.mean([1 / len(letters) for letters in test_options]))
        yield Accuracy(label, seed, len(test), len(sets[label][0]), guess, float(correct[test].mean()), *shares)

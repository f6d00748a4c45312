"""Contributions of neurons to target tokens: the specification, in plain numpy and float64."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.contribution.sums import ContributionSums, TopNeurons
from actstore.kernels.contribution.targets import Targets
from actstore.kernels.floats import FloatArray, as_array, decode

if TYPE_CHECKING:
    import torch

    Array = torch.Tensor | FloatArray


def contribution(activations: "Array", write_vectors: "Array", targets: Targets) -> NDArray[np.float64]:
    """`a[neuron, token] · (w_neuron · d_token)`; see `api.contribution`."""
    directions = _float64(targets.directions)
    if targets.rows is not None:
        directions = directions[targets.rows]
    if targets.gain is not None:
        directions = directions * targets.gain
    if targets.scale is not None:
        directions = directions * targets.scale[:, None]
    with np.errstate(invalid="ignore"):
        return _float64(activations) * (_float64(write_vectors) @ directions.T)


def top_contribution(activations: "Array", write_vectors: "Array", targets: Targets, k: int) -> TopNeurons:
    """The k neurons with the largest score at every token; see `api.top_contribution`."""
    scores = contribution(activations, write_vectors, targets)
    best = TopNeurons(np.full((targets.n_tokens, k), -np.inf, np.float32), np.full((targets.n_tokens, k), -1))
    for token, token_scores in enumerate(scores.T):
        token_scores = np.where(np.isnan(token_scores), -np.inf, token_scores)
        neurons = [neuron for neuron in np.argsort(-token_scores, kind="stable")[:k] if token_scores[neuron] > -np.inf]
        best.scores[token, : len(neurons)] = token_scores[neurons]
        best.neurons[token, : len(neurons)] = neurons
    return best


def sum_contributions(
    activations: "Array", write_vectors: "Array", targets: Targets, groups: NDArray[np.integer], n_groups: int
) -> ContributionSums:
    """The scores, summed over the tokens of each group; see `api.sum_contributions`."""
    tokens = np.flatnonzero((groups >= 0).any(axis=1))
    values = as_array(activations)[:, tokens]
    scores = contribution(values, write_vectors, targets.take(tokens))
    sums = ContributionSums.empty(n_groups, len(values))
    for i, token in enumerate(tokens):
        finite = np.isfinite(decode(values[:, i]))
        score = np.where(finite, scores[:, i], 0)
        for group in groups[token][groups[token] >= 0]:
            sums.total[group] += score
            sums.magnitude[group] += np.abs(score)
            sums.count[group] += 1
            sums.non_finite[group] += ~finite
    return sums


def _float64(values: "Array") -> NDArray[np.float64]:
    return decode(as_array(values)).astype(np.float64)

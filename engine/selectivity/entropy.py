"""The selection of neurons by the entropy of a number per neuron and label: LAPE's, and what its baselines share with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Selection:
    """The selected neurons, the most selective first."""

    entropies: NDArray[np.float64]
    """Entropy of every neuron over the labels, in nats; NaN where it never fires; shape [neuron]."""
    threshold: float
    """A neuron belongs to the labels whose probability lies above it."""
    n_requested: int
    """Number of neurons that `share` amounts to."""
    n_candidates: int
    """Number of neurons above the threshold for at least one label."""
    neurons: NDArray[np.int64]
    """Shape [selected]; `n_requested` of them, or all candidates where these are fewer."""
    members: NDArray[np.bool_]
    """Which labels each belongs to, at least one; shape [selected, label]."""


def label_entropies(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """−Σ p′ ln p′ over the labels in nats, p′ = p / Σ p, with 0·ln 0 = 0; NaN where all are 0; shape [neuron]."""
    total = probabilities.sum(axis=1)
    shares = probabilities / np.where(total > 0, total, 1)[:, None]
    entropies: NDArray[np.float64] = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1) + 0.0  # no −0
    entropies[total == 0] = np.nan
    return entropies


def select_neurons(
    probabilities: NDArray[np.float64], share: float = 0.01, activation_quantile: float = 0.95
) -> Selection:
    """LAPE's selection from probabilities [neuron, label]: Tang et al., section 2.2.

    p′ = p / Σ_labels p, entropy −Σ p′ ln p′ with 0·ln 0 = 0. The threshold is the round(quantile · n)-th smallest of all n
    probabilities, and "above" is strict, both as in the reference. Candidates are neurons above it for at least one label;
    of them the round(share · all neurons) of lowest entropy are selected. Ties go to the neuron with the larger highest
    probability, then to the earlier one. A neuron that never fires has no entropy and is no candidate.
    """
    n_neurons = len(probabilities)
    ranked = np.sort(probabilities, axis=None)
    threshold = float(ranked[max(round(len(ranked) * activation_quantile), 1) - 1]) if len(ranked) else 0.0
    entropies = label_entropies(probabilities)
    above = probabilities > threshold
    candidates = np.flatnonzero(above.any(axis=1))
    order = np.lexsort((candidates, -probabilities[candidates].max(axis=1, initial=0), entropies[candidates]))
    n_requested = round(n_neurons * share)
    neurons = candidates[order[:n_requested]]
    return Selection(entropies, threshold, n_requested, len(candidates), neurons, above[neurons])

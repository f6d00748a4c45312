"""Knowledge neurons: the few neurons that one fact's prompts, worded differently, have in common.

Following Dai et al. (2022, arXiv 2104.08696, section 3.2), from the attributions of each prompt, however they were made. Plain
numpy. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.arguments import Typed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Refinement(Typed):
    """Which neurons are kept for a fact; the defaults are the paper's."""

    keep: float = 0.2
    """A prompt keeps neurons with at least this share of its largest attribution."""
    share: float = 0.7
    """A neuron must be kept by at least this share of the prompts, to begin with."""
    step: float = 0.05
    """By how much that share is moved at a time."""
    at_least: int = 2
    at_most: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "share", "step"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share above 0 and at most 1, not {getattr(self, name)}")
        if not 0 <= self.at_least <= self.at_most:
            raise ValueError(f"at_least must be from 0 to at_most = {self.at_most}, not {self.at_least}")


@dataclass(frozen=True)
class KnowledgeNeurons:
    """The neurons of one fact."""

    neurons: NDArray[np.int64]
    """Their indices in the attributions, ascending."""
    n_prompts: NDArray[np.int64]
    """How many prompts keep each of them."""
    share: float
    """The share of prompts that was asked for in the end."""


def knowledge_neurons(attributions: NDArray[np.floating], refinement: Refinement | None = None) -> KnowledgeNeurons:
    """The neurons that most prompts of a fact agree on.

    A prompt keeps the neurons with `attribution ≥ keep · max`; a prompt without a positive attribution keeps none, and NaN
    is never kept. Neurons kept by `share` of the prompts are the fact's. While they are fewer than `at_least` the share is
    lowered by `step`, down to a single prompt; while they are more than `at_most` it is raised, up to all prompts. It never
    turns round: where a step jumps over the range, the larger of the two sets stands.

    attributions: [prompt, neuron], neurons of all layers side by side. Raises ValueError for other shapes and no prompts.
    """
    refinement = refinement or Refinement()
    if attributions.ndim != 2 or not len(attributions):
        raise ValueError(f"attributions must be [prompt, neuron] with a prompt or more, not {list(attributions.shape)}")
    n_prompts = len(attributions)
    finite = np.where(np.isnan(attributions), -np.inf, attributions)
    largest = finite.max(axis=1, keepdims=True, initial=-np.inf)
    counts = ((finite >= refinement.keep * largest) & (largest > 0)).sum(axis=0)

    def share_after(moved: int) -> float:
        """Rounded, so that steps do not add up to 0.7499999."""
        return round(min(1.0, max(0.0, refinement.share + moved * refinement.step)), 9)

    def kept(moved: int) -> NDArray[np.int64]:
        return np.flatnonzero(counts >= max(1, int(np.ceil(n_prompts * share_after(moved) - 1e-9))))

    moved, found = 0, kept(0)
    while len(found) < refinement.at_least and share_after(moved) * n_prompts > 1:
        moved -= 1
        found = kept(moved)
    while moved >= 0 and len(found) > refinement.at_most and share_after(moved) < 1:
        after = kept(moved + 1)
        if len(after) < refinement.at_least:
            break
        moved, found = moved + 1, after
    return KnowledgeNeurons(found, counts[found], share_after(moved))

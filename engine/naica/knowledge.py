"""Knowledge neurons: the few neurons that differently worded prompts of one fact have in common.

Dai et al. (2022, arXiv 2104.08696, section 3.2), from the attributions of each prompt, of whatever kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Refinement(Typed):
    """Which neurons are selected for a fact; the defaults are the paper's."""

    keep: float = 0.2
    """A prompt selects the neurons with at least this share of its largest attribution."""
    share: float = 0.7
    """At first, a neuron must be selected by at least this share of the prompts."""
    step: float = 0.05
    """By how much that share changes at a time."""
    at_least: int = 2
    """Fewer neurons than this lower the share."""
    at_most: int = 5
    """More neurons than this raise the share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "share", "step"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidInputError(f"`{name}` must be a share above 0 and at most 1, found {getattr(self, name)}.")
        if not 0 <= self.at_least <= self.at_most:
            raise InvalidInputError(
                f"`at_least` must be from 0 to `at_most`, which is {self.at_most}, found {self.at_least}."
            )

    def prompts_needed(self, n_prompts: int) -> int:
        """The number of prompts, of `n_prompts`, that `share` amounts to at first."""
        return max(1, int(np.ceil(n_prompts * self.share - 1e-9)))

    @property
    def fewest_prompts(self) -> int:
        """The smallest number of prompts of which `share` is not all, so that it can be raised; 0 where it is always all."""
        if self.share >= 1:
            return 0
        return next(n for n in range(2, int(2 / (1 - self.share)) + 3) if self.prompts_needed(n) < n)


@dataclass(frozen=True)
class KnowledgeNeurons:
    """The neurons of one fact."""

    neurons: NDArray[np.int64]
    """Their indices in the attributions, ascending."""
    n_prompts: NDArray[np.int64]
    """How many prompts select each of them."""
    share: float
    """The share of prompts that was required in the end."""


def knowledge_neurons(attributions: NDArray[np.floating], refinement: Refinement | None = None) -> KnowledgeNeurons:
    """The neurons that most prompts of a fact agree on.

    A prompt selects the neurons with `attribution ≥ keep · max`; a prompt without a positive attribution selects none, and NaN
    is never selected. Neurons that `share` of the prompts select are the fact's. While they are fewer than `at_least` the
    share is lowered by `step`, down to a single prompt; while they are more than `at_most` it is raised, up to all prompts.
    The direction never changes: where one step jumps over the range, the larger of the two sets is the result.

    attributions: [prompt, neuron], the neurons of all layers side by side. Raises `InvalidInputError` for other shapes and for
    no prompts.

    >>> knowledge_neurons(attributions.scores_of(0, "ig")).neurons
    """
    refinement = refinement or Refinement()
    if attributions.ndim != 2 or not len(attributions):
        raise InvalidInputError(
            f"`attributions` must be [prompt, neuron] with at least one prompt, found shape {list(attributions.shape)}."
        )
    n_prompts = len(attributions)
    comparable = np.where(np.isnan(attributions), -np.inf, attributions)
    largest = comparable.max(axis=1, keepdims=True, initial=-np.inf)
    counts = ((comparable >= refinement.keep * largest) & (largest > 0)).sum(axis=0)

    def share_after(n_steps: int) -> float:
        """The share after steps up, or down where negative; rounded, so that steps do not add up to 0.7499999."""
        return round(min(1.0, max(0.0, refinement.share + n_steps * refinement.step)), 9)

    def neurons_after(n_steps: int) -> NDArray[np.int64]:
        return np.flatnonzero(counts >= max(1, int(np.ceil(n_prompts * share_after(n_steps) - 1e-9))))

    n_steps, neurons = 0, neurons_after(0)
    while len(neurons) < refinement.at_least and share_after(n_steps) * n_prompts > 1:
        n_steps -= 1
        neurons = neurons_after(n_steps)
    while n_steps >= 0 and len(neurons) > refinement.at_most and share_after(n_steps) < 1:
        fewer_neurons = neurons_after(n_steps + 1)
        if len(fewer_neurons) < refinement.at_least:
            break
        n_steps, neurons = n_steps + 1, fewer_neurons
    return KnowledgeNeurons(neurons, counts[neurons], share_after(n_steps))

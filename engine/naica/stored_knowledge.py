"""Knowledge neurons of every query of a store, one query in memory at a time.

The method is in `knowledge`, the stored scores in `store.capture.questions.attributions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.naica.knowledge import KnowledgeNeurons, Refinement, knowledge_neurons

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.questions.attributions import Attributions


FEW: Final = 0.1
"""Up to this share of the queries may have more neurons, or fewer, than were asked for without a warning."""


def size_warning(sizes: Sequence[int], attributions: Attributions, refinement: Refinement | None = None) -> str:
    """A warning where queries have other numbers of neurons than the refinement is to give; empty otherwise.

    sizes: [query] number of knowledge neurons. It says how many prompts the refinement takes, where there are too few.
    """
    refinement = refinement or Refinement()
    n_neurons = np.asarray(sizes, np.int64)
    outside = (n_neurons < refinement.at_least) | (n_neurons > refinement.at_most)
    if outside.sum() <= FEW * len(n_neurons):
        return ""
    n_prompts = int(np.median(attributions.queries["n_prompts"].to_numpy()[outside]))
    sentence = (
        f"{int(outside.sum()):,} of {len(n_neurons):,} queries have not {refinement.at_least} to {refinement.at_most} "
        f"knowledge neurons, but {n_neurons[outside].mean():.1f} in the mean, at {n_prompts} prompts per query."
    )
    fewest = refinement.fewest_prompts
    if n_prompts >= fewest:
        return f"{sentence} More prompts of each query leave fewer neurons that they share by chance."
    return (
        f"{sentence} A share of {refinement.share:g} is all of them, and can be raised from {fewest} prompts on; one step of "
        f"{refinement.step:g} is one prompt from {int(np.ceil(1 / refinement.step - 1e-9))} on."
    )


def knowledge_neurons_of(
    attributions: Attributions, query: int, refinement: Refinement | None = None, kind: str = "ig"
) -> KnowledgeNeurons:
    """The knowledge neurons of one query, by its row in `queries`; flat ids over all attributed neurons."""
    return knowledge_neurons(attributions.scores_of(query, kind), refinement)


def each_knowledge_neurons(
    attributions: Attributions, refinement: Refinement | None = None, kind: str = "ig"
) -> Iterator[tuple[int, KnowledgeNeurons]]:
    """(row of `queries`, its knowledge neurons) of every query, in order; errors as `prompt_scores`.

    >>> for query, result in each_knowledge_neurons(attributions):
    ...     print(query, attributions.neuron_names(result.neurons))
    """
    counts = attributions.queries["n_prompts"].to_numpy()
    query_of = np.repeat(np.arange(len(counts)), counts)
    prompts: list[NDArray[np.float32]] = []
    for rows, scores in attributions.prompt_scores(kind):
        for query, score in zip(query_of[rows].tolist(), scores, strict=True):
            prompts.append(score)
            if len(prompts) == counts[query]:
                yield query, knowledge_neurons(np.stack(prompts), refinement)
                prompts = []
        # Copies: a view would keep the whole block in memory for one row of it.
        prompts = [score.copy() for score in prompts]

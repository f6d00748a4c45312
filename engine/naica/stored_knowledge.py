"""Knowledge neurons of every query of a store, one query in memory at a time.

The method is in `knowledge`, the stored scores in `store.capture.questions.attributions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.naica.knowledge import KnowledgeNeurons, Refinement, knowledge_neurons

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.questions.attributions import Attributions


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

"""Knowledge neurons of every query of a store: what most of its prompts agree on.

`knowledge` has the method, `store.attributions` the numbers; this brings them together, one query in memory at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.naica.knowledge import KnowledgeNeurons, Refinement, knowledge_neurons

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.capture.attributions import Attributions


def knowledge_neurons_of(
    attributions: Attributions, query: int, refinement: Refinement | None = None, kind: str = "ig"
) -> KnowledgeNeurons:
    """The knowledge neurons of one query, by its row in `queries`; places among all attributed neurons."""
    return knowledge_neurons(attributions.scores_of(query, kind), refinement)


def each_knowledge_neurons(
    attributions: Attributions, refinement: Refinement | None = None, kind: str = "ig"
) -> Iterator[tuple[int, KnowledgeNeurons]]:
    """(row of `queries`, its knowledge neurons) of every query, in order; errors as `prompt_scores`.

    >>> for query, found in each_knowledge_neurons(attributions): print(attributions.neuron_names(found.neurons))
    """
    counts = attributions.queries["n_prompts"].to_numpy()
    query_of = np.repeat(np.arange(len(counts)), counts)
    waiting: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
    for rows, scores in attributions.prompt_scores(kind):
        for query, score in zip(query_of[rows].tolist(), scores, strict=True):
            waiting.append(score)
            if len(waiting) == counts[query]:
                yield query, knowledge_neurons(np.stack(waiting), refinement)
                waiting = []
        waiting = [score.copy() for score in waiting]  # so that the block is not held for a row of it

"""A subset of the prompts of a capture of questions, with the interface of all of its attributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.capture.questions.attributions import Attributions


def subset_of_prompts(attributions: Attributions, included: NDArray[np.bool_]) -> Attributions:
    """The attributions of the prompts in the mask `included` [prompt]; a query's scores are summed over these prompts alone.

    Queries without any of them are left out; rows are renumbered, in the same order.
    """
    return cast("Attributions", _PromptSubset(attributions, included))


class _PromptSubset:
    """What the methods read of `Attributions`, of a subset of the prompts."""

    def __init__(self, whole: Attributions, included: NDArray[np.bool_]) -> None:
        """included: [prompt]."""
        self._whole = whole
        queries, query_of = np.unique(whole.prompts["query"].to_numpy()[included], return_inverse=True)
        self._rows = np.where(included, np.cumsum(included) - 1, -1)
        self._query_of, self._counts = query_of, np.bincount(query_of, minlength=len(queries))
        self.capture, self.store = whole.capture, whole.store
        self.kinds, self.n_neurons = whole.kinds, whole.n_neurons
        self.queries: pa.Table = whole.queries.take(queries)
        prompts = whole.prompts.filter(included)
        self.prompts: pa.Table = prompts.set_column(prompts.column_names.index("query"), "query", [query_of])

    def prompt_scores(self, kind: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for rows, scores in self._whole.prompt_scores(kind):
            included = self._rows[rows] >= 0
            if included.any():
                yield self._rows[rows][included], scores[included]

    def query_scores(self, kind: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        # A query's prompts are consecutive; those of the last query of a block may continue in the next.
        total, n_missing = np.zeros(self.n_neurons), int(self._counts[0]) if len(self._counts) else 0
        for rows, scores in self.prompt_scores(kind):
            done, sums = [], []
            for query, score in zip(self._query_of[rows].tolist(), scores, strict=True):
                total += score
                n_missing -= 1
                if not n_missing:
                    done.append(query)
                    sums.append(total.astype(np.float32))
                    total[:] = 0
                    n_missing = int(self._counts[query + 1]) if query + 1 < len(self._counts) else 0
            if done:
                yield np.array(done, np.int64), np.stack(sums)

"""Some prompts of a capture of questions, with the interface of all of its attributions. Knows nothing about models."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.capture.attributions import Attributions


def part_of(attributions: Attributions, kept: NDArray[np.bool_]) -> Attributions:
    """The attributions of the prompts `kept` [prompt]: of their queries, scores are summed over these prompts alone.

    Queries without any of them are not there; rows are numbered anew, in the same order.
    """
    return cast("Attributions", _Part(attributions, kept))


class _Part:
    """Some prompts' attributions, for whoever reads them as if they were all; queries without any are not there."""

    def __init__(self, whole: Attributions, kept: NDArray[np.bool_]) -> None:
        """kept: [prompt]."""
        self._whole = whole
        queries, of_kept = np.unique(whole.prompts["query"].to_numpy()[kept], return_inverse=True)
        self._rows = np.where(kept, np.cumsum(kept) - 1, -1)
        self._query_of, self._counts = of_kept, np.bincount(of_kept, minlength=len(queries))
        self.capture, self.store = whole.capture, whole.store
        self.kinds, self.n_neurons = whole.kinds, whole.n_neurons
        self.queries: pa.Table = whole.queries.take(queries)
        prompts = whole.prompts.filter(kept)
        self.prompts: pa.Table = prompts.set_column(prompts.column_names.index("query"), "query", [of_kept])

    def prompt_scores(self, kind: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for rows, scores in self._whole.prompt_scores(kind):
            here = self._rows[rows] >= 0
            if here.any():
                yield self._rows[rows][here], scores[here]

    def query_scores(self, kind: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        # A query's prompts follow one another; those of the last query of a block may go on in the next.
        total, left = np.zeros(self.n_neurons), int(self._counts[0]) if len(self._counts) else 0
        for rows, scores in self.prompt_scores(kind):
            done, sums = [], []
            for query, score in zip(self._query_of[rows].tolist(), scores, strict=True):
                total += score
                left -= 1
                if not left:
                    done.append(query)
                    sums.append(total.astype(np.float32))
                    total[:] = 0
                    left = int(self._counts[query + 1]) if query + 1 < len(self._counts) else 0
            if done:
                yield np.array(done, np.int64), np.stack(sums)

"""Attributions whose scores a test has chosen, with the interface of those in a store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WIDTH = 10
"""Neurons of a layer."""


class PlantedAttributions:
    """Scores [query, prompt, neuron] by kind, handed out in blocks of `block` rows in memory that is used again."""

    def __init__(self, block: int = 3, correct: list[bool] | None = None, **scores: Any) -> None:
        self.scores: dict[str, NDArray[np.float32]] = {kind: np.asarray(s, np.float32) for kind, s in scores.items()}
        self.kinds, self.block = tuple(scores), block
        n_queries, n_prompts, self.n_neurons = next(iter(self.scores.values())).shape
        right = [True] * n_queries if correct is None else correct
        self.queries = pa.table(
            {
                "query": [f"q{i}" for i in range(n_queries)],
                "domain": [("physics", "biology")[i % 2] for i in range(n_queries)],
                "n_prompts": [n_prompts] * n_queries,
                "correct": pa.array(right, pa.bool_()),
                "first_prompt": [i * n_prompts for i in range(n_queries)],
            }
        )
        of_prompts = np.repeat(np.arange(n_queries), n_prompts)
        self.prompts = pa.table(
            {
                "query": of_prompts,
                "options": pa.array([["A", "B", "C", "D"]] * len(of_prompts), pa.list_(pa.string())),
                "correct": pa.array([right[q] for q in of_prompts], pa.bool_()),
            }
        )
        widths = {layer: min(WIDTH, self.n_neurons - at) for layer, at in enumerate(range(0, self.n_neurons, WIDTH))}
        record = SimpleNamespace(name="questions", layers=lambda _site: widths)
        self.capture = SimpleNamespace(record=record, store=SimpleNamespace(model=SimpleNamespace(name="planted")))

    def neuron_names(self, flat: NDArray[np.int64]) -> list[str]:
        return [f"L{n // WIDTH}.N{n % WIDTH}" for n in flat.tolist()]

    def prompt_scores(self, kind: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        yield from self._blocks(self.scores[kind].reshape(self.prompts.num_rows, self.n_neurons))

    def query_scores(self, kind: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        yield from self._blocks(self.scores[kind].sum(axis=1))

    def _blocks(self, rows: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        memory = np.empty((self.block, self.n_neurons), np.float32)
        for start in range(0, len(rows), self.block):
            part = rows[start : start + self.block]
            memory[: len(part)] = part
            yield np.arange(start, start + len(part)), memory[: len(part)]
            memory[:] = np.nan  # whoever kept it finds nothing in it

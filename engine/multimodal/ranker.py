"""The neurons of nouns with the largest scores, streamed: layers, and in a layer the blocks, each read once.

Products with write vectors are made once for each distinct token, and nothing is held that is as large as neurons ×
vocabulary, or tokens × neurons × vocabulary. Knows nothing about captions, or how nouns are found in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.multimodal.result import read_block
from actstore.kernels.contribution.api import Targets, contribution
from actstore.kernels.top_k.api import TopK, top_k
from actstore.store.files.precision import widened
from actstore.store.model.directions import WriteDirections

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.multimodal.result import Multimodal

CHUNK: Final = 256
"""Nouns whose scores are held for all neurons of a layer at a time."""
MAX_PRODUCTS: Final = 1 << 26
"""Products (neurons of a layer × distinct tokens) that are held at once, 256 MB; beyond, they are made anew in each block."""


class Ranker:
    """The ranking in one form: the running k largest scores of each noun while layers and blocks stream by."""

    def __init__(self, found: Multimodal, site: str) -> None:
        """Of the nouns in `found`, by the activations at `site`."""
        self._found, self._site = found, site
        self._capture, settings = found.capture, found.settings
        self._weighs = settings.by == "contribution"
        tokens, rows = np.unique([noun.token for noun in found.nouns], return_inverse=True)
        self._rows = rows.reshape(-1)
        blocks = np.array([found.captions[noun.caption].block for noun in found.nouns], np.int64)
        self._of_block = {int(block): np.flatnonzero(blocks == block) for block in np.unique(blocks)}
        self._offsets = np.array([found.captions[n.caption].offsets[n.position] for n in found.nouns], np.int64)
        folder = self._capture.folder
        if self._weighs:
            self._directions = WriteDirections.of_store(folder, gain=settings.gain)
            self._unembedding = self._directions.unembedding(tokens.tolist())

    def rank(self, on_layer: Callable[[int, int], None]) -> TopK:
        """Scores and neurons' numbers [noun, k], descending; `on_layer` is told how many layers of how many are done."""
        n, k = len(self._found.nouns), self._found.settings.k
        best = TopK(np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int64))
        numbering = self._found.numbering
        for done, layer in enumerate(numbering.layers.tolist()):
            width, start = int(numbering.widths[done]), int(numbering.starts[done])
            weigh = self._products(layer, width)
            for block, chosen in self._of_block.items():
                values = read_block(self._capture, layer, block, self._site)
                for first in range(0, len(chosen), CHUNK):
                    nouns = chosen[first : first + CHUNK]
                    scores = widened(values[:, self._offsets[nouns]]).T * weigh(self._rows[nouns])
                    state = TopK(best.values[nouns], best.tokens[nouns])
                    state = top_k(scores, np.arange(start, start + width), k, state=state)
                    best.values[nouns], best.tokens[nouns] = state
            on_layer(done + 1, len(numbering.layers))
        return best

    def _products(self, layer: int, width: int) -> Callable[[NDArray[np.int64]], NDArray[np.float32] | float]:
        """Of rows of distinct tokens, what each neuron's activation is multiplied with [row, neuron]."""
        if not self._weighs:
            return lambda rows: 1.0
        vectors = self._directions.vectors(layer)

        def multiply(tokens: Tensor) -> NDArray[np.float32]:
            ones = np.ones((width, len(tokens)), np.float32)
            return np.ascontiguousarray(contribution(ones, vectors, Targets(tokens, gain=self._directions.gain)).T)

        if width * len(self._unembedding) <= MAX_PRODUCTS:
            every = multiply(self._unembedding)
            return lambda rows: every[rows]

        def some(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            distinct, place = np.unique(rows, return_inverse=True)
            return multiply(self._unembedding[distinct])[place]

        return some

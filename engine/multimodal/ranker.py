"""The neurons of nouns with the largest scores, streamed: each block of each layer is read once.

Products with write vectors are computed once per distinct token, and nothing as large as neurons × vocabulary, or tokens ×
neurons × vocabulary, is ever in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.devices.device import HOST, Device
from actstore.engine.multimodal.result import read_block
from actstore.kernels.contribution.api import Targets, contribution
from actstore.kernels.top_k.api import TopK, top_k
from actstore.store.capture.tokens.write_scale import block_scale
from actstore.store.files.precision import widened
from actstore.store.model.directions import WriteDirections

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.multimodal.result import FindSettings, Multimodal

CHUNK: Final = 256
"""Nouns whose scores for all neurons of a layer are in memory at once."""
MAX_PRODUCTS: Final = 1 << 26
"""Products (neurons of a layer × distinct tokens) in memory at once, 256 MB; beyond, they are computed in each block again."""


class Ranker:
    """A ranking in one form: the k largest scores of each noun so far, while layers and blocks stream by."""

    def __init__(
        self,
        result: Multimodal,
        site: str,
        *,
        with_weights: bool,
        device: Device = HOST,
        activations: NDArray[np.float32] | None = None,
        scales: Mapping[int, NDArray[np.float32]] | None = None,
    ) -> None:
        """Of the nouns in `result`, by the activations at `site`; `with_weights`, times what a unit of them writes.

        activations: [noun, neuron] those to rank by, instead of the capture's. scales: layer → what multiplies the write
        vectors where each noun is predicted [noun], beside them.
        """
        self._device, self._activations, self._scales = device, activations, scales or {}
        self._result, self._site, self._with_weights = result, site, with_weights
        self._capture, settings = result.capture, result.settings
        tokens, rows = np.unique([noun.token for noun in result.nouns], return_inverse=True)
        self._rows = rows.reshape(-1)
        blocks = np.array([result.captions[noun.caption].block for noun in result.nouns], np.int64)
        self._of_block = {int(block): np.flatnonzero(blocks == block) for block in np.unique(blocks)}
        self._offsets = np.array([result.captions[n.caption].offsets[n.position] for n in result.nouns], np.int64)
        folder = self._capture.folder
        if with_weights:
            self._directions = WriteDirections.of_store(folder, gain=settings.gain)
            self._unembedding = device.put(self._directions.unembedding(tokens.tolist()))

    def rank(self, on_layer: Callable[[int, int], None]) -> TopK:
        """Scores and neurons' numbers [noun, k], descending; `on_layer` receives the layers done and in all."""
        settings = self._result.settings
        n, k = len(self._result.nouns), settings.k
        best = TopK(np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int64))
        numbering = self._result.numbering
        for done, layer in enumerate(numbering.layers.tolist()):
            width, start = int(numbering.widths[done]), int(numbering.starts[done])
            products_of = self._products(layer, width)
            for block, in_block in self._of_block.items():
                values_of = self._values(layer, block, slice(start, start + width))
                for first in range(0, len(in_block), CHUNK):
                    nouns = in_block[first : first + CHUNK]
                    scores = values_of(nouns) * products_of(self._rows[nouns])
                    state = TopK(best.values[nouns], best.tokens[nouns])
                    state = top_k(self._device.put(scores), np.arange(start, start + width), k, state=state)
                    best.values[nouns], best.tokens[nouns] = state
            on_layer(done + 1, len(numbering.layers))
        return best

    def _values(self, layer: int, block: int, columns: slice) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """A function: nouns of a block → the activations [noun, neuron] of a layer, whose numbers are `columns`."""
        if (activations := self._activations) is not None:
            of_nouns = self._scales.get(layer) if self._with_scale else None
            if of_nouns is None:
                return lambda nouns: activations[nouns, columns]
            return lambda nouns: activations[nouns, columns] * of_nouns[nouns, None]
        values = read_block(self._capture, layer, block, self._site)
        scale = self._scale(layer, block)
        if scale is None:
            return lambda nouns: widened(values[:, self._offsets[nouns]]).T
        return lambda nouns: widened(values[:, self._offsets[nouns]]).T * scale[self._offsets[nouns], None]

    def _scale(self, layer: int, block: int) -> NDArray[np.float32] | None:
        """What the slots of a block multiply the write vectors of a layer with [token]; None for 1, or where it is left out."""
        return block_scale(self._capture, layer, block) if self._with_scale else None

    @property
    def _with_scale(self) -> bool:
        """Whether scores are exact contributions: the paper's form leaves scales out as it does the gain."""
        return self._with_weights and self._result.settings.gain

    def _products(self, layer: int, width: int) -> Callable[[NDArray[np.int64]], NDArray[np.float32] | float]:
        """A function: numbers of distinct tokens → what each neuron's activation is multiplied with [token, neuron]."""
        if not self._with_weights:
            return lambda rows: 1.0
        vectors = self._device.put(self._directions.vectors(layer))

        def multiply(tokens: Tensor) -> NDArray[np.float32]:
            ones = np.ones((width, len(tokens)), np.float32)
            return np.ascontiguousarray(contribution(ones, vectors, Targets(tokens, gain=self._directions.gain)).T)

        if width * len(self._unembedding) <= MAX_PRODUCTS:
            products = multiply(self._unembedding)
            return lambda rows: products[rows]

        def multiply_some(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            distinct, index = np.unique(rows, return_inverse=True)
            return multiply(self._unembedding[distinct])[index]

        return multiply_some


def random_ranking(n_nouns: int, n_neurons: int, settings: FindSettings) -> TopK:
    """Random neurons for each noun, as many as the settings ask for; scores fall from 1."""
    rng = np.random.default_rng(settings.seed)
    k = min(settings.k, n_neurons)
    rows = [rng.choice(n_neurons, k, replace=False) for _ in range(n_nouns)]
    scores = np.broadcast_to(np.linspace(1, 0, k, endpoint=False, dtype=np.float32), (n_nouns, k))
    return TopK(scores.copy(), np.array(rows, np.int64).reshape(n_nouns, k))

"""Every neuron's own words: the tokens of the vocabulary that its write vector speaks for, and against, most.

A neuron that fires by one unit moves a token's logit by `w · (γ ⊙ u) / rms`; the tokens with the largest such products say
what the neuron is for (Pan et al. 2024, arXiv 2311.07470), without a text having been read. They are columns of the
root's table of neurons. Knows nothing about captures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from actstore.kernels.vocabulary_top_k.api import VocabularyTopK, vocabulary_top_k
from actstore.store.errors import NotFoundError
from actstore.store.model import root
from actstore.store.model.directions import WriteDirections
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.kernels.top_k.naive import TopK
    from actstore.store.files.records import ModelRecord
    from actstore.store.storage.folder import Folder

K: Final = 10
"""Tokens kept a neuron, on either side, as the paper reads them."""
AFFORDABLE: Final = 5e12
"""Operations that a capture on the CPU spends on this unasked: about a minute on two cores. GPT-2 takes 3e12; a Llama of 7B,
1e14. On a GPU every model is affordable."""


class OwnTokens(NamedTuple):
    """The texts of the tokens that a neuron's write vector promotes most, and of those that it suppresses most."""

    top: list[str]
    bottom: list[str]

    def written(self, activations: NDArray[Any]) -> list[str] | None:
        """The tokens that the neuron promotes at positions where it has these activations: it writes w times its activation.

        Those of w where more activations are above zero than below, those of −w where more are below; None where as many are,
        or none has a sign.
        """
        above, below = int((activations > 0).sum()), int((activations < 0).sum())
        return None if above == below else self.top if above > below else self.bottom


def find_top_tokens(vectors: Tensor, unembedding: Tensor, gain: Tensor | None, k: int = K) -> VocabularyTopK:
    """The k largest and smallest products of every neuron with the vocabulary, computed on the device of `vectors`.

    `vectors` [neuron, d_model], `unembedding` [token, d_model] and `gain` are what `WriteDirections` gives.
    """
    return vocabulary_top_k(vectors, unembedding.to(vectors.device), k, gain)


def speaks(model: ModelRecord, layer: int) -> bool:
    """Whether a layer writes to a stream of which tokens are read, or put into: not so a vision tower's own."""
    return model.kind == "vision" or model.layers[layer].part in ("language", "projector")


def operations(model: ModelRecord, n_tokens: int) -> float:
    """Floating-point operations that the top tokens of all of a model's neurons take."""
    n_neurons = sum(layer.neurons for layer in model.layers if speaks(model, layer.layer))
    return 2.0 * n_neurons * n_tokens * model.d_model


def fill_top_tokens(folder: Folder, on_layer: Callable[[int, int], None] = lambda done, n_layers: None) -> int:
    """Compute every neuron's top tokens from the store's weights and put them into its table of neurons; how many neurons.

    For stores whose capture left them out, being too costly where it ran. `on_layer` is told how many layers of how many
    are done. `NotFoundError` where the store keeps no weights; `ReadOnlyError` for a folder opened for reading.
    """
    model, n_layers = root.read_root(folder), len(root.read_root(folder).layers)
    norms = root.read_neurons(folder)["write_norm"].to_numpy(zero_copy_only=False)
    directions = WriteDirections.of_store(folder)
    unembedding = directions.unembedding()
    found: dict[int, VocabularyTopK] = {}
    by_layer: dict[int, NDArray[np.float32]] = {}
    start = 0
    for done, layer in enumerate(model.layers):
        by_layer[layer.layer] = norms[start : start + layer.neurons]
        start += layer.neurons
        vectors = directions.vectors(layer.layer)
        if vectors.shape[1] == unembedding.shape[1] and speaks(model, layer.layer):
            found[layer.layer] = find_top_tokens(vectors, unembedding, directions.gain)
        on_layer(done + 1, n_layers)
    root.write_neurons(folder, model, by_layer, {n: top_columns(top, token_names(folder)) for n, top in found.items()})
    return sum(len(top.largest.values) for top in found.values())


def token_names(folder: Folder) -> Callable[[int], str]:
    """The text by which a token id is shown; `<17>` where the store knows none."""
    vocabulary = root.read_vocabulary(folder)
    known: list[bytes] = vocabulary["bytes"].to_pylist() if vocabulary is not None else []
    return lambda token: known[token].decode(errors="replace") if token < len(known) else f"<{token}>"


def top_columns(top: VocabularyTopK, name: Callable[[int], str]) -> dict[str, pa.Array]:
    """The columns of the table of neurons that say it: lists of ids, texts and products, best first, for either side."""
    return {
        f"{side}_{column}": array
        for side, found in (("top", top.largest), ("bottom", top.smallest))
        for column, array in _lists(found, name).items()
    }


def _lists(found: TopK, name: Callable[[int], str]) -> dict[str, pa.Array]:
    there = found.tokens >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
    tokens = found.tokens[there].astype(np.int32)
    distinct, index = np.unique(tokens, return_inverse=True)
    texts = pa.array([name(int(token)) for token in distinct], pa.string()).take(pa.array(index))
    return {
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "texts": pa.ListArray.from_arrays(offsets, texts),
        "products": pa.ListArray.from_arrays(offsets, pa.array(found.values[there])),
    }


def texts_of(folder: Folder, neurons: Sequence[tuple[int, int]], gain: bool = True, k: int = K) -> list[OwnTokens]:
    """The texts of the tokens that the write vectors of some neurons (layer, index) promote and suppress most.

    From the table, or from the weights where it has none. Without `gain`, as the paper takes them: always from the weights.
    """
    table = root.read_neurons(folder)
    rows = _rows(root.read_root(folder), neurons)
    if gain and "top_texts" in table.column_names and k <= K:
        held = [table[f"{side}_texts"].take(pa.array(rows, pa.int64())).to_pylist() for side in ("top", "bottom")]
        if all(texts is not None for texts in held[0]):
            return [OwnTokens(top[:k], bottom[:k]) for top, bottom in zip(*held, strict=True)]
    return _from_weights(folder, neurons, gain, k)


def _rows(model: ModelRecord, neurons: Sequence[tuple[int, int]]) -> list[int]:
    starts = np.cumsum([0, *(layer.neurons for layer in model.layers)]).tolist()
    return [starts[layer] + index for layer, index in neurons]


def _from_weights(folder: Folder, neurons: Sequence[tuple[int, int]], gain: bool, k: int) -> list[OwnTokens]:
    import torch

    directions = WriteDirections.of_store(folder, gain=gain)
    vectors = [read_rows(folder, f"layer-{layer}", "write_vectors", [index]) for layer, index in neurons]
    if not vectors:
        return []
    try:
        unembedding = directions.unembedding()
    except NotFoundError:
        return [OwnTokens([], []) for _ in neurons]
    found = find_top_tokens(directions.reaching(torch.cat(vectors)), unembedding, directions.gain, k)
    name = token_names(folder)
    sides = [
        [[name(int(token)) for token in row if token >= 0] for row in side.tokens]
        for side in (found.largest, found.smallest)
    ]
    return [OwnTokens(top, bottom) for top, bottom in zip(*sides, strict=True)]

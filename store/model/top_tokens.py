"""The tokens of the vocabulary that each neuron's write vector promotes and suppresses most.

A neuron with an activation of 1 changes a token's logit by `w · (γ ⊙ u) / rms`; the tokens with the largest such products
say what the neuron is for (Pan et al. 2024, arXiv 2311.07470), by the weights alone. They are columns of the root's table of
neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from actstore.kernels.vocabulary_top_k.api import VocabularyTopK, vocabulary_top_k
from actstore.store.errors import NotFoundError
from actstore.store.layout import table_key
from actstore.store.model import root
from actstore.store.model.directions import WriteDirections
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.kernels.top_k.naive import TopK
    from actstore.store.files.records import ModelRecord
    from actstore.store.storage.folder import Folder

K: Final = 10
"""Tokens per neuron and side, as in the paper."""
AFFORDABLE: Final = 5e12
"""Operations that a capture on the CPU spends on this by default: about a minute on two cores. GPT-2 takes 3e12, a Llama of 7B
1e14. On a GPU every model is affordable."""


class OwnTokens(NamedTuple):
    """The texts of the tokens that a neuron's write vector promotes most, and of those that it suppresses most."""

    top: list[str]
    bottom: list[str]

    def written(self, activations: NDArray[Any]) -> list[str] | None:
        """The tokens that the neuron promotes at positions where it has these `activations`: it writes w times its activation.

        Those of w where more activations are above zero than below, those of −w where more are below; None where the two
        numbers are equal.
        """
        above, below = int((activations > 0).sum()), int((activations < 0).sum())
        return None if above == below else self.top if above > below else self.bottom


def find_top_tokens(vectors: Tensor, unembedding: Tensor, gain: Tensor | None, k: int = K) -> VocabularyTopK:
    """The k largest and smallest products of every neuron with the vocabulary, computed on the device of `vectors`.

    `vectors` [neuron, d_model], `unembedding` [token, d_model] and `gain` are what `WriteDirections` gives.
    """
    return vocabulary_top_k(vectors, unembedding.to(vectors.device), k, gain)


def writes_to_residual(model: ModelRecord, layer: int) -> bool:
    """Whether a layer writes to the residual stream that the unembedding reads, or to its inputs; a vision tower's does not."""
    return model.kind == "vision" or model.layers[layer].part in ("language", "projector")


def operations(model: ModelRecord, n_tokens: int) -> float:
    """Floating-point operations that the top tokens of all of a model's neurons take."""
    n_neurons = sum(layer.neurons for layer in model.layers if writes_to_residual(model, layer.layer))
    return 2.0 * n_neurons * n_tokens * model.d_model


def fill_top_tokens(folder: Folder, on_layer: Callable[[int, int], None] = lambda done, n_layers: None) -> int:
    """Add every neuron's top tokens, from the store's weights, to the table of neurons; returns the number of neurons.

    For stores whose capture left them out because they were too costly there. `on_layer` is called with the number of layers
    done and of all layers. `NotFoundError` where the store keeps no weights; `ReadOnlyError` for a folder opened for reading.
    """
    model, n_layers = root.read_root(folder), len(root.read_root(folder).layers)
    norms = root.read_neurons(folder)["write_norm"].to_numpy(zero_copy_only=False)
    directions = WriteDirections.of_store(folder)
    unembedding = directions.unembedding()
    top_tokens: dict[int, VocabularyTopK] = {}
    by_layer: dict[int, NDArray[np.float32]] = {}
    start = 0
    for done, layer in enumerate(model.layers):
        by_layer[layer.layer] = norms[start : start + layer.neurons]
        start += layer.neurons
        vectors = directions.vectors(layer.layer)
        if vectors.shape[1] == unembedding.shape[1] and writes_to_residual(model, layer.layer):
            top_tokens[layer.layer] = find_top_tokens(vectors, unembedding, directions.gain)
        on_layer(done + 1, n_layers)
    columns = {n: top_columns(top, token_names(folder)) for n, top in top_tokens.items()}
    with root.replacing_table(folder, table_key(None, "neurons")):
        root.write_neurons(folder, model, by_layer, columns)
    return sum(len(top.largest.values) for top in top_tokens.values())


def token_names(folder: Folder) -> Callable[[int], str]:
    """Token id → the text that is shown for it, `<17>` where the store has no vocabulary."""
    vocabulary = root.read_vocabulary(folder)
    token_bytes: list[bytes] = vocabulary["bytes"].to_pylist() if vocabulary is not None else []
    return lambda token: token_bytes[token].decode(errors="replace") if token < len(token_bytes) else f"<{token}>"


def top_columns(top: VocabularyTopK, name: Callable[[int], str]) -> dict[str, pa.Array]:
    """The columns for the table of neurons: lists of ids, texts and products per side, best first."""
    return {
        f"{side}_{column}": array
        for side, ranking in (("top", top.largest), ("bottom", top.smallest))
        for column, array in _lists(ranking, name).items()
    }


def _lists(ranking: TopK, name: Callable[[int], str]) -> dict[str, pa.Array]:
    is_token = ranking.tokens >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(is_token.sum(axis=1))]), pa.int32())
    tokens = ranking.tokens[is_token].astype(np.int32)
    distinct, index = np.unique(tokens, return_inverse=True)
    texts = pa.array([name(int(token)) for token in distinct], pa.string()).take(pa.array(index))
    return {
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "texts": pa.ListArray.from_arrays(offsets, texts),
        "products": pa.ListArray.from_arrays(offsets, pa.array(ranking.values[is_token])),
    }


def texts_of(folder: Folder, neurons: Sequence[tuple[int, int]], gain: bool = True, k: int = K) -> list[OwnTokens]:
    """The texts of the tokens that the write vectors of `neurons` (layer, index) promote and suppress most.

    From the table, or from the weights where it has none. Without `gain`, as in the paper: always from the weights.
    """
    table = root.read_neurons(folder)
    numbering = NeuronIndex({layer.layer: layer.neurons for layer in root.read_root(folder).layers})
    rows = [numbering.number(layer, index) for layer, index in neurons]
    if gain and "top_texts" in table.column_names and k <= K:
        texts = [table[f"{side}_texts"].take(pa.array(rows, pa.int64())).to_pylist() for side in ("top", "bottom")]
        if all(row is not None for row in texts[0]):
            return [OwnTokens(top[:k], bottom[:k]) for top, bottom in zip(*texts, strict=True)]
    return _from_weights(folder, neurons, gain, k)


def _from_weights(folder: Folder, neurons: Sequence[tuple[int, int]], gain: bool, k: int) -> list[OwnTokens]:
    import torch

    directions = WriteDirections.of_store(folder, gain=gain)
    vectors = [directions.vectors(layer, [index]) for layer, index in neurons]
    if not vectors:
        return []
    try:
        unembedding = directions.unembedding()
    except NotFoundError:
        return [OwnTokens([], []) for _ in neurons]
    top_tokens = find_top_tokens(torch.cat(vectors), unembedding, directions.gain, k)
    name = token_names(folder)
    sides = [
        [[name(int(token)) for token in row if token >= 0] for row in side.tokens]
        for side in (top_tokens.largest, top_tokens.smallest)
    ]
    return [OwnTokens(top, bottom) for top, bottom in zip(*sides, strict=True)]

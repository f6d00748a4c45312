"""The weights a store keeps beside its activations: what each neuron writes, and how the residual stream becomes words.

A module of its own because it needs torch, which reading activations does not. Knows nothing about captures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from actstore.store.errors import NotFoundError
from actstore.store.layout import weights_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from actstore.store.folder import Folder


def write_weights(
    folder: Folder, layers: Iterable[tuple[int, dict[str, Tensor]]], others: dict[str, dict[str, Tensor]]
) -> None:
    """Write each layer's `write_vectors` [neuron, d_model] and `bias`, and the `unembedding` and `final_norm` parts."""
    for layer, tensors in layers:
        folder.write(weights_key(f"layer-{layer}"), save_safetensors(_detached(tensors)))
    for part, tensors in others.items():
        if tensors:
            folder.write(weights_key(part), save_safetensors(_detached(tensors)))


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_weights(folder: Folder, part: str) -> dict[str, Tensor]:
    """The tensors of one part of the weights; `NotFoundError` where the store was made with --no-weights."""
    try:
        return load_safetensors(folder.read(weights_key(part)))
    except NotFoundError:
        raise NotFoundError(
            f"{folder} holds no weights ({part}): it was captured with --no-weights, or the model has none."
        ) from None

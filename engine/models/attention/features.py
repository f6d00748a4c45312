"""Which outputs of a projection a tensor's entries are, through the reshaping, splitting and rotating that lies between them.

A companion of whole numbers follows each tensor back to the product that it came from: where the tensor holds a value of output
i of the projection, the companion holds i. What rearranges a tensor rearranges its companion; what computes (scaling, a norm, a
rotary embedding) leaves it as it is, and where two are added, it is that of the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from actstore.engine.models.provenance import PASS_THROUGH, Path, Product, Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING: Final = -1
"""In a companion, where a value is no output of the projection, such as what pads."""
_SAME_SHAPE: Final = PASS_THROUGH | {"dropout", "lift_fresh"}
_REARRANGING: Final = {"index", "index_select", "gather", "repeat", "repeat_interleave", "roll", "flip"}

Traced = tuple[Product, Tensor]
"""A projection's product, and the companion of a tensor that came from it."""


class FeatureTracer:
    """Follows tensors of one block back to the products that they came from."""

    def __init__(self, provenance: Provenance) -> None:
        self._provenance = provenance
        self._traced: dict[int, Traced | None] = {}

    def trace(self, tensor: Tensor) -> Traced | None:
        """The product whose outputs a tensor holds, and its companion; None where it holds those of none, or of several."""
        # Companions are no part of the model's run, which would be recorded otherwise: of a walk that took a third of the time.
        with _disable_current_modes():
            return self._known(tensor)

    def _known(self, tensor: Tensor) -> Traced | None:
        if id(tensor) not in self._traced:
            self._traced[id(tensor)] = None  # until it is known: a tensor that was written in place may lead to itself
            self._traced[id(tensor)] = self._trace(tensor)
        return self._traced[id(tensor)]

    def _trace(self, tensor: Tensor) -> Traced | None:
        origin = self._provenance.origin(tensor)
        step = origin.step
        if step is None or step.in_place:
            return None
        if step.name == "product":
            product = next(iter(origin.sources))
            return product, torch.arange(product.n_out).expand(tensor.shape)
        if any(Path.MIXED in path for path in origin.sources.values()):
            return None
        tensors = [value for value in step.arguments if isinstance(value, Tensor)]
        if step.name == "cat":
            return self._joined(step.arguments[0], step.arguments[1] if len(step.arguments) > 1 else 0)
        if not tensors:
            return None
        traced = self._known(tensors[0])
        if traced is not None and tensors[0].untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            return traced[0], _as_view(traced[1], tensors[0], tensor)
        if traced is not None and step.name == "view_as_complex":
            return traced[0], traced[1][..., 0]
        if traced is not None and step.name in _REARRANGING:
            operation = getattr(torch.ops.aten, step.name)
            return traced[0], operation(traced[1].contiguous(), *step.arguments[1:])
        if traced is not None and step.name in _SAME_SHAPE:
            return traced[0], traced[1].reshape(tensor.shape)
        for value in tensors:  # what computes value by value, or within a row
            if value.shape == tensor.shape and (of_value := self._known(value)) is not None:
                return of_value
        return None

    def _joined(self, parts: Sequence[Tensor], axis: int) -> Traced | None:
        traced = [self._known(part) for part in parts]
        products = {entry[0] for entry in traced if entry is not None}
        if len(products) != 1:
            return None
        companions = [
            entry[1] if entry is not None else torch.full(part.shape, NOTHING)
            for part, entry in zip(parts, traced, strict=True)
        ]
        return products.pop(), torch.cat(companions, axis)


def _as_view(companion: Tensor, base: Tensor, view: Tensor) -> Tensor:
    """The companion of a view, from that of the tensor that it is a view of: both lie alike in memory."""
    if base.is_complex() and not view.is_complex():  # pairs of neighbours, which lie apart again
        return torch.stack([companion, companion + 1], dim=-1)
    memory = torch.full((max(_extent(base), _extent(view)),), NOTHING)
    memory[_addresses(base).reshape(-1)] = companion.reshape(-1)
    return memory[_addresses(view)]


def _addresses(tensor: Tensor) -> Tensor:
    """Where in its memory each entry of a tensor lies; shape of the tensor."""
    positions = torch.full(tensor.shape, int(tensor.storage_offset()))
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.dim()
        shape[axis] = size
        positions = positions + (torch.arange(size) * stride).view(shape)
    return positions


def _extent(tensor: Tensor) -> int:
    """How much of its memory a tensor reaches: one more than its last address; 1 where it is empty."""
    last = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return 1 + (int(tensor.storage_offset()) + sum(last) if tensor.numel() else 0)


def features_in(companion: Tensor) -> list[int]:
    """The outputs that a companion holds, ascending: those of all heads, in the order in which heads lie in the projection."""
    found: list[Any] = torch.unique(companion).tolist()
    return [feature for feature in found if feature != NOTHING]

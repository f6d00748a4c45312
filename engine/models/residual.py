"""The residual stream of one block: by which sums its sub-layers add to it, and where modules hand those tensors over.

Follows the block's output back to its input over additions, norms and dropouts, and sorts what was added into attention (what
mixes positions) and feed-forward. Works on the records of one block's run without weights, and names no model family.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from actstore.engine.models.attention.projections import attention_points
from actstore.engine.models.provenance import PASS_THROUGH, Path, Product, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from actstore.engine.models.sites import HookPoint


class CallRecords(Protocol):
    """What a walk records of the modules' calls."""

    model: nn.Module
    provenance: Provenance

    def hook_points_of(self, tensor: Tensor) -> Iterator[HookPoint]:
        """Every point where a module hands the tensor over, arguments first."""

    def before_norm(self, tensor: Tensor) -> Tensor | None:
        """What a module without matrices (a norm, a dropout) made the tensor of."""


@dataclass(frozen=True)
class Sum:
    """One addition on the stream."""

    stream: Tensor
    term: Tensor


class ResidualStream:
    """The sums on the way from one input of a block to its output; `sums` is None where there is no such way."""

    def __init__(self, records: CallRecords, entry: Tensor, output: Tensor, feed_forward: set[Product]) -> None:
        self._records, self._feed_forward = records, feed_forward
        self._entry = entry
        self.is_changed = False
        """Whether the stream is normed or scaled on its way through the block, and with it what was added before."""
        self.sums = self._sums_to(output)

    def hook_points(self) -> Mapping[str, HookPoint]:
        """Where `resid.mid` and the sites of attention are read; only those that exist and that a module hands over."""
        sums = self.sums or []
        # The first sum with attention: encoder-decoders have a second, cross-attention, whose output is no site.
        first = next((i for i, entry in enumerate(sums) if any(map(self._is_attention, self._terms(entry.term)))), None)
        if first is None:
            return {}
        hook_points: dict[str, HookPoint | None] = {}
        mixing = [term for term in self._terms(sums[first].term) if self._is_attention(term)]
        if len(mixing) == 1:  # with several mixers side by side, no tensor is what attention alone adds
            hook_points["attn.out"] = self._hook_point(mixing[0], outputs_only=True)
            n_rows = self._entry.numel() // self._entry.shape[-1]
            hook_points |= attention_points(self._records, mixing[0], n_rows)
        entered = next((later.stream for later in sums[first + 1 :] if self._is_feed_forward(later.term)), None)
        # Where attention and MLP run in parallel there is no stream between them.
        if entered is not None and not self._is_feed_forward(sums[first].term):
            hook_points["resid.mid"] = self._hook_point(entered)
        return {site: point for site, point in hook_points.items() if point is not None}

    def _hook_point(self, tensor: Tensor, outputs_only: bool = False) -> HookPoint | None:
        """Where a module hands a tensor over, as it is or before a multiplication by a number.

        `outputs_only`: a sum that a later module reads as its argument is not what one sub-layer returned.
        """
        scale = None
        while True:
            for point in self._records.hook_points_of(tensor):
                if point.side == "output" or not outputs_only:
                    return replace(point, scale=scale)
            step = self._records.provenance.origin(tensor).step
            if step is None or not step.arguments or not isinstance(step.arguments[0], Tensor):
                return None
            if step.name == "mul" and isinstance(step.arguments[1], (int, float)) and scale is None:
                scale = float(step.arguments[1])
            elif step.name not in PASS_THROUGH:
                return None
            tensor = step.arguments[0]

    def _sums_to(self, tensor: Tensor) -> list[Sum] | None:
        """The sums between the entry and `tensor`, first to last; None if `tensor` is not on the stream."""
        if tensor is self._entry:
            return []
        step = self._records.provenance.origin(tensor).step
        if step is not None and step.name == "add":
            sides = [value for value in step.arguments[:2] if isinstance(value, Tensor)]
            for stream in sides:
                sums = self._sums_to(stream)
                if sums is not None:
                    return [*sums, *(Sum(stream, term) for term in sides if term is not stream)]
        # Post-norm blocks norm the sum, and the stream goes on through the norm.
        inner = self._records.before_norm(tensor)
        if inner is not None and inner is not tensor:
            return self._changed(self._sums_to(inner))
        if step is not None and (step.name in PASS_THROUGH or step.name == "mul"):
            # A scaled stream; what it is scaled by is a parameter, on the meta device, or of another shape.
            for value in step.arguments:
                if isinstance(value, Tensor) and value.shape[-1:] == tensor.shape[-1:] and value.device.type == "cpu":
                    sums = self._sums_to(value)
                    return sums if step.name in PASS_THROUGH else self._changed(sums)
        return None

    def _changed(self, sums: list[Sum] | None) -> list[Sum] | None:
        """The same sums, after which the stream is not their sum any more."""
        self.is_changed |= sums is not None
        return sums

    def _terms(self, tensor: Tensor) -> Iterator[Tensor]:
        """The terms of a contribution, where it is itself a sum of sub-layers (parallel attention and MLP)."""
        inner, step = tensor, self._records.provenance.origin(tensor).step
        while step is not None and step.name in PASS_THROUGH:
            inner = step.arguments[0]
            step = self._records.provenance.origin(inner).step
        sides = [value for value in step.arguments[:2] if isinstance(value, Tensor)] if step else []
        if step is not None and step.name == "add" and len(sides) == 2 and all(map(self._is_sub_layer, sides)):
            for side in sides:
                yield from self._terms(side)
        else:
            yield tensor

    def _is_sub_layer(self, tensor: Tensor) -> bool:
        return self._is_feed_forward(tensor) or self._is_attention(tensor)

    def _is_feed_forward(self, tensor: Tensor) -> bool:
        return any(product in self._feed_forward for product in self._records.provenance.origin(tensor).sources)

    def _is_attention(self, tensor: Tensor) -> bool:
        sources = self._records.provenance.origin(tensor).sources
        mixed = any(Path.MIXED in path for product in sources for path in product.sources.values())
        return mixed and not self._is_feed_forward(tensor)

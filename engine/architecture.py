"""Architecture: where a transformer's neurons are, found by structure in one walk over the model without its weights.

A neuron is one input of a feed-forward's output projection. The projection is recognised by what it does, not by its name: a
product with a parameter matrix, inside a block, whose input came from other products of that block through functions of
single values only (attention, convolutions and scans mix positions), at least one of them nonlinear, and whose output has the
width of the residual stream and reaches the block's output. Knows nothing about weights' values, stores or corpora.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actstore.engine.provenance import Path, Product, Provenance, named_parameters
from actstore.engine.sites import Tap

NOT_FEED_FORWARD = re.compile(r"adapter")
"""Parameters that look like a feed-forward and are not: small trainable bottlenecks beside one (xmod)."""


@dataclass(frozen=True)
class Projection:
    """One output projection as the model runs it: a layer of the store, or all experts of one parameter."""

    parameter: str
    owner: str  # the module that holds the parameter
    run: int  # the owner's n-th run in a pass
    neurons: int
    width: int  # of the output
    strides: tuple[int, int]  # of weight[neuron, width] in the parameter's elements
    n_experts: int  # matrices in the parameter; 1 for a plain linear
    routed: bool  # only selected rows reach it
    gate: int | None  # which factor of the product that made its input is the activated gate
    expert: int | None = None  # its place in a list of expert modules


@dataclass
class Block:
    """A run of one transformer block: its feed-forward projections in order of execution and where its sites are read."""

    module: str
    run: int
    projections: list[Projection] = field(default_factory=list)
    taps: dict[str, Tap] = field(default_factory=dict)
    width: int = 0


@dataclass
class _Call:
    """A module's run while it lasts."""

    module: str
    run: int
    inputs: list[tuple[int | str, Tensor]]
    first_product: int


class Walk:
    """Runs a weightless model once and collects its blocks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks: list[Block] = []
        self.provenance = Provenance(model)
        self._runs: Counter[str] = Counter()
        self._inputs: dict[int, list[Tap]] = {}
        self._outputs: dict[int, list[Tap]] = {}
        self._without_matrices: dict[int, Tensor] = {}
        self._open: list[_Call] = []
        self._claimed: set[Product] = set()
        self._elements = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
            for name, _ in module.named_children()
        }
        self._depth = 0

    def run(self, call: Callable[[], object]) -> list[Block]:
        """The blocks, in order of execution."""
        handles = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(path, module), with_kwargs=True))
        try:
            with torch.inference_mode(), self.provenance:
                call()
        finally:
            for handle in handles:
                handle.remove()
        return self.blocks

    def _before(self, path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path in self._elements:
                if not self._depth:
                    self.provenance.forget()
                    self._inputs.clear(), self._outputs.clear(), self._without_matrices.clear()
                self._depth += 1
            run = self._runs[path]
            self._runs[path] += 1
            inputs = [(index, value) for index, value in [*enumerate(args), *kwargs.items()] if isinstance(value, Tensor)]
            for index, value in inputs:
                self._inputs.setdefault(id(value), []).append(Tap(path, "input", index, run))
            self._open.append(_Call(path, run, inputs, len(self.provenance.products)))

        return hook

    def _after(self, path: str, module: nn.Module) -> Callable[..., None]:
        no_matrices = not any(value.dim() > 1 for value in module.parameters())

        def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            call = self._open.pop()
            results: list[tuple[int | str | None, Any]] = [(None, output)]
            if isinstance(output, (tuple, list)):
                results = list(enumerate(output))
            elif isinstance(output, dict):
                results = list(output.items())
            tensors = [(index, value) for index, value in results if isinstance(value, Tensor)]
            for index, value in tensors:
                self._outputs.setdefault(id(value), []).append(Tap(path, "output", index, call.run))
            if no_matrices and len(tensors) == 1 and call.inputs:
                self._without_matrices[id(tensors[0][1])] = call.inputs[0][1]
            self._name_products(call, path, module)
            if path in self._elements:
                self._depth -= 1
                self._close_block(call, tensors)

        return hook

    def _name_products(self, call: _Call, path: str, module: nn.Module) -> None:
        """Products made in a module's own forward belong to its run."""
        for product in self.provenance.products[call.first_product :]:
            if not product.owner:
                product.owner, product.run = path, call.run

    def _close_block(self, call: _Call, outputs: list[tuple[int | str | None, Tensor]]) -> None:
        """Claim the feed-forwards of a block that has just run, once it is known to be a whole one.

        The innermost list element that mixes positions is the block (T5 nests its sub-layers in a second list); where none
        does, the outermost.
        """
        products = self.provenance.products[call.first_product :]
        mixes = any(Path.MIXED in path for product in products for path in product.sources.values())
        if not outputs or (self._depth and not mixes):
            return
        block = Block(call.module, call.run)
        index, output = outputs[0]
        reached = self.provenance.origin(output).sources
        width = output.shape[-1]
        found = [
            product
            for product in products
            if product not in self._claimed and product in reached and self._is_feed_forward(product, width)
        ]
        self._claimed.update(found)
        if not found:
            return
        block.width = width
        block.projections = [self._describe(product) for product in found]
        block.taps = ResidualStream(self, call, index, output, set(found)).taps()
        self.blocks.append(block)

    def _is_feed_forward(self, product: Product, width: int) -> bool:
        paths = list(product.sources.values())
        return (
            product.n_out == width
            and bool(paths)
            and not any(Path.MIXED in path for path in paths)
            and any(Path.ACTIVATED in path for path in paths)
            and not NOT_FEED_FORWARD.search(product.parameter)
            and not self._has_outside_factor(product)
        )

    def _factors(self, product: Product) -> tuple[Tensor, Tensor] | None:
        """The two tensors whose elementwise product is a projection's input, if it is one."""
        tensor = product.input
        while True:
            step = self.provenance.origin(tensor).step
            if step is None:
                return None
            tensors = [value for value in step.arguments if isinstance(value, Tensor)]
            if step.name == "mul" and len(tensors) == 2:
                left, right = tensors
                return (left, right) if left.shape[-1] == right.shape[-1] == product.n_in else None
            if step.name not in PASSING or not tensors:
                return None
            tensor = tensors[0]

    def _has_outside_factor(self, product: Product) -> bool:
        """Whether the input is scaled by something from outside the block (Gemma 3n's per-layer embeddings)."""
        factors = self._factors(product)
        return factors is not None and any(
            not self.provenance.origin(factor).sources and factor.device.type == "cpu" and factor.dim() > 1
            for factor in factors
        )

    def _gate(self, product: Product) -> int | None:
        factors = self._factors(product)
        if factors is None:
            return None
        left, right = (self.provenance.origin(factor).sources for factor in factors)
        if not left or not right:
            return None
        same = set(left) == set(right)
        if same and all(source.n_out == product.n_in for source in left):
            return None  # a plain activation written as a product, such as x·σ(x)
        activated = [any(Path.ACTIVATED in path for path in side.values()) for side in (left, right)]
        return activated.index(True) if any(activated) else None

    def _describe(self, product: Product) -> Projection:
        owner, _, _ = product.parameter.rpartition(".")
        module = self.model.get_submodule(owner)
        expert = None
        if product.routed and product.n_slices == 1:
            expert = _expert_index(product.parameter)
        return Projection(
            parameter=product.parameter,
            owner=owner,
            run=product.run if owner == product.owner and isinstance(module, nn.Module) else 0,
            neurons=product.n_in,
            width=product.n_out,
            strides=product.strides,
            n_experts=product.n_slices,
            routed=product.routed or product.n_slices > 1,
            gate=self._gate(product),
            expert=expert,
        )

    def taps_of(self, tensor: Tensor) -> Iterator[Tap]:
        """Every place where a module hands a tensor over, arguments first."""
        yield from self._inputs.get(id(tensor), ())
        yield from self._outputs.get(id(tensor), ())

    def before_norm(self, tensor: Tensor) -> Tensor | None:
        """What a module without matrices (a norm, a dropout) made a tensor of."""
        return self._without_matrices.get(id(tensor))


PASSING = {
    *("view", "_unsafe_view", "reshape", "_to_copy", "clone", "alias", "detach", "dropout", "native_dropout"),
    *("squeeze", "unsqueeze", "expand", "contiguous"),
}
"""Operations that hand their first argument on unchanged."""


def _expert_index(parameter: str) -> int | None:
    """The last number in a parameter's path: its module's place in the innermost list."""
    numbers = re.findall(r"(?:^|[._])(\d+)(?=\.)", parameter)
    return int(numbers[-1]) if numbers else None


class ResidualStream:
    """The sums by which a block's sub-layers add to the residual stream, from its input to its output."""

    def __init__(
        self, walk: Walk, call: _Call, output_index: int | str | None, output: Tensor, feed_forward: set[Product]
    ) -> None:
        self.walk, self.call, self.feed_forward = walk, call, feed_forward
        self.output_index, self.output = output_index, output

    def taps(self) -> dict[str, Tap]:
        """Where resid.pre, resid.mid, resid.post and attn.out are read; those that exist."""
        for index, entry in self.call.inputs:
            if entry.shape == self.output.shape and entry.is_floating_point():
                sums = self._sums(self.output, entry)
                if sums:
                    return self._name(index, sums)
        return {}

    def _name(self, index: int | str, sums: list[tuple[Tensor, Tensor]]) -> dict[str, Tap]:
        module, run = self.call.module, self.call.run
        taps = {
            "resid.pre": Tap(module, "input", index, run),
            "resid.post": Tap(module, "output", self.output_index, run),
        }
        terms = [(stream, term) for stream, side in sums for term in self._terms(side)]
        attention = [(stream, term) for stream, term in terms if self._is_attention(term)]
        if attention:
            tap = next((tap for tap in self.walk.taps_of(attention[0][1]) if tap.side == "output"), None)
            if tap:
                taps["attn.out"] = tap
            position = next(i for i, (_, side) in enumerate(sums) if any(t is attention[0][1] for t in self._terms(side)))
            later = [stream for stream, side in sums[position + 1 :] if self._is_feed_forward(side)]
            if later:
                tap = next(iter(self.walk.taps_of(later[0])), None)
                if tap:
                    taps["resid.mid"] = tap
        return taps

    def _sums(self, tensor: Tensor, start: Tensor) -> list[tuple[Tensor, Tensor]] | None:
        """(stream, contribution) of every sum between `start` and `tensor`, first to last; None if not on the stream."""
        if tensor is start:
            return []
        step = self.walk.provenance.origin(tensor).step
        if step is not None and step.name in {"add", "sub"}:
            sides = [value for value in step.arguments[:2] if isinstance(value, Tensor)]
            for stream, other in zip(sides, reversed(sides), strict=True):
                found = self._sums(stream, start)
                if found is not None:
                    return [*found, (stream, other)] if len(sides) == 2 else found
            return None
        inner = self.walk.before_norm(tensor)
        if inner is not None and inner is not tensor:
            return self._sums(inner, start)
        if step is not None and (step.name in PASSING or step.name == "mul"):
            for value in step.arguments:
                if isinstance(value, Tensor) and value.shape[-1:] == tensor.shape[-1:] and value.device.type == "cpu":
                    return self._sums(value, start)
        return None

    def _terms(self, tensor: Tensor) -> Iterator[Tensor]:
        step = self.walk.provenance.origin(tensor).step
        if step is not None and step.name == "add" and self._is_attention(tensor) is False:
            sides = [value for value in step.arguments[:2] if isinstance(value, Tensor)]
            if len(sides) == 2 and any(self._is_attention(side) for side in sides):
                for side in sides:
                    yield from self._terms(side)
                return
        yield tensor

    def _is_feed_forward(self, tensor: Tensor) -> bool:
        return any(product in self.feed_forward for product in self.walk.provenance.origin(tensor).sources)

    def _is_attention(self, tensor: Tensor) -> bool:
        sources = self.walk.provenance.origin(tensor).sources
        mixed = any(Path.MIXED in path for product in sources for path in product.sources.values())
        return mixed and not self._is_feed_forward(tensor)


def walk(model: nn.Module, call: Callable[[], object]) -> list[Block]:
    """The blocks of a model on the meta device, found by running `call` once on it."""
    return Walk(model).run(call)


__all__ = ["Block", "Projection", "Walk", "named_parameters", "walk"]

"""Architecture: where a transformer's neurons are, found by structure in one walk over the model without its weights.

A neuron is one input of a feed-forward's output projection. The projection is recognised by what it does, not by its name: a
product with a parameter matrix, inside a block, whose input came from other products of that block through functions of
single values only (attention, convolutions and scans mix positions), at least one of them nonlinear, and whose output has the
width of the residual stream and reaches the block's output.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actstore.engine.models.provenance import PASS_THROUGH, Path, Product, Provenance
from actstore.engine.models.residual import ResidualStream
from actstore.engine.models.sites import HookPoint, results_of, same_rows
from actstore.engine.models.writing.path import UNKNOWN_PATH, WritePath, WritePaths
from actstore.kernels.torch_threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_FEED_FORWARD = re.compile(r"adapter")
"""Parameters that look like a feed-forward and are not: small trainable bottlenecks next to one (X-MOD)."""


@dataclass(frozen=True)
class Projection:
    """One output projection as the model runs it; all experts of one parameter, where it holds several matrices."""

    parameter: str
    owner: str  # the module that holds the parameter; where several share it, the one that ran
    run: int  # the owner's n-th run in a pass
    neurons: int
    width: int  # of the output
    n_rows: int  # that the walk gave it
    transposed: bool  # whether the parameter holds matrices [width, neuron], as nn.Linear does
    n_matrices: int  # in the parameter: its experts; 1 for a plain linear
    routed: bool  # only selected rows reach it
    hooked: bool  # the owner is called with the input as its argument
    gate: int | None  # which factor of the product that made the input is the activated gate
    expert: int | None = None  # its index in a list of expert modules
    write_path: WritePath = UNKNOWN_PATH  # from the output to the residual stream


@dataclass
class Block:
    """A run of one transformer block: its feed-forward projections in order of execution and where its sites are read."""

    module: str
    run: int
    width: int
    projections: list[Projection]
    hook_points: dict[str, HookPoint]
    is_between: bool = False  # a projector between two stacks: outside of any list, and not mixing positions
    changes_stream: bool = False  # norms or scales the stream itself, and with it what earlier blocks wrote


@dataclass
class Architecture:
    """The blocks of a model that have a feed-forward, and its final norm."""

    blocks: list[Block] = field(default_factory=list)
    final_norm: str | None = None  # the module that normalises the last block's output
    has_attention: bool = False


@dataclass
class _Call:
    """A module's run while it lasts."""

    module: str
    run: int
    inputs: list[tuple[int | str, Tensor]]
    first_product: int


def walk(model: nn.Module, call: Callable[[], object], *, between: bool = False) -> Architecture:
    """The architecture of a model on the meta device, found by running `call` once on it.

    Blocks are elements of the model's lists; with `between`, feed-forwards outside of any list count too (projectors).
    """
    with torch_threads(1):  # operations on a few rows, for which starting threads takes longer than the work
        return _Walk(model, between).run(call)


class _Walk:
    """Runs a weightless model once, block by block."""

    def __init__(self, model: nn.Module, between: bool) -> None:
        self.model = model
        self.provenance = Provenance(model)
        self.architecture = Architecture()
        self._elements = {
            f"{path}.{name}".lstrip(".")
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
            for name, _ in module.named_children()
        }
        self._between = _outside_lists(model, self._elements) if between else set()
        self._runs: Counter[str] = Counter()
        self._calls: list[_Call] = []
        self._depth = 0  # of list elements being run
        self._claimed: set[Product] = set()  # feed-forwards that belong to a block already
        # Modules inside an element that hold attention and are no elements themselves: candidates for blocks.
        self._inner: list[tuple[_Call, tuple[int | str | None, Tensor], list[Product]]] = []
        # Both by id(tensor): ids are unique while the provenance keeps the tensors alive, until the next block begins.
        self._handed: dict[int, list[HookPoint]] = {}
        self._before_norm: dict[int, Tensor] = {}
        self._norms: dict[int, tuple[HookPoint, Tensor]] = {}
        self._last_output: Tensor | None = None

    def run(self, call: Callable[[], object]) -> Architecture:
        handles = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(path, module)))
        try:
            with torch.inference_mode(), self.provenance:
                call()
        finally:
            for handle in handles:
                handle.remove()
        self.architecture.has_attention = self.provenance.has_attention
        return self.architecture

    def hook_points_of(self, tensor: Tensor) -> Iterator[HookPoint]:
        """Every point where a module hands a tensor over, arguments first."""
        yield from sorted(self._handed.get(id(tensor), ()), key=lambda point: point.side)

    def before_norm(self, tensor: Tensor) -> Tensor | None:
        """What a module without matrices (a norm, a dropout) made a tensor of."""
        return self._before_norm.get(id(tensor))

    def norm_of(self, tensor: Tensor) -> tuple[HookPoint, Tensor] | None:
        """Where the norm that made a tensor is handed its input, and that input; None where no norm made it."""
        return self._norms.get(id(tensor))

    def _before(self, path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            starts = path in self._elements or path in self._between
            # An outermost block begins: what it reads counts as coming from outside, so that sources name its own products.
            if starts and not self._depth:
                self.provenance.forget()
                self._handed.clear()
                self._before_norm.clear()
                self._norms.clear()
            self._depth += path in self._elements
            run = self._runs[path]
            self._runs[path] += 1
            arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            inputs = [(index, value) for index, value in arguments if isinstance(value, Tensor)]
            for index, value in inputs:
                self._handed.setdefault(id(value), []).append(HookPoint(path, "input", index, run))
            self._calls.append(_Call(path, run, inputs, len(self.provenance.products)))

        return hook

    def _after(self, path: str, module: nn.Module) -> Callable[..., None]:
        has_matrices = any(value.dim() > 1 for value in module.parameters())
        weight = getattr(module, "weight", None)

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            call = self._calls.pop()
            results = results_of(output)
            for index, value in results:
                self._handed.setdefault(id(value), []).append(HookPoint(path, "output", index, call.run))
            if not has_matrices and len(results) == 1 and call.inputs:
                index, source = call.inputs[0]
                self._before_norm[id(results[0][1])] = source
                if weight is not None and results[0][1] is not source:
                    self._norms[id(results[0][1])] = HookPoint(path, "input", index, call.run), source
                # The norm after the last block so far; a later stack overwrites that of an earlier one.
                if source is self._last_output and weight is not None and not self._depth:
                    self.architecture.final_norm = path
            for product in self.provenance.products[call.first_product :]:
                if not product.owner:  # made in this module's own forward
                    product.owner, product.run = path, call.run
                    product.is_argument = bool(call.inputs) and same_rows(call.inputs[0][1], product.input)
            self._depth -= path in self._elements
            if self._depth or path in self._elements:
                self._close(call, results)
            elif path in self._between and results:
                self._claim(call, results[0], self.provenance.products[call.first_product :])

        return hook

    def _close(self, call: _Call, results: list[tuple[int | str | None, Tensor]]) -> None:
        """Claim the feed-forwards of a module that has just run, once it is known to be a whole block.

        The block is the innermost element of a list that mixes positions as well as holding the feed-forward (T5 nests its
        sub-layers in a second list); where no element does, the innermost module of any kind that does (Zamba shares a
        transformer block among its layers); or else the outermost element itself.
        """
        if not results:
            return
        products = self.provenance.products[call.first_product :]
        mixes = any(product.is_mixed for product in products)
        if mixes and call.module in self._elements:
            self._claim(call, results[0], products)
        elif mixes:
            self._inner.append((call, results[0], products))
        if not self._depth and call.module in self._elements:
            self._last_output = results[0][1]
            for inner in self._inner:
                if inner[0].first_product >= call.first_product:
                    self._claim(*inner)
            self._inner.clear()
            self._claim(call, results[0], products)

    def _claim(self, call: _Call, result: tuple[int | str | None, Tensor], products: list[Product]) -> None:
        """Make a block of a call that holds feed-forwards which belong to no block yet."""
        index, output = result
        reached = self.provenance.origin(output).sources
        feed_forwards = [
            product
            for product in products
            if product not in self._claimed
            and product in reached
            and Path.ACTIVATED not in reached[product]  # what goes through a nonlinearity is a gate, not a contribution
            and self._is_feed_forward(product, output.shape[-1])
        ]
        if not feed_forwards:
            return
        self._claimed.update(feed_forwards)
        # Blocks that keep several streams side by side, or axes of their own, have no [position, d_model] to read.
        one_stream = feed_forwards[-1].n_out == output.shape[-1] and output.dim() <= 3
        entry, stream = self._stream(call, output, set(feed_forwards)) if one_stream else (None, None)
        hook_points, paths = {}, dict.fromkeys(feed_forwards, UNKNOWN_PATH)
        if stream is not None:
            hook_points = {
                "resid.pre": HookPoint(call.module, "input", entry, call.run),
                "resid.post": HookPoint(call.module, "output", index, call.run),
                **stream.hook_points(),
            }
            paths = WritePaths(self, set(feed_forwards)).follow(one.term for one in stream.sums or ())
        projections = [self._describe(product, paths[product]) for product in feed_forwards]
        is_between = call.module in self._between and not any(product.is_mixed for product in products)
        self.architecture.blocks.append(
            Block(
                call.module,
                call.run,
                output.shape[-1],
                projections,
                hook_points,
                is_between,
                stream is None or stream.is_changed,
            )
        )

    def _stream(
        self, call: _Call, output: Tensor, feed_forwards: set[Product]
    ) -> tuple[int | str | None, ResidualStream | None]:
        """The argument of a block that is the stream, and the sums from there to its output; None where there are none."""
        for index, entry in call.inputs:
            if entry.shape == output.shape and entry.is_floating_point():
                stream = ResidualStream(self, entry, output, feed_forwards)
                if stream.sums:
                    return index, stream
        return None, None

    def _is_feed_forward(self, product: Product, width: int) -> bool:
        paths = list(product.sources.values())
        return (
            product.n_out
            in {width, *self.provenance.embedding_widths}  # the stream may hold several copies side by side
            and not any(Path.MIXED in path for path in paths)
            and any(Path.ACTIVATED in path for path in paths)
            and not NOT_FEED_FORWARD.search(product.parameter)
            and not self._has_outside_factor(product)
        )

    def _factors(self, product: Product) -> tuple[Tensor, Tensor] | None:
        """The two tensors whose elementwise product is a projection's input, if it is one."""
        tensor = product.input
        while tensor is not None:
            step = self.provenance.origin(tensor).step
            if step is None or step.in_place:
                return None
            tensors = [value for value in step.arguments if isinstance(value, Tensor)]
            if step.name == "mul" and len(tensors) == 2:
                left, right = tensors
                return (left, right) if left.shape == right.shape and left.shape[-1] == product.n_in else None
            if step.name not in PASS_THROUGH | {"split", "split_with_sizes"} or not tensors:
                return None
            tensor = tensors[0]
        return None

    def _has_outside_factor(self, product: Product) -> bool:
        """Whether the input is scaled by something from outside the block (Gemma 3n's per-layer embeddings)."""
        factors = self._factors(product) or ()
        return any(not self.provenance.origin(factor).sources and factor.device.type == "cpu" for factor in factors)

    def _gate(self, product: Product) -> int | None:
        factors = self._factors(product)
        if factors is None:
            return None
        left, right = (self.provenance.origin(factor).sources for factor in factors)
        if set(left) == set(right) and all(source.n_out == product.n_in for source in left):
            return None  # a plain activation that is written as a product, such as x·σ(x)
        activated = [any(Path.ACTIVATED in path for path in side.values()) for side in (left, right)]
        return activated.index(True) if any(activated) else None

    def _describe(self, product: Product, write_path: WritePath) -> Projection:
        owner, _, name = product.parameter.rpartition(".")
        if getattr(self.model.get_submodule(product.owner), name, None) is self.model.get_parameter(product.parameter):
            owner = product.owner  # one of several modules that share the parameter
        routed = product.routed or product.n_matrices > 1
        return Projection(
            parameter=product.parameter,
            owner=owner,
            run=product.run,
            neurons=product.n_in,
            width=product.n_out,
            n_rows=product.n_rows,
            transposed=product.strides[0] == 1,
            n_matrices=product.n_matrices,
            routed=routed,
            hooked=not routed and product.owner == owner and product.is_argument,
            gate=self._gate(product),
            expert=_index_in_list(product.parameter) if routed and product.n_matrices == 1 else None,
            write_path=write_path,
        )


def _outside_lists(model: nn.Module, elements: set[str]) -> set[str]:
    """The largest modules that hold two matrices or more, and are neither in a list nor hold one: poolers, projectors."""
    outside: set[str] = set()
    for path, module in model.named_modules():
        above = {path[:at] for at, letter in enumerate(path) if letter == "."} | {path}
        holds_list = any(element.startswith(f"{path}.") or not path for element in elements)
        n_matrices = sum(value.dim() > 1 for value in module.parameters())
        if not holds_list and n_matrices > 1 and not above & (elements | outside):
            outside.add(path)
    return outside


def _index_in_list(parameter: str) -> int | None:
    """The last number in a parameter's path: the index of its module in the innermost list."""
    numbers = re.findall(r"(?:^|[._])(\d+)(?=\.)", parameter)
    return int(numbers[-1]) if numbers else None

"""Provenance: runs a model that has no weights, and says for every tensor which matrix products it came from.

The model's parameters live on torch's meta device (shapes and strides, no memory), its activations are small real tensors on
the CPU. An operation that reads a parameter is given random numbers of the right shape instead of being computed; every other
one is run, so that data-dependent control flow (routing, masks, loops over the experts that were hit) takes a real path. A
model of any size is walked in seconds (405 billion weights: 1.7 s).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Flag
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch._ops import OpOverload


class Path(Flag):
    """What lies between a matrix product and a tensor that came from it."""

    PLAIN = 0
    MIXED = 1  # another axis than the last was mixed: attention, convolution, a scan over positions
    ACTIVATED = 2  # a nonlinear function of single values


PASS_THROUGH = {
    *("view", "_unsafe_view", "reshape", "_to_copy", "clone", "alias", "detach", "native_dropout", "_reshape_alias"),
    *("squeeze", "unsqueeze", "expand", "contiguous"),
}
"""Operations whose result has the numbers of their first argument."""


@dataclass(eq=False)
class Product:
    """One product of activations with a parameter matrix, `input [row, in] · weight [in, out]`."""

    parameter: str
    n_in: int
    n_out: int
    strides: tuple[int, int]  # of weight[in, out], in elements of the parameter
    n_matrices: int  # matrices of this shape in the parameter: the experts of a 3-D one
    order: int
    n_rows: int
    input: Tensor | None  # until the next block begins
    sources: dict[Product, Path]  # of the input
    routed: bool  # the input holds selected rows only
    run: int = 0  # the parameter's n-th use among uses by other calls of its module
    owner: str = ""
    is_argument: bool = False  # the input is the first argument of the module that makes the product
    output: Tensor | None = None  # until the next block begins

    @property
    def is_mixed(self) -> bool:
        """Whether positions were mixed on the way to it."""
        return any(Path.MIXED in path for path in self.sources.values())


@dataclass(eq=False)
class Step:
    """The operation that made a tensor; of one in place, the first argument is the tensor before it."""

    name: str
    arguments: tuple[Any, ...]
    in_place: bool = False


@dataclass
class Origin:
    """From which products, and by which operation, one tensor was computed."""

    sources: dict[Product, Path] = field(default_factory=dict)
    routed: bool = False
    step: Step | None = None
    base: Tensor | None = None  # the tensor this one is a view of


# Sets of ATen operations by what they do to positions and values. An operation in none of them that torch does not tag as
# pointwise counts as mixing positions, so that an unknown operation hides a feed-forward rather than inventing one.
_MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "mv", "addmv", "_grouped_mm"}
_ACTIVATIONS = {
    *("relu", "gelu", "silu", "sigmoid", "tanh", "erf", "exp", "expm1", "softplus", "elu", "leaky_relu", "hardswish"),
    *("hardsigmoid", "hardtanh", "mish", "pow", "square", "clamp_min", "threshold", "log_sigmoid_forward", "celu"),
    *("glu", "prelu", "_prelu_kernel", "sin", "log1p", "softshrink", "relu6", "selu"),
}
_VIEWS = {
    *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "slice", "select"),
    *("split", "split_with_sizes", "chunk", "unbind", "expand", "alias", "detach", "as_strided", "view_as_real"),
    *("unfold", "_reshape_alias", "swapaxes"),
}
_ROWWISE = {
    *("clone", "_to_copy", "copy_", "cat", "stack", "repeat", "index", "index_select", "gather", "index_add"),
    *("index_put", "_index_put_impl_", "scatter", "scatter_add", "index_copy", "native_layer_norm", "native_dropout"),
    *("_fused_rms_norm", "softmax", "_softmax", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros"),
    *("lift_fresh", "masked_scatter", "contiguous", "native_group_norm", "repeat_interleave", "dropout", "fill"),
}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "var_mean", "std", "linalg_vector_norm", "norm", "max", "min"}


def is_weightless(tensor: object) -> bool:
    """Whether a value is a parameter, or computed from parameters only: it has a shape and no numbers."""
    return isinstance(tensor, Tensor) and tensor.device.type == "meta"


class Provenance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, records the origin of every tensor; `products` are the matrix products in order of execution."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        # By id(tensor): `_alive` keeps the tensors, so that no id is used again for another tensor.
        self._origins: dict[int, Origin] = {}
        self._alive: dict[int, Tensor] = {}
        # By storage: a view or transpose of a parameter is that parameter. `_storages` keeps storages of casts alive likewise.
        self._parameters = {value.untyped_storage()._cdata: (name, value) for name, value in named_parameters(model)}
        self._random = torch.Generator().manual_seed(0)
        self._storages: list[Tensor] = []
        self.has_attention = False
        self.embedding_widths: set[int] = set()

    def origin(self, tensor: Tensor) -> Origin:
        """The origin of a tensor; an empty one for a tensor that came from outside."""
        return self._origins.get(id(tensor)) or Origin()

    def forget(self) -> None:
        """Drop every record: tensors that exist now count as coming from outside."""
        for product in self.products:
            product.input = product.output = None
        self._origins.clear()
        self._alive.clear()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "attention" in func._schema.name:  # fused attention checks that its arguments are on one device
            args, kwargs = tree_map(self._fill, (args, kwargs))
        with self:  # in inference mode composite operations arrive whole: decompose them into those known here
            output = func.decompose(*args, **kwargs)
        if output is not NotImplemented:
            return output
        name = func._schema.name.removeprefix("aten::")
        if str(kwargs.get("device", "")) == "meta":
            kwargs["device"] = torch.device("cpu")
        self.has_attention |= "softmax" in name or "attention" in name
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        weights = [tensor for tensor in tensors if is_weightless(tensor)]
        if not weights:
            output = func(*args, **kwargs)
        elif len(weights) == len(tensors):
            output = self._run_weights(func, name, args, kwargs, weights)
        else:
            output = self._run_without_numbers(func, args, kwargs)
        if name == "embedding":
            self.embedding_widths.add(output.shape[-1])
        if len(weights) < len(tensors):
            self._record(func, name, args, kwargs, tensors, output)
        return output

    def _run_weights(
        self, func: OpOverload, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], weights: list[Tensor]
    ) -> Any:
        """An operation among parameters only: done on shapes, or on random numbers where it needs numbers."""
        if name == "_to_copy" and "device" in kwargs:
            kwargs.pop("device")
            return self._fill(func(*args, **kwargs))
        try:
            output = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            args, kwargs = tree_map(self._fill, (args, kwargs))
            return func(*args, **kwargs)
        for leaf in tree_flatten(output)[0]:
            if is_weightless(leaf) and len(weights) == 1 and leaf.numel() == weights[0].numel():
                parameter = self._parameters.get(weights[0].untyped_storage()._cdata)
                if parameter:  # a cast copy of a parameter still is that parameter
                    self._parameters.setdefault(leaf.untyped_storage()._cdata, parameter)
                    self._storages.append(leaf)
        return output

    def _run_without_numbers(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation of activations with parameters: random numbers of the shape that its result would have."""
        if func._schema.is_mutable:
            return args[0] if isinstance(args[0], Tensor) else tree_map(self._fill, args[0])
        try:
            shaped = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            if isinstance(kwargs.get("device"), torch.device):
                shaped[1]["device"] = torch.device("meta")
            return tree_map(self._fill, func(*shaped[0], **shaped[1]))
        except (RuntimeError, NotImplementedError):
            args, kwargs = tree_map(self._fill, (args, kwargs))
            return func(*args, **kwargs)

    def _fill(self, leaf: Any) -> Any:
        if not is_weightless(leaf):
            return leaf
        if leaf.is_floating_point():
            # Positive, so that roots and logarithms are finite and thresholds in routers are reached; the same in every row,
            # so that a router sends all tokens to the same few experts.
            row = torch.rand(leaf.shape[-1:], generator=self._random) + 0.1
            return row.to(leaf.dtype).expand(leaf.shape).contiguous()
        return (torch.ones if leaf.dtype == torch.bool else torch.zeros)(leaf.shape, dtype=leaf.dtype)

    def _record(
        self,
        func: OpOverload,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        output: Any,
    ) -> None:
        inputs = [tensor for tensor in tensors if not is_weightless(tensor)]
        results = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
        product = self._product(name, args, inputs, tensors, results)
        bare = name.rstrip("_")
        if product is not None:
            origin = Origin({product: Path.PLAIN}, product.routed, Step("product", args))
            product.output = results[0]
        else:
            flag = _flag(func, bare, args, inputs)
            merged: dict[Product, Path] = {}
            for tensor in inputs:
                if bare in _REDUCTIONS and Path.MIXED not in flag:
                    continue  # one number per row, such as a norm divides by: no longer the product's values
                for source, path in self.origin(tensor).sources.items():
                    merged[source] = merged.get(source, Path.PLAIN) | path | flag
            origin = Origin(merged, self._is_routed(bare, args, inputs), self._step(bare, func, args))
        for result in results:
            if any(
                result is tensor for tensor in inputs
            ):  # an operation that returns its argument, in place or as it is
                if not func._schema.is_mutable:
                    continue
                base = self.origin(result).base
            else:
                base = inputs[0] if bare in _VIEWS else None
            self._origins[id(result)] = Origin(origin.sources, origin.routed, origin.step, base)
            self._alive[id(result)] = result
        if func._schema.is_mutable and inputs:
            self._write_through(inputs[0], origin)

    def _step(self, name: str, func: OpOverload, args: tuple[Any, ...]) -> Step:
        if not (func._schema.is_mutable and args and isinstance(args[0], Tensor)):
            return Step(name, args)
        # A view with an id of its own stands for the tensor before the operation, whose own record is about to be replaced.
        before = args[0].detach()
        self._origins[id(before)], self._alive[id(before)] = self.origin(args[0]), before
        return Step(name, (before, *args[1:]), in_place=True)

    def _write_through(self, view: Tensor, origin: Origin) -> None:
        """Record a write into a view: the whole tensor now comes from what was written too, with its rows mixed."""
        base = self.origin(view).base
        while base is not None:
            before = self._origins.setdefault(id(base), Origin())
            self._alive[id(base)] = base
            mixed = Path.MIXED if base.numel() != view.numel() else Path.PLAIN
            sources = {source: path | mixed for source, path in origin.sources.items()}
            self._origins[id(base)] = Origin({**before.sources, **sources}, before.routed, None, before.base)
            base = before.base

    def _is_routed(self, name: str, args: tuple[Any, ...], inputs: list[Tensor]) -> bool:
        """Whether a result holds selected rows only: selecting by one index of rows begins it, writing back ends it."""
        if name in {"index_add", "index_put", "scatter", "scatter_add", "index_copy", "masked_scatter"}:
            return self.origin(inputs[0]).routed
        if name in {"index", "index_select"} and inputs[0].is_floating_point():
            index = [entry for entry in (args[1] if name == "index" else [args[2]]) if isinstance(entry, Tensor)]
            if len(index) == 1 and index[0].dim() == 1 and inputs[0].dim() in (2, 3):
                return True
        return any(self.origin(tensor).routed for tensor in inputs)

    def _product(
        self, name: str, args: tuple[Any, ...], inputs: list[Tensor], tensors: list[Tensor], results: list[Tensor]
    ) -> Product | None:
        if name not in _MATRIX_PRODUCTS or not results:
            return None
        left, right = args[1:3] if name.startswith(("add", "badd")) else args[0:2]
        if is_weightless(left) or not is_weightless(right):
            return None
        parameter = self._parameters.get(right.untyped_storage()._cdata)
        if parameter is None or right.dim() < 2:
            return None
        weight = right.t() if name == "linear" else right
        n_in, n_out = weight.shape[-2:]
        product = Product(
            parameter=parameter[0],
            n_in=n_in,
            n_out=n_out,
            strides=(weight.stride(-2), weight.stride(-1)),
            n_matrices=parameter[1].numel() // (n_in * n_out),
            order=len(self.products),
            n_rows=left.numel() // n_in,
            input=left,
            sources=dict(self.origin(left).sources),
            routed=self.origin(left).routed,
        )
        self.products.append(product)
        return product


def _flag(func: OpOverload, name: str, args: tuple[Any, ...], inputs: list[Tensor]) -> Path:
    """What an operation puts between its inputs' products and its output."""
    if name in _ACTIVATIONS:
        return Path.ACTIVATED
    if name in _REDUCTIONS:
        axes = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
        last = axes is not None and all(axis in (-1, inputs[0].dim() - 1) for axis in axes)
        return Path.PLAIN if last or name in {"max", "min"} else Path.MIXED
    if torch.Tag.pointwise in func.tags or name in _VIEWS or name in _ROWWISE:
        return Path.PLAIN
    return Path.MIXED


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter under its first name; tied ones once."""
    yield from model.named_parameters(remove_duplicate=True)

"""Where a block's attention hands over its queries, keys and values, and what its output projection reads.

Queries, keys and values are outputs of projections before anything is done with them: before a rotary embedding, a norm per
head, or their repetition for groups of queries. Fused projections are told apart by which of their outputs reach the product of
queries and keys, and which that with the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from torch import Tensor

from actstore.engine.models.attention.features import FeatureTracer, features_in
from actstore.engine.models.provenance import Path, Product, Provenance
from actstore.engine.models.sites import Features, HookPoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_PRODUCTS: Final = {"bmm", "baddbmm", "mm", "matmul"}
_SOFTMAX: Final = {"_softmax", "softmax", "_safe_softmax"}
MAX_STEPS: Final = 64
"""The most operations that lie between attention and what is looked for."""


class Walked(Protocol):
    """What a walk knows of the model that it runs."""

    model: nn.Module
    provenance: Provenance


def attention_points(walked: Walked, added: Tensor, n_rows: int) -> Mapping[str, HookPoint]:
    """The hook points of `attn.q`, `attn.k`, `attn.v` and `attn.z` of the attention that ends in the tensor `added`.

    Only those that a module of its own hands over, with a row for each of the `n_rows` rows of the block's feed-forward.
    """
    output = _output_projection(walked, added)
    if output is None or output.input is None:
        return {}
    points: dict[str, HookPoint] = {}
    if output.is_argument and _is_own_module(walked, output) and output.n_rows == n_rows:
        every = Features(0, output.n_in, output.n_in, 1)
        points["attn.z"] = HookPoint(output.owner, "input", 0, output.run, features=every)
    operands = _operands(walked.provenance, output.input)
    tracer = FeatureTracer(walked.provenance)
    for site, tensor in zip(("attn.q", "attn.k", "attn.v"), operands, strict=False):
        traced = tracer.trace(tensor)
        if traced is None or not _is_own_module(walked, traced[0]) or traced[0].n_rows != n_rows:
            continue
        product, companion = traced
        features = Features.of(features_in(companion), product.n_out)
        if features is not None:
            points[site] = HookPoint(product.owner, "output", None, product.run, features=features)
    return points


def _output_projection(walked: Walked, added: Tensor) -> Product | None:
    """The one product that ends attention: it reads what mixes positions, and what it gives is added as it is."""
    sources = walked.provenance.origin(added).sources
    ends = [
        product
        for product, path in sources.items()
        if Path.MIXED not in path and any(Path.MIXED in before for before in product.sources.values())
    ]
    return ends[0] if len(ends) == 1 else None


def _is_own_module(walked: Walked, product: Product) -> bool:
    """Whether a module without others in it makes a product with its own parameter, and so hands over just that."""
    name = product.parameter.rpartition(".")[2]
    module = walked.model.get_submodule(product.owner)
    is_leaf = next(module.children(), None) is None
    return is_leaf and getattr(module, name, None) is walked.model.get_parameter(product.parameter)


def _operands(provenance: Provenance, mixed: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values as they enter attention, whose result `mixed` is; empty where it is of another kind."""
    attention = _back_to_mixing(provenance, mixed)
    if attention is None:
        return ()
    step = provenance.origin(attention).step
    assert step is not None
    tensors = [value for value in step.arguments if isinstance(value, Tensor)]
    if "attention" in step.name:
        return tuple(tensors[:3])
    if step.name not in _PRODUCTS or len(tensors) < 2:
        return ()
    weights, values = tensors[-2:]
    scores = _back_to(provenance, weights, _SOFTMAX)
    if scores is None:
        return ()
    product = _back_to(provenance, scores, _PRODUCTS)
    if product is None:
        return ()
    inner = provenance.origin(product).step
    assert inner is not None
    queries, keys = [value for value in inner.arguments if isinstance(value, Tensor)][-2:]
    return queries, keys, values


def _back_to_mixing(provenance: Provenance, tensor: Tensor) -> Tensor | None:
    """The tensor that mixed positions last on the way to `tensor`: the result of attention itself."""
    for _ in range(MAX_STEPS):
        step = provenance.origin(tensor).step
        if step is None:
            return None
        if "attention" in step.name or step.name in _PRODUCTS:
            return tensor
        mixed = [
            value
            for value in _tensors(step.arguments)
            if any(Path.MIXED in path for path in provenance.origin(value).sources.values())
        ]
        if not mixed:
            return None
        tensor = mixed[0]
    return None


def _back_to(provenance: Provenance, tensor: Tensor, names: set[str]) -> Tensor | None:
    """The nearest tensor that one of the named operations made, back along first arguments that came from products."""
    for _ in range(MAX_STEPS):
        step = provenance.origin(tensor).step
        if step is None:
            return None
        if step.name in names:
            return tensor
        following = [value for value in _tensors(step.arguments) if provenance.origin(value).sources]
        if not following:
            return None
        tensor = following[0]
    return None


def _tensors(arguments: tuple[object, ...]) -> list[Tensor]:
    """The tensors among arguments, also those in a list, as `cat` has them."""
    flat = [entry for value in arguments for entry in (value if isinstance(value, list | tuple) else (value,))]
    return [value for value in flat if isinstance(value, Tensor)]

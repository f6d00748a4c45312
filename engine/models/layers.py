"""Layers: numbers what a walk over a model found, and says how wide each layer is, which module it is and which sites it has.

The public records `LayerSpec` and `ModelSpec`, and `Layer`, which ties a layer's number to its projection and hook points.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.engine.models import families
from actstore.engine.models.names import BLOCK_SITES, HEAD_SITES, PRODUCT_SITES, SITES
from actstore.engine.models.writing.path import UNKNOWN
from actstore.store.errors import ModelError
from actstore.store.files.records import APART, PARTS, part_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from actstore.engine.models.architecture import Architecture, Block, Projection
    from actstore.engine.models.sites import HookPoint


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a store: the neurons of one feed-forward, or of one expert."""

    layer: int  # its number
    neurons: int
    module: str  # path of the output projection; an expert of a shared parameter is "path[3]"
    gated: bool  # whether mlp.gate and mlp.up exist
    block: int  # number of its transformer block in its stack
    stack: str  # "decoder", "encoder", "vision", "projector" (between a vision tower and a language model) or "apart"
    expert: int | None  # its number among the block's routed experts; None for a dense or shared feed-forward
    d_model: int  # width of the residual stream it writes to
    scaled_by: tuple[
        str, ...
    ]  # what differs by position between its write vectors and the stream: "weight", "norm", or "unknown"
    heads: tuple[
        tuple[str, int], ...
    ] = ()  # (site, width) of the attention projections of its block, under its first layer

    @property
    def part(self) -> str | None:
        """The part of `PARTS` that it belongs to; layers of one part have rows for the same positions."""
        return part_of(self.stack)


@dataclass(frozen=True)
class ModelSpec:
    """What can be captured from a model."""

    name: str
    model_type: str
    kind: str  # "causal", "encoder", "encoder-decoder" or "vision"
    d_model: int  # of the last stack of the first part
    n_vocabulary: int | None
    context: int | None  # the maximum number of positions in a window; None where nothing bounds it
    layers: tuple[LayerSpec, ...]
    sites: tuple[str, ...]  # those that one layer or more has
    dtype: str  # of the weights: the checkpoint's, or the one a model was loaded in
    causal: bool  # whether a position sees earlier ones only, in the last stack
    site_layers: tuple[tuple[int, ...], ...]  # for each of `sites`, the layers that have it
    has_unembedding: bool  # whether logits are a matrix times the residual stream of width `d_model`

    def __repr__(self) -> str:
        """A line: 32 layers with all that is known of each would be pages."""
        n_neurons = sum(layer.neurons for layer in self.layers)
        what = f"{self.model_type}, {self.kind}, {len(self.layers)} layers, {n_neurons:,} neurons"
        return f"ModelSpec({self.name!r}: {what}, width {self.d_model}, {self.dtype}; sites {', '.join(self.sites)})"

    def width(self, layer: int, site: str) -> int:
        """The length of one row of `values` of a site in a layer."""
        spec = self.layers[layer]
        if SITES[site].axis == "head":
            return dict(spec.heads)[site]
        return spec.neurons if SITES[site].axis == "neuron" else spec.d_model

    def layers_of(self, site: str) -> tuple[int, ...]:
        """The layers that have a site. Residual sites belong to the first layer of each block."""
        return self.site_layers[self.sites.index(site)] if site in self.sites else ()

    def part_layers(self, part: str = "language") -> tuple[int, ...]:
        """The layers of one of `PARTS`, ascending, which have rows for the same positions; empty where there are none."""
        return tuple(spec.layer for spec in self.layers if spec.part == part)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts, of `PARTS`, that have layers."""
        return tuple(part for part in PARTS if self.part_layers(part))


@dataclass(frozen=True)
class Layer:
    """A layer's projection and hook_points."""

    projection: Projection
    parameter: str
    matrix: int  # its index in the parameter, where that holds several matrices
    expert: int | None
    position: int  # of its block, in order of execution
    hook_points: dict[str, HookPoint]
    sites: tuple[str, ...]


def list_layers(
    model: PreTrainedModel, architecture: Architecture, *, name: str, dtype: torch.dtype
) -> tuple[ModelSpec, list[Layer]]:
    """A model's specification and its layers, numbered as `actstore.engine.models.load` says."""
    blocks = _number_blocks(model, architecture)
    layers: list[Layer] = []
    for position, block in enumerate(architecture.blocks):
        for number, (projection, parameter, matrix, expert) in enumerate(_layers_of_block(model, block)):
            hook_points = block.hook_points if number == 0 else {}
            mlp = PRODUCT_SITES if projection.gate is not None else ("mlp.post",)
            sites = (*mlp, *(site for site in BLOCK_SITES if site in hook_points))
            layers.append(Layer(projection, parameter, matrix, expert, position, hook_points, sites))
            _check_shape(model, layers[-1])
    stacks = _stacks_of(layers, blocks)
    order = sorted(range(len(layers)), key=lambda i: _rank(stacks[i]))
    layers, stacks = [layers[i] for i in order], [stacks[i] for i in order]
    changed = _last_changes(architecture, blocks)
    specs = tuple(
        _specify(
            number, layer, stack, blocks[layer.position][1], stays=layer.position > changed[blocks[layer.position][0]]
        )
        for number, (layer, stack) in enumerate(zip(layers, stacks, strict=True))
    )
    sites = tuple(site for site in SITES if any(site in layer.sites for layer in layers))
    kind = families.kind_of(model)
    d_model = ([spec for spec in specs if spec.part == PARTS[0]] or specs)[-1].d_model
    spec = ModelSpec(
        name=name,
        model_type=model.config.model_type,
        kind=kind,
        d_model=d_model,
        n_vocabulary=families.vocabulary_of(model),
        context=families.context_of(model),
        layers=specs,
        sites=sites,
        dtype=str(dtype).removeprefix("torch."),
        causal=kind in {"causal", "encoder-decoder"},
        site_layers=tuple(tuple(i for i, layer in enumerate(layers) if site in layer.sites) for site in sites),
        has_unembedding=families.unembedding_of(model, d_model) is not None,
    )
    return spec, layers


def check_structure(model: PreTrainedModel, twin: PreTrainedModel) -> None:
    """Raise `ModelError` where a model's blocks are not built as its class builds them: wrapped, replaced or left out.

    Hook points are found in `twin`, which the class has built, and are right only for a model of the same modules.
    """
    expected, actual = (
        {name for name, _ in each.named_parameters(remove_duplicate=False) if re.search(r"\.\d+\.", name)}
        for each in (twin, model)
    )
    if expected != actual:
        name = min(expected ^ actual)
        what = "is missing" if name in expected else "is added"
        raise ModelError(
            f"expected the blocks of this {type(model).__name__} as its configuration says, and {name} {what}: parts of it were"
            " replaced, wrapped or compiled; pass the model without that"
        )


def _check_shape(model: PreTrainedModel, layer: Layer) -> None:
    projection = layer.projection
    n_expected = projection.n_matrices * projection.neurons * projection.width
    weight = model.get_parameter(layer.parameter)
    if weight.numel() != n_expected:
        raise ModelError(
            f"expected {layer.parameter} of this {type(model).__name__} to hold {projection.neurons} neurons of width"
            f" {projection.width}, as its configuration says, and found the shape {tuple(weight.shape)}: parts of it were"
            " replaced or cut; make its configuration say so"
        )


def _stacks_of(layers: Sequence[Layer], blocks: Sequence[tuple[str, int]]) -> list[str]:
    """The stack of every layer: its block's, or `APART` where its rows are not those of the part's first layer."""
    n_rows: dict[str, int] = {}
    stacks = []
    for layer in layers:
        stack = blocks[layer.position][0]
        n = layer.projection.n_rows
        is_apart = stack in PARTS and not layer.projection.routed and n != n_rows.setdefault(stack, n)
        stacks.append(APART if is_apart else stack)
    return stacks


def _rank(stack: str) -> int:
    """The rank by which the layers of a stack are numbered: those of the first part first."""
    later = (*PARTS[1:], APART)
    return 1 + later.index(stack) if stack in later else 0


def _last_changes(architecture: Architecture, blocks: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Stack → the position of the last block in it that norms or scales what blocks have written; -1 where none does."""
    last = {stack: -1 for stack, _ in blocks}
    for position, block in enumerate(architecture.blocks):
        if block.changes_stream:
            last[blocks[position][0]] = position
    return last


def _specify(number: int, layer: Layer, stack: str, block: int, *, stays: bool) -> LayerSpec:
    is_shared = layer.projection.n_matrices > 1
    path, _, name = layer.parameter.rpartition(".")
    path = layer.projection.owner if layer.projection.hooked else path
    module = f"{layer.parameter}[{layer.matrix}]" if is_shared else path if name == "weight" else layer.parameter
    return LayerSpec(
        layer=number,
        neurons=layer.projection.neurons,
        module=module,
        gated=layer.projection.gate is not None,
        block=block,
        stack=stack,
        expert=layer.expert,
        d_model=layer.projection.width,
        scaled_by=layer.projection.write_path.scaled_by if stays else (UNKNOWN,),
        heads=tuple(
            (site, len(point.features))
            for site in HEAD_SITES
            if (point := layer.hook_points.get(site)) is not None and point.features is not None
        ),
    )


def _layers_of_block(model: nn.Module, block: Block) -> Iterator[tuple[Projection, str, int, int | None]]:
    """(projection, parameter, matrix, expert) of a block's layers: dense ones as they run, then experts by index."""
    seen = set()
    for projection in block.projections:
        if not projection.routed:
            yield projection, projection.parameter, 0, None
    for projection in block.projections:
        if not projection.routed:
            continue
        if projection.n_matrices > 1:
            if projection.parameter not in seen:
                for expert in range(projection.n_matrices):
                    yield projection, projection.parameter, expert, expert
            seen.add(projection.parameter)
            continue
        for expert, parameter in _siblings(model, projection.parameter):
            if parameter not in seen:
                yield projection, parameter, 0, expert
            seen.add(parameter)


def _siblings(model: nn.Module, parameter: str) -> list[tuple[int, str]]:
    """(number, parameter) of the same projection in every module of a list of experts."""
    head, tail = re.fullmatch(r"(.*(?:^|[._]))\d+(\..*)", parameter).groups()  # type: ignore[union-attr]
    pattern = re.compile(re.escape(head) + r"(\d+)" + re.escape(tail))
    matches = (pattern.fullmatch(name) for name, _ in model.named_parameters(remove_duplicate=False))
    return sorted((int(match[1]), match[0]) for match in matches if match)


def _number_blocks(model: PreTrainedModel, architecture: Architecture) -> list[tuple[str, int]]:
    """(stack, number) of every block: its index in the model's own list, or in order of execution where runs repeat."""
    stacks = [families.stack_of(model, block.module, is_between=block.is_between) for block in architecture.blocks]
    names: dict[str, list[str]] = {}
    for stack, block in zip(stacks, architecture.blocks, strict=True):
        names.setdefault(stack, []).append(block.module.rpartition(".")[2])
    counter: Counter[str] = Counter()
    numbers = []
    for stack in stacks:
        of_stack = names[stack]
        is_list = all(name.isdigit() for name in of_stack) and len(set(of_stack)) == len(of_stack)
        numbers.append((stack, int(of_stack[counter[stack]]) if is_list else counter[stack]))
        counter[stack] += 1
    return numbers

"""Watching a forward pass: runs a model once and hands what its sites hold to a sink.

A site is read where a module hands it over (`sites`), or, where no module does, by watching matrix products (`products`).
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from actstore.engine.models import families
from actstore.engine.models.names import BLOCK_SITES, PRODUCT_SITES
from actstore.engine.models.products import ProductWatch, WatchedProjection
from actstore.engine.models.sites import HookPoint, LastLayerReached, Sink, reading_sites, tokens_only
from actstore.engine.models.writing.path import WRITE_SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from actstore.engine.models.architecture import Architecture
    from actstore.engine.models.layers import Layer
    from actstore.engine.models.writing.norms import Norm

    SitesByLayer = Mapping[int, Sequence[str]]


@dataclass(frozen=True)
class PassInputs:
    """What a forward pass reads, on any device."""

    input_ids: Tensor | None  # [window, position]
    attention_mask: Tensor | None  # [window, position]
    extra: Mapping[str, Tensor]  # pixel_values, input_features and the like


@dataclass(frozen=True)
class SiteReader:
    """A model whose sites can be read while it runs."""

    model: PreTrainedModel
    architecture: Architecture
    layers: Sequence[Layer]
    norms: Mapping[str, Norm]
    """Module → what a norm after a feed-forward does, of those whose scales are asked for."""

    def read(self, sites: SitesByLayer, inputs: PassInputs, sink: Sink) -> None:
        """Run `inputs` through the model once and hand `sites` of each layer to `sink`, as `LoadedModel.forward` says."""
        base = families.headless(self.model)  # the unembedding costs as much as several blocks, and no site needs it
        arguments = self._arguments(base, inputs)
        token_rows = families.TOKEN_POSITIONS.get(self.model.config.model_type)
        if token_rows is not None and inputs.input_ids is not None:
            n_windows, n_positions = inputs.input_ids.shape
            sink = tokens_only(sink, n_windows, n_positions, token_rows)
        projections = self._watched_projections(sites)
        last = max((self.layers[layer].position for layer in sites), default=0)
        block = self.architecture.blocks[last]
        with suppress(LastLayerReached), torch.inference_mode(), ExitStack() as contexts:
            watch = ProductWatch(projections, sink)
            # What the sink computes with torch would be seen by the watch too, and is none of the model's products.
            hook_sink = watch.pausing(self._scaling(sink)) if projections else self._scaling(sink)
            points = self._hook_points(sites)
            contexts.enter_context(reading_sites(self.model, points, hook_sink, stop=(block.module, block.run)))
            if projections:
                contexts.enter_context(watch)
            families.sub_model_for(base, arguments)(**arguments)
        watch.check_finished()

    def _arguments(self, base: PreTrainedModel, inputs: PassInputs) -> dict[str, Any]:
        """The arguments of the pass, on the model's device; floating-point inputs in its dtype."""
        device, dtype = self.model.device, self.model.dtype
        return families.arguments_for(
            base,
            None if inputs.input_ids is None else inputs.input_ids.to(device),
            None if inputs.attention_mask is None else inputs.attention_mask.to(device),
            {
                key: value.to(device, dtype if value.is_floating_point() else None)
                for key, value in inputs.extra.items()
            },
        )

    def _scaling(self, sink: Sink) -> Sink:
        """A sink that gets, of the input of a norm after a feed-forward, the scale of each row."""

        def scaled_sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
            norm = self.layers[layer].projection.write_path.norm
            if site == WRITE_SCALE and norm is not None:
                values = self.norms[norm.module].scales(values)
            sink(layer, site, values, rows)

        return scaled_sink

    def _hook_points(self, sites: SitesByLayer) -> dict[HookPoint, list[tuple[int, str]]]:
        """Hook point → the (layer, site) names that are read there."""
        points: dict[HookPoint, list[tuple[int, str]]] = {}
        for number, names in sites.items():
            layer = self.layers[number]
            for site in names:
                norm = layer.projection.write_path.norm
                if site == WRITE_SCALE and norm is not None:
                    points.setdefault(norm, []).append((number, site))
                elif site in BLOCK_SITES:
                    points.setdefault(layer.hook_points[site], []).append((number, site))
                elif site == "mlp.post" and layer.projection.hooked:
                    point = HookPoint(layer.projection.owner, "input", 0, layer.projection.run)
                    points.setdefault(point, []).append((number, site))
        return points

    def _watched_projections(self, sites: SitesByLayer) -> list[WatchedProjection]:
        """The projections whose products must be watched: routed ones, and those of which a factor is to be read.

        One entry per parameter: all experts of a 3-D parameter, or all runs of a shared module, are told apart while watching.
        """
        by_parameter: dict[str, list[int]] = {}
        for number, layer in enumerate(self.layers):
            by_parameter.setdefault(layer.parameter, []).append(number)
        watched = []
        for parameter, numbers in by_parameter.items():
            projection = self.layers[numbers[0]].projection
            names = {n: [site for site in sites.get(n, ()) if _is_watched(self.layers[n], site)] for n in numbers}
            if any(names.values()):
                weight = self.model.get_parameter(parameter)
                watched.append(
                    WatchedProjection(
                        weight, projection.n_matrices, projection.routed, projection.gate, tuple(numbers), names
                    )
                )
        return watched


def _is_watched(layer: Layer, site: str) -> bool:
    if site == WRITE_SCALE:
        return layer.projection.write_path.is_weighted
    return site in PRODUCT_SITES and not (site == "mlp.post" and layer.projection.hooked)

"""Write scales: what each position multiplies the write vectors of a layer with, from the factors that a pass hands over.

A norm after the feed-forward scales them by one over the root mean square of its input, a mixture by the routing weight of the
expert. Captures keep them (`capture.write_scales`); edits and permuted images read them of single windows (`read_scales`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from actstore.engine.models.writing.path import WRITE_SCALE, is_scaled

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel


class Scale(NamedTuple):
    """The complete scale of a layer in one pass."""

    values: Tensor
    """[row] float32"""
    rows: Tensor | None
    """The rows of the pass that an expert saw; None where there is one for each."""

    def at(self, rows: Tensor) -> NDArray[np.float32]:
        """The scale at some rows of the pass; 0 where an expert did not see one, and where it is not finite."""
        if self.rows is None:
            found = self.values[rows.to(self.values.device)]
        else:
            seen = self.rows.to(self.values.device) == rows.to(self.values.device)[:, None]  # [row, seen row]
            found = torch.where(seen, self.values, 0).sum(1)
        array: NDArray[np.float32] = torch.where(found.isfinite(), found, 0).cpu().numpy()
        return array


class ScaleFactors:
    """Multiplies the factors of layers, pass by pass: `begin`, then `add` for each factor."""

    def __init__(self, model: LoadedModel, layers: Iterable[int]) -> None:
        """Of those of the layers that have a scale."""
        self._factors = {layer: set(by) for layer in sorted({*layers}) if is_scaled(by := model.scaled_by(layer))}
        self.begin()

    @property
    def layers(self) -> Collection[int]:
        """The layers of which factors are awaited."""
        return self._factors.keys()

    def begin(self) -> None:
        """Start on a pass."""
        self._begun: dict[int, Scale] = {}
        self._n_factors: dict[int, int] = {}

    def add(self, layer: int, factor: Tensor, rows: Tensor | None) -> Scale | None:
        """Multiply a layer's scale by a factor [row, 1]: the scale, once it has all its factors.

        rows: as for `LoadedModel.forward`. An expert that no row was routed to has none: the norm alone does not make it one.
        """
        factors = self._factors.get(layer)
        if factors is None:
            return None
        values = factor.reshape(-1).float()
        before = self._begun.get(layer)
        if before is not None:
            values, rows = _product(before, Scale(values, rows))
        self._begun[layer] = Scale(values, rows)
        self._n_factors[layer] = self._n_factors.get(layer, 0) + 1
        return self._begun[layer] if self._n_factors[layer] == len(factors) else None


def _product(left: Scale, right: Scale) -> Scale:
    """The product of two factors, at the rows that both have: of a norm, those that the expert saw."""
    if left.rows is None and right.rows is not None:
        left, right = right, left
    if left.rows is None or right.rows is not None:
        return Scale(left.values * right.values, left.rows)
    return Scale(left.values * right.values[left.rows.to(right.values.device)], left.rows)


def read_scales(model: LoadedModel, arguments: Mapping[str, Any], layers: Iterable[int]) -> dict[int, Tensor]:
    """Layer → its scale at all positions of windows [window, position], float32 on the CPU; of the layers that have one.

    arguments: of the model, `input_ids` among them. One pass; none where no layer has a scale. 0 where an expert did not see
    the position, and where the number is not finite, as in a capture.
    """
    factors = ScaleFactors(model, layers)
    if not factors.layers:
        return {}
    ids = arguments["input_ids"]
    scales = {layer: torch.zeros(ids.numel()) for layer in factors.layers}

    def sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
        if site != WRITE_SCALE or (scale := factors.add(layer, values, rows)) is None:
            return
        finite = torch.where(scale.values.isfinite(), scale.values, 0).cpu()
        scales[layer][slice(None) if scale.rows is None else scale.rows.cpu()] = finite

    extra = {
        name: value for name, value in arguments.items() if name not in ("input_ids", "attention_mask", "use_cache")
    }
    with torch.inference_mode():
        model.forward(ids, arguments.get("attention_mask"), layers=factors.layers, sink=sink, extra=extra, scales=True)
    return {layer: scale.reshape(ids.shape) for layer, scale in scales.items()}

"""How much a neuron's activation depends on each token of a window: what masking the token takes away of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.graphs.probes.plan import NO_TOKEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass
class Variant:
    """A shortened exemplar with one token substituted."""

    ids: NDArray[np.int32]
    position: int
    values: NDArray[np.float32]
    importance: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[masked position, position] as `importance_of`, measured in the variant; empty where nothing was masked in it."""


def importance_of(
    values: NDArray[np.float32],
    positions: Sequence[int] | NDArray[np.integer],
    masked: Sequence[NDArray[np.float32]],
    *,
    deleted: bool,
    causal: bool,
) -> NDArray[np.float32]:
    """1 - a(masked) / a [masked position, position]; NaN where it was not measured, and where a is not above 0.

    values: [position] a. masked: for each of `positions`, the values of the window with that token masked, all of one length,
    that of the window or shorter. deleted: masked tokens were left out, and those behind them moved. causal: a token changes
    later positions only.
    """
    n, place = len(values), np.asarray(positions)
    importance = np.full((n, n), np.nan, np.float32)
    if not len(place):
        return importance
    rows = np.stack(masked)
    if deleted:
        # The values are put back to where the tokens were.
        column = np.arange(rows.shape[1] + 1)
        rows = np.take_along_axis(rows, np.maximum(column - (column >= place[:, None]), 0), axis=1)
        rows[np.arange(len(place)), place] = np.nan
    rows = rows[:, :n]
    unmasked = values[: rows.shape[1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = 1 - rows / unmasked
    measured[:, unmasked <= 0] = np.nan
    if causal:
        measured[np.arange(rows.shape[1]) < place[:, None]] = np.nan
    importance[place, : rows.shape[1]] = measured
    return importance


def add_variant_importance(
    original: NDArray[np.int32],
    variants: Sequence[Variant],
    rows: Mapping[str, NDArray[Any]],
    windows: Sequence[NDArray[np.int32]],
    values: Sequence[NDArray[np.float32]],
    *,
    causal: bool,
) -> None:
    """Give each variant of an exemplar, whose tokens are `original`, its importance, from the maskings of its variants.

    rows: column → values [masking] of requests, with `position` and `token`. windows, values: [masking] tokens and activations
    of the neuron. Which variant a window is of, its tokens say: beside the masked one, they differ from the original's at
    the substituted position. With the substituted token masked, all variants of that position are one window.
    """
    if not len(rows["position"]):
        return
    deleted = bool(rows["token"][0] == NO_TOKEN)
    of_variant: dict[tuple[int, int], dict[int, NDArray[np.float32]]] = {}
    of_place: dict[int, NDArray[np.float32]] = {}
    for position, window, activations in zip(rows["position"].tolist(), windows, values, strict=True):
        ids = np.insert(window, position, original[position]) if deleted else window
        differs = ids != original[: len(ids)]
        differs[position] = False
        if differs.any():
            changed = int(np.flatnonzero(differs)[0])
            of_variant.setdefault((changed, int(ids[changed])), {})[position] = activations
        elif len(activations) > len(of_place.get(position, ())):
            of_place[position] = activations
    for variant in variants:
        measured = of_variant.get((variant.position, int(variant.ids[variant.position])))
        if measured is None:
            continue
        if variant.position in of_place:
            measured[variant.position] = of_place[variant.position]
        # All maskings of one variant have one length; that of its place is the longest of all variants there.
        n = min(map(len, measured.values()))
        cut = [activations[:n] for activations in measured.values()]
        variant.importance = importance_of(variant.values, [*measured], cut, deleted=deleted, causal=causal)

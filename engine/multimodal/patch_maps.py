"""Where on an image neurons are active: the mean of their activations, or contributions, at each patch, mapped onto the image.

Patches are placed where the capture says they came from, so that crops, tiles and padding are right: within a tile values are
interpolated between the patches' centres, and a pixel that several tiles show gets their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.capture.tokens.write_scale import block_scale
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.reader import Capture

ROWS_READ_ALONE = 8
"""Maximum number of neurons of a layer that are read row by row; beyond, the whole block is read."""
PERCENTILE = 95.0


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of one image that a capture holds; one row per patch."""

    slots: NDArray[np.int64]
    """Their columns in the block's [neuron, token] arrays."""
    tile: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    box: NDArray[np.float64]
    """Left, top, right and bottom as fractions of the original image; [patch, 4]."""

    def spread(self, values: NDArray[np.floating], width: int, height: int) -> NDArray[np.float64]:
        """Values [patch] interpolated bilinearly at the centre of each pixel [row, column]; NaN where no patch shows the pixel.

        Beyond the outermost centres of a tile values are constant up to the tile's edge. Pixels of patches without a value get
        those of the neighbouring patches, where their interpolation reaches.
        """
        x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        total, weight = np.zeros((height, width)), np.zeros((height, width))
        for tile in np.unique(self.tile):
            patches = np.flatnonzero(self.tile == tile)
            across = _axis(self.column[patches], self.box[patches, 0::2], x)
            down = _axis(self.row[patches], self.box[patches, 1::2], y)
            tile_values = values[patches].astype(np.float64)
            has_value = np.isfinite(tile_values)
            # Values and the weights of those that exist are interpolated alike; their quotient leaves out what is missing.
            grid, exists = np.zeros((down.n, across.n)), np.zeros((down.n, across.n))
            cells = self.row[patches] - down.first, self.column[patches] - across.first
            grid[cells], exists[cells] = np.where(has_value, tile_values, 0), has_value
            share = down.weights @ exists @ across.weights.T
            inside = share > 1e-9
            total += np.divide(down.weights @ grid @ across.weights.T, share, out=np.zeros_like(share), where=inside)
            weight += inside
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


@dataclass(frozen=True)
class _Axis:
    """How the pixels along one axis are interpolated from a tile's patches."""

    first: int
    n: int
    weights: NDArray[np.float64]
    """[pixel, row or column of patches]: the weights of two neighbours, 0 outside the tile."""


def _axis(index: NDArray[np.int64], edges: NDArray[np.float64], pixels: NDArray[np.float64]) -> _Axis:
    """The axis of patches with index [patch] and edges [patch, 2]; those of one row (or column) share their mean centre."""
    first, n = int(index.min()), int(index.max() - index.min() + 1)
    counts = np.bincount(index - first, minlength=n)
    rows_there = np.flatnonzero(counts)
    centres = np.bincount(index - first, edges.mean(axis=1), n)[rows_there] / counts[rows_there]
    order = np.argsort(centres, kind="stable")
    centres, rows_there = centres[order], rows_there[order]
    weights = np.zeros((len(pixels), n))
    right = np.clip(np.searchsorted(centres, pixels), 1, max(len(centres) - 1, 1))
    inside = (pixels >= edges.min()) & (pixels <= edges.max())
    numbers = np.arange(len(pixels))
    if len(centres) == 1:
        weights[:, rows_there[0]] = inside
        return _Axis(first, n, weights)
    gap = centres[right] - centres[right - 1]
    share = np.clip((pixels - centres[right - 1]) / np.where(gap > 0, gap, 1), 0, 1)
    weights[numbers, rows_there[right - 1]] = np.where(inside, 1 - share, 0)
    weights[numbers, rows_there[right]] += np.where(inside, share, 0)
    return _Axis(first, n, weights)


@dataclass(frozen=True, eq=False)
class PatchMap:
    """The mean activation of some neurons at each patch of one document's image."""

    document: int
    grid: PatchGrid
    values: NDArray[np.float64]
    """[patch]"""
    width: int
    height: int
    """Of the original image, in pixels."""

    def pixels(self) -> NDArray[np.float64]:
        """The map over the image [row, column]; NaN where no patch shows it."""
        return self.grid.spread(self.values, self.width, self.height)

    def mask(self, percentile: float = PERCENTILE) -> NDArray[np.bool_]:
        """The pixels above the percentile of the map [row, column]."""
        return mask_of(self.pixels(), percentile)


def mask_of(pixels: NDArray[np.float64], percentile: float = PERCENTILE) -> NDArray[np.bool_]:
    """The pixels above a percentile of those that have a value; none of a constant map."""
    finite = pixels[np.isfinite(pixels)]
    if not len(finite):
        return np.zeros(pixels.shape, bool)
    with np.errstate(invalid="ignore"):
        return pixels > np.percentile(finite, percentile)


@dataclass(frozen=True)
class NeuronSet:
    """The neurons of one map."""

    neurons: Sequence[tuple[int, int]]
    """(layer, index)"""
    weights: Sequence[float] | None = None
    """What each neuron's activations are multiplied with; None: 1.

    In gated models a neuron promotes a noun by an activation below zero as often as by one above, and in a plain mean the two
    cancel. Weighted by their products with the noun's direction, the map shows contributions to the noun.
    """
    is_scaled: bool = False
    """Whether activations are also multiplied with what scales their write vectors at each patch, as contributions are."""


def map_neurons(
    capture: Capture, sets: Mapping[int, Sequence[NeuronSet]], site: str = "mlp.post"
) -> Iterator[tuple[int, int, PatchMap]]:
    """(document, number of its set, map) for `sets` of neurons, document → sets.

    Block by block, and each layer of a block is read once, whatever the number of sets. Documents whose image has no patches
    in committed blocks are left out. A patch at which no neuron of the set has a value (routed experts) is NaN.

    `NotFoundError` for a capture of text; `InvalidInputError` where no position of the images is captured and has a patch.
    """
    patches = capture.block_patches  # raises for captures of text
    windows = capture.windows().select(["document", "block"])
    document_of, block_of = windows["document"].to_numpy(), windows["block"].to_numpy()
    documents = capture.documents()
    sizes = dict(enumerate(zip(documents["width"].to_pylist(), documents["height"].to_pylist(), strict=True)))
    has_map = False
    for block in sorted(set(block_of[np.isin(document_of, list(sets))].tolist()) & set(capture.blocks)):
        grids = read_grids(capture, block, patches(block), sets)
        means = _mean_values(capture, block, {d: (grid.slots, sets[d]) for d, grid in grids.items()}, site)
        for document, number, values in means:
            has_map = True
            yield document, number, PatchMap(document, grids[document], values, *sizes[document])
    if not has_map and sets:
        captured = capture.record.plan.settings.get("positions", "all")
        raise InvalidInputError(
            f"Capture {capture.record.name!r} holds no position of these images that has a patch (it was made with "
            f'`positions={captured!r}`): nothing can be mapped. Capture again with `positions="all"`.'
        )


def read_grids(capture: Capture, block: int, table: pa.Table, documents: Container[int]) -> dict[int, PatchGrid]:
    """Document → patches, of those documents whose window is in a block; positions that are captured and have a patch."""
    plan = capture.block_plan(block)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    box = np.stack([columns[side].astype(np.float64) for side in ("left", "top", "right", "bottom")], axis=1)
    placed = (columns["token"] >= 0) & (columns["row"] >= 0) & np.isfinite(box).all(axis=1)
    first = block * capture.record.plan.block_slots
    grids = {}
    for window, document in zip(plan.windows["window"].tolist(), plan.windows["document"].tolist(), strict=True):
        patches = np.flatnonzero(placed & (columns["window"] == window))
        if document in documents and len(patches):
            tile, row, column = (columns[name][patches].astype(np.int64) for name in ("tile", "row", "column"))
            slots = columns["token"][patches].astype(np.int64) - first
            grids[document] = PatchGrid(slots, tile, row, column, box[patches])
    return grids


def _mean_values(
    capture: Capture,
    block: int,
    of_document: Mapping[int, tuple[NDArray[np.int64], Sequence[NeuronSet]]],
    site: str,
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """(document, number of its set, weighted mean over the set's neurons at each of the document's slots)."""
    sums = {(d, i): np.zeros((2, len(slots))) for d, (slots, sets) in of_document.items() for i in range(len(sets))}
    by_layer: dict[int, list[tuple[int, int, int, float, bool]]] = {}
    for d, (_, sets) in of_document.items():
        for i, neuron_set in enumerate(sets):
            weights = neuron_set.weights if neuron_set.weights is not None else [1.0] * len(neuron_set.neurons)
            for (layer, index), weight in zip(neuron_set.neurons, weights, strict=True):
                by_layer.setdefault(layer, []).append((index, d, i, weight, neuron_set.is_scaled))
    for layer, entries in sorted(by_layer.items()):
        rows = _Rows(capture, layer, block, site, {entry[0] for entry in entries})
        scale = block_scale(capture, layer, block)
        for index, d, i, weight, is_scaled in entries:
            slots = of_document[d][0]
            values = rows.read(index)[slots].astype(np.float64) * weight
            if is_scaled and scale is not None:
                values *= scale[slots]
            has_value = np.isfinite(values)
            sums[d, i] += np.where(has_value, values, 0), has_value
    for (d, i), (total, count) in sums.items():
        yield d, i, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


class _Rows:
    """Rows of one layer in one block: read one by one where they are few."""

    def __init__(self, capture: Capture, layer: int, block: int, site: str, neurons: set[int]) -> None:
        self._values = (
            None if len(neurons) <= ROWS_READ_ALONE else capture.block_values(layer, block, site, saturated=True)
        )  # [neuron, token]
        read_alone = neurons if self._values is None else set()
        self._rows = {i: capture.block_row(layer, i, block, site, saturated=True) for i in read_alone}

    def read(self, neuron: int) -> NDArray[np.float32]:
        return self._rows[neuron] if self._values is None else self._values[neuron]

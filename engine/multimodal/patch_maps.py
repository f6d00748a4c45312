"""Where on an image neurons look: the mean of their activations, or contributions, at each patch, laid over the image.

Patches lie where the capture says they came from, so that crops, tiles and padding fall into place: within a tile values
are interpolated between the patches' centres, and where several tiles show the same pixel, it gets their mean. Reads stores;
knows nothing about how neurons were chosen or how maps are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.reader import Capture

ROWS_READ_ALONE = 8
"""Up to so many neurons of a layer are read row by row; beyond, the whole block."""
PERCENTILE = 95.0


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of one image that a capture keeps, a row each."""

    slots: NDArray[np.int64]
    """Their columns in the block's [neuron, token] arrays."""
    tile: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    box: NDArray[np.float64]
    """Left, top, right and bottom as shares of the original image; shape [patch, 4]."""

    def spread(self, values: NDArray[np.floating], width: int, height: int) -> NDArray[np.float64]:
        """Values [patch] bilinear at the centre of each pixel [row, column]; NaN where no patch shows the pixel.

        Beyond the outermost centres of a tile values go on unchanged to the tile's edge. Patches without a value leave their
        pixels to their neighbours, as far as these reach.
        """
        x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        total, weight = np.zeros((height, width)), np.zeros((height, width))
        for tile in np.unique(self.tile):
            here = np.flatnonzero(self.tile == tile)
            across, down = (
                _axis(self.column[here], self.box[here, 0::2], x),
                _axis(self.row[here], self.box[here, 1::2], y),
            )
            found = values[here].astype(np.float64)
            there = np.isfinite(found)
            grid, known = np.zeros((down.n, across.n)), np.zeros((down.n, across.n))
            cells = self.row[here] - down.first, self.column[here] - across.first
            grid[cells], known[cells] = np.where(there, found, 0), there
            share = down.weights @ known @ across.weights.T
            inside = share > 1e-9
            map_ = np.divide(down.weights @ grid @ across.weights.T, share, out=np.zeros_like(share), where=inside)
            total += map_
            weight += inside
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


@dataclass(frozen=True)
class _Axis:
    """How pixels along one axis read a tile's patches."""

    first: int
    n: int
    weights: NDArray[np.float64]
    """[pixel, row or column]: two neighbours' shares, 0 outside the tile."""


def _axis(index: NDArray[np.int64], edges: NDArray[np.float64], pixels: NDArray[np.float64]) -> _Axis:
    """index, edges [patch, 2] of each patch along one axis; patches in one row or column share their place."""
    first, n = int(index.min()), int(index.max() - index.min() + 1)
    counts = np.bincount(index - first, minlength=n)
    there = np.flatnonzero(counts)
    centres = np.bincount(index - first, edges.mean(axis=1), n)[there] / counts[there]
    order = np.argsort(centres, kind="stable")
    centres, there = centres[order], there[order]
    weights = np.zeros((len(pixels), n))
    right = np.clip(np.searchsorted(centres, pixels), 1, max(len(centres) - 1, 1))
    inside = (pixels >= edges.min()) & (pixels <= edges.max())
    rows = np.arange(len(pixels))
    if len(centres) == 1:
        weights[:, there[0]] = inside
        return _Axis(first, n, weights)
    gap = centres[right] - centres[right - 1]
    share = np.clip((pixels - centres[right - 1]) / np.where(gap > 0, gap, 1), 0, 1)
    weights[rows, there[right - 1]] = np.where(inside, 1 - share, 0)
    weights[rows, there[right]] += np.where(inside, share, 0)
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
    """The pixels above a percentile of those that have a value; of a map that is the same everywhere, none."""
    known = pixels[np.isfinite(pixels)]
    if not len(known):
        return np.zeros(pixels.shape, bool)
    with np.errstate(invalid="ignore"):
        return pixels > np.percentile(known, percentile)


@dataclass(frozen=True)
class NeuronSet:
    """The neurons of one map."""

    neurons: Sequence[tuple[int, int]]
    """(layer, index)"""
    weights: Sequence[float] | None = None
    """What each neuron's activations are multiplied with; 1 unless given.

    In gated models a neuron speaks for a noun by an activation below zero as often as by one above, and in a plain mean the
    two cancel. Weighted by their products with the noun's direction, the map is of contributions to the noun.
    """


def map_neurons(
    capture: Capture, wanted: Mapping[int, Sequence[NeuronSet]], site: str = "mlp.post"
) -> Iterator[tuple[int, int, PatchMap]]:
    """(document, which of its sets, map) for sets of neurons, each document's own.

    Documents come block by block, and of each block a layer is read once, whatever the number of sets. Documents whose
    image has no patches in committed blocks are left out. A patch at which no neuron of the set has a value (experts) is NaN.

    `NotFoundError` for a capture of text; `InvalidInputError` where none of the images' positions is kept or has a place.
    """
    patches = capture.block_patches  # refuses captures of text
    windows = capture.windows().select(["document", "block"])
    document_of, block_of = windows["document"].to_numpy(), windows["block"].to_numpy()
    documents = capture.documents()
    sizes = dict(enumerate(zip(documents["width"].to_pylist(), documents["height"].to_pylist(), strict=True)))
    found = False
    for block in sorted(set(block_of[np.isin(document_of, list(wanted))].tolist()) & set(capture.blocks)):
        grids = read_grids(capture, block, patches(block), wanted)
        means = _mean_values(capture, block, {d: (grid.slots, wanted[d]) for d, grid in grids.items()}, site)
        for document, number, values in means:
            found = True
            yield document, number, PatchMap(document, grids[document], values, *sizes[document])
    if not found and wanted:
        kept = capture.record.plan.settings.get("positions", "all")
        raise InvalidInputError(
            f"Capture {capture.record.name!r} keeps no position of these images that has a place on them (--positions {kept}): "
            "there is nothing to map. Capture again with --positions all."
        )


def read_grids(capture: Capture, block: int, table: pa.Table, documents: Container[int]) -> dict[int, PatchGrid]:
    """The patches of those documents whose window lies in a block, of positions that are kept and have a place."""
    plan = capture.block_plan(block)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    box = np.stack([columns[side].astype(np.float64) for side in ("left", "top", "right", "bottom")], axis=1)
    placed = (columns["token"] >= 0) & (columns["row"] >= 0) & np.isfinite(box).all(axis=1)
    first = block * capture.record.plan.block_slots
    grids = {}
    for window, document in zip(plan.windows["window"].tolist(), plan.windows["document"].tolist(), strict=True):
        here = np.flatnonzero(placed & (columns["window"] == window))
        if document in documents and len(here):
            tile, row, column = (columns[name][here].astype(np.int64) for name in ("tile", "row", "column"))
            slots = columns["token"][here].astype(np.int64) - first
            grids[document] = PatchGrid(slots, tile, row, column, box[here])
    return grids


def _mean_values(
    capture: Capture,
    block: int,
    wanted: Mapping[int, tuple[NDArray[np.int64], Sequence[NeuronSet]]],
    site: str,
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """(document, set, weighted mean over the set's neurons at each of the document's slots)."""
    sums = {(d, i): np.zeros((2, len(slots))) for d, (slots, sets) in wanted.items() for i in range(len(sets))}
    asked: dict[int, list[tuple[int, int, int, float]]] = {}
    for d, (_, sets) in wanted.items():
        for i, one in enumerate(sets):
            weights = one.weights if one.weights is not None else [1.0] * len(one.neurons)
            for (layer, index), weight in zip(one.neurons, weights, strict=True):
                asked.setdefault(layer, []).append((index, d, i, weight))
    for layer, entries in sorted(asked.items()):
        rows = _Rows(capture, layer, block, site, {entry[0] for entry in entries})
        for index, d, i, weight in entries:
            values = rows.read(index)[wanted[d][0]].astype(np.float64) * weight
            there = np.isfinite(values)
            sums[d, i] += np.where(there, values, 0), there
    for (d, i), (total, count) in sums.items():
        yield d, i, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


class _Rows:
    """Rows of one layer in one block: read one by one where few are wanted."""

    def __init__(self, capture: Capture, layer: int, block: int, site: str, neurons: set[int]) -> None:
        self._values = (
            None if len(neurons) <= ROWS_READ_ALONE else capture.block_values(layer, block, site, saturated=True)
        )  # [neuron, token]
        alone = neurons if self._values is None else set()
        self._known = {i: capture.block_row(layer, i, block, site, saturated=True) for i in alone}

    def read(self, neuron: int) -> NDArray[np.float32]:
        return self._known[neuron] if self._values is None else self._values[neuron]

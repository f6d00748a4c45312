"""Every neuron's nearest neurons: all pairs of some layers, a tile of them at a time.

A tile is some neurons of a layer, compared with those of the same layer that come with or after them, or with all of a later
layer: each pair of neurons is computed once, and serves both. Workers take tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from actstore.engine.coactivation.coactivation import compared_widths, counted_slots, no_position, nullable
from actstore.engine.coactivation.pairs import Pairs, compare
from actstore.engine.coactivation.settings import MEASURES, CoactivationSettings
from actstore.engine.devices.device import HOST, Device
from actstore.engine.devices.stream import stream_values
from actstore.engine.workers.scan import HERE, Scan
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronIndex, neuron_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.kernels.coactivation.api import Coactivation
    from actstore.store.reader import Capture

PAIRS: Final = 1 << 23
"""Pairs of a tile: their states, and what the merging of two takes, are 0.45 GB."""

COLUMNS: Final = (*MEASURES, "both_fire", "tokens")
"""What is kept of a pair."""


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of some neurons, the nearest first; every array has the shape [neuron, k]."""

    numbers: NDArray[np.int64]
    """By `NeuronIndex`; -1 where there are fewer."""
    correlation: NDArray[np.float32]
    jaccard: NDArray[np.float32]
    both_fire: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @classmethod
    def none(cls, n_neurons: int, k: int) -> Neighbours:
        """Of neurons that have been compared with none."""
        shape = (n_neurons, k)
        correlation, jaccard = (np.full(shape, np.nan, np.float32) for _ in range(2))
        return cls(np.full(shape, -1), correlation, jaccard, np.zeros(shape, np.int64), np.zeros(shape, np.int64))

    @classmethod
    def among(cls, pairs: Pairs, numbers: NDArray[np.int64], own: NDArray[np.int64], sort: str, k: int) -> Neighbours:
        """Of each row of `pairs`, whose number is in `own` [row], among its columns, which are `numbers` [column]."""
        values = np.where(own[:, None] == numbers, np.nan, getattr(pairs, sort))
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]  # NaN comes last
        missing = np.isnan(np.take_along_axis(values, order, axis=1))
        columns = (np.take_along_axis(getattr(pairs, name), order, axis=1) for name in COLUMNS)
        return cls(np.where(missing, -1, numbers[order]), *columns)

    def add(self, rows: slice, others: Neighbours, sort: str) -> None:
        """Keep in place what is nearest of both in some rows; the order of adding makes no difference."""
        names = ("numbers", *COLUMNS)
        both = {name: np.concatenate([getattr(self, name)[rows], getattr(others, name)], axis=1) for name in names}
        values = np.where(both["numbers"] < 0, np.nan, both[sort])
        order = np.lexsort((both["numbers"], -values), axis=1)[:, : self.numbers.shape[1]]
        for name in names:
            getattr(self, name)[rows] = np.take_along_axis(both[name], order, axis=1)


@dataclass(frozen=True)
class NearestNeurons:
    """The nearest neurons of every neuron of some layers."""

    settings: CoactivationSettings
    index: NeuronIndex
    neighbours: Neighbours
    """Its rows are numbered by `index`."""
    fires: NDArray[np.int64]
    """[neuron] Tokens on which each fires."""
    n_tokens: int
    """Tokens that were looked at."""

    def table(self) -> pa.Table:
        """One row per neuron and nearest neuron, neurons in their order, the nearest first.

        Columns: name, layer, neuron; other_name, other_layer, other_neuron; correlation and jaccard; both_fire, fires and
        other_fires, the tokens on which both, and on which each fires; tokens, at which both have an activation.
        """
        neighbours = self.neighbours
        rows, places = np.nonzero(neighbours.numbers >= 0)
        others = neighbours.numbers[rows, places]
        columns = {name: nullable(getattr(neighbours, name)[rows, places]) for name in COLUMNS}
        return pa.table(
            neuron_columns(*self.index.locate(rows))
            | neuron_columns(*self.index.locate(others), "other_")
            | {name: columns[name] for name in (*MEASURES, "both_fire")}
            | {"fires": pa.array(self.fires[rows]), "other_fires": pa.array(self.fires[others])}
            | {"tokens": columns["tokens"]}
        )

    def strongest(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.generic]]]:
        """The n pairs of nearest neurons with the largest values, each once: both numbers, the smaller first, and `COLUMNS`."""
        rows, places = np.nonzero(self.neighbours.numbers >= 0)
        others = self.neighbours.numbers[rows, places]
        first, second = np.minimum(rows, others), np.maximum(rows, others)
        _, once = np.unique(first * len(self.index) + second, return_index=True)
        values = getattr(self.neighbours, self.settings.sort)[rows, places]
        chosen = once[np.argsort(-values[once], kind="stable")][:n]
        columns = {name: getattr(self.neighbours, name)[rows[chosen], places[chosen]] for name in COLUMNS}
        return first[chosen], second[chosen], columns


def find_nearest(
    capture: Capture,
    settings: CoactivationSettings | None = None,
    *,
    on_tile: Callable[[int, int], None] = lambda done, n_tiles: None,
    executor: Executor = HERE,
    device: Device = HOST,
) -> NearestNeurons:
    """The `settings.k` nearest neurons of every neuron of the capture, or of `settings.layers`.

    Ties go to the smaller layer and neuron; a neuron without a value of the measure, because it never changes or never fires,
    has no neighbours and is none. The time grows with the square of the number of neurons. Raises as `find_coactivation`.
    """
    settings = settings or CoactivationSettings()
    compare_tile = _TileComparison(capture, NeuronIndex(compared_widths(capture, settings)), settings, device)
    counts = [counted_slots(capture, block, settings.positions) for block in capture.blocks]
    n_tokens = sum(int(counted.sum()) for counted in counts if counted is not None)
    if not n_tokens:
        raise InvalidInputError(no_position(capture, settings))
    index, tiles = compare_tile.index, list(compare_tile.tiles())
    neighbours = Neighbours.none(len(index), compare_tile.k)
    fires = np.zeros(len(index), np.int64)
    for done, result in enumerate(Scan(executor)(compare_tile, tiles)):
        for rows, found in ((result.rows, result.own), (result.columns, result.others)):
            neighbours.add(rows, found, settings.sort)
        fires[result.rows] = result.fires
        on_tile(done + 1, len(tiles))
    return NearestNeurons(settings, index, neighbours, fires, n_tokens)


@dataclass(frozen=True)
class _Tile:
    """Neurons `first` to `stop` of a layer, compared with all of layer `other`, or with those from `first` of their own."""

    layer: int
    first: int
    stop: int
    other: int

    def __str__(self) -> str:
        return f"neurons {self.first} to {self.stop - 1} of layer {self.layer} with layer {self.other}"


@dataclass(frozen=True)
class _TileResult:
    """The nearest on the other side of a tile: of its own neurons, and of those on the other side that come after them."""

    rows: slice
    """The tile's own neurons, by number."""
    own: Neighbours
    fires: NDArray[np.int64]
    """[own neuron] Tokens on which each fires."""
    columns: slice
    """The others, by number."""
    others: Neighbours


@dataclass(frozen=True)
class _TileComparison:
    """What compares the neurons of a tile over all blocks, here or in a worker."""

    capture: Capture
    index: NeuronIndex
    settings: CoactivationSettings
    device: Device

    @property
    def k(self) -> int:
        """Nearest neurons that are kept: no more than there are others."""
        return min(self.settings.k, max(len(self.index) - 1, 1))

    def tiles(self) -> Iterator[_Tile]:
        """All tiles, layer by layer."""
        widths = dict(zip(self.index.layers.tolist(), self.index.widths.tolist(), strict=True))
        for layer, width in widths.items():
            for other, other_width in widths.items():
                if other < layer or (self.settings.within_layers and other != layer):
                    continue
                height = max(1, PAIRS // other_width)
                for first in range(0, width, height):
                    yield _Tile(layer, first, min(first + height, width), other)

    def __call__(self, tile: _Tile) -> _TileResult:
        pairs = Pairs.of(self._add_up(tile))
        sort, k, own = self.settings.sort, self.k, self.index.of_layer(tile.layer)[tile.first : tile.stop]
        others = self.index.of_layer(tile.other)
        n_common = 0
        if tile.other == tile.layer:
            n_common, others = len(own), others[tile.first :]
            pairs.mirror(n_common)
        rows, columns = np.array(own), np.array(others)
        after = pairs.transposed(n_common)
        return _TileResult(
            slice(own.start, own.stop),
            Neighbours.among(pairs, columns, rows, sort, k),
            pairs.chosen_fires,
            slice(others.start + n_common, others.stop),
            Neighbours.among(after, rows, columns[n_common:], sort, k),
        )

    def _add_up(self, tile: _Tile) -> Coactivation:
        """The state of a tile's pairs over all blocks."""
        settings, is_square = self.settings, tile.other == tile.layer
        counted = {block: counted_slots(self.capture, block, settings.positions) for block in self.capture.blocks}
        blocks = [block for block, slots in counted.items() if slots is not None]
        layers = [tile.layer] if is_square else [tile.layer, tile.other]
        places = [(layer, block) for block in blocks for layer in layers]
        streamed = stream_values(self.capture, places, settings.site, self.device)
        state: Coactivation | None = None
        for block in blocks:
            values = next(streamed)
            chosen = values[tile.first : tile.stop]
            values = values[tile.first :] if is_square else next(streamed)
            slots = counted[block]
            assert slots is not None
            state = compare(chosen, values, slots, settings.threshold, state)
        assert state is not None  # some block has positions to look at
        return state

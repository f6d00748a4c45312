"""A capture opened for reading: its tokens, documents, values and statistics.

Readers see committed blocks only; a block that is not committed is absent, never zero.
"""

from __future__ import annotations

from functools import cached_property, lru_cache, partial
from operator import methodcaller
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store import hooks, layout
from actstore.store.arguments import argument
from actstore.store.calls import checks
from actstore.store.capture.committed import find_blocks
from actstore.store.capture.overflow import OVERFLOW_COLUMNS, can_overflow, find_overflow, saturate
from actstore.store.capture.patches import read_patches
from actstore.store.capture.plan import Plan
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, is_finished, sum_statistics
from actstore.store.capture.statistics.exemplars import SCALE, Scales
from actstore.store.capture.statistics.neuron_table import neuron_table, read_finished_table
from actstore.store.capture.tables import open_capture_table
from actstore.store.capture.tokens.table import token_table
from actstore.store.capture.unchanged import unchanged
from actstore.store.capture.unchecked import check_shard
from actstore.store.errors import NotFoundError
from actstore.store.files.arrays import open_block_array
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.token_shards import TokenShard
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.kernels.pack.statistics import Statistics
    from actstore.store.capture.committed import Committed
    from actstore.store.capture.overflow import Overflow
    from actstore.store.files.arrays import BlockArray, BlockArraySpec
    from actstore.store.files.records import CaptureRecord
    from actstore.store.files.shards import Shard
    from actstore.store.files.table_columns import ColumnReader
    from actstore.store.model.root import Root


@checks
class Capture:
    """One corpus through the model."""

    def __init__(self, store: Root, record: CaptureRecord) -> None:
        self.store, self.record = store, record
        self.folder = store.folder
        self.plan = Plan(store.folder, record.name, record.plan, record.plan_files)
        self.block_plan = lru_cache(maxsize=16)(self.plan.block)
        self.blocks: tuple[int, ...] = ()
        self._arrays: dict[str, BlockArray] = {}
        self._opening = Lock()  # threads that read from a server open an array once
        self._committed: Committed | None = None
        self.refresh()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Root]]:
        """Its store and its name; unpickled, it has the blocks that are committed by then, and no warning is repeated."""
        return methodcaller("peek", self.record.name), (self.store,)

    def __repr__(self) -> str:
        done = f"{len(self.blocks)} of {self.record.plan.n_blocks} blocks"
        return (
            f"Capture({self.record.name!r}: {self.record.plan.n_tokens} tokens, {done}, {', '.join(self.record.sites)})"
        )

    def _repr_html_(self) -> str:
        return hooks.notebook_html(self)

    def refresh(self) -> None:
        """See what has been committed since the capture was opened."""
        self.blocks, self._committed = find_blocks(self.folder, self.record)
        self._tables: dict[str, ColumnReader] = {}
        self._scales = Scales(self)
        for name in ("_statistics", "overflow"):
            self.__dict__.pop(name, None)

    @property
    def is_complete(self) -> bool:
        """Whether every planned block is committed."""
        return len(self.blocks) == self.record.plan.n_blocks

    @property
    def is_finished(self) -> bool:
        """Whether the finished statistics stand for the blocks known here, which are then all."""
        return self._committed is not None or (self.is_complete and is_finished(self.folder, self.record))

    @cached_property
    def used_slots(self) -> NDArray[np.int64]:
        """Slots of each block that hold a token; the rest of a block is padding. Shape [block]."""
        return self.plan.used_slots() if self._committed is None else self._committed.used_slots

    def slots(self) -> NDArray[np.int64]:
        """The slots of all committed tokens, ascending: the `token` column of `tokens()`."""
        size = self.record.plan.block_slots
        parts = [np.arange(block * size, block * size + self.used_slots[block]) for block in self.blocks]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def tokens(self) -> Table:
        """One row per committed token: token (its slot), id, position (in its window), window, document, modality."""
        return Table(token_table(self.plan, self.slots()))

    def documents(self) -> Table:
        """One row per document: document, source, sha256, n_tokens, and its labels."""
        return Table(self.plan.table("documents"))

    def patches(self) -> Table:
        """One row per position of the committed windows that stands for a part of an image: window, position, token, place.

        See `store.patches.PATCHES`. `NotFoundError` where the capture is not one of images.
        """
        self._check_images()
        return Table(read_patches(self.folder, self.record, self.blocks))

    def _check_images(self) -> None:
        if not self.record.of_images:
            raise NotFoundError(
                f"Capture {self.record.name!r} is one of text, which has no patches. Capture images: "
                "`actstore.capture(model, images, store)`."
            )

    @cached_property
    def block_patches(self) -> Callable[[int], pa.Table]:
        """The rows of `patches` of one block, by its number."""
        self._check_images()
        return lru_cache(maxsize=16)(lambda block: read_patches(self.folder, self.record, [block]))

    def document_source(self, document: int) -> str:
        """Where a document came from: a path, a path and line, or standard input."""
        return self._sources[document]

    def document_image(self, document: int) -> str:
        """The path of a document's image, of a capture of images."""
        return self._images[document]

    @cached_property
    def _images(self) -> list[str]:
        self._check_images()
        return [str(image) for image in self.documents()["image"].to_pylist()]

    @cached_property
    def _sources(self) -> list[str]:
        return [str(source) for source in self.documents()["source"].to_pylist()]

    def windows(self) -> Table:
        """One row per window: what the model read in one sequence, and where its tokens lie."""
        return Table(self.plan.table("windows"))

    def neurons(self) -> Table:
        """One row per site and neuron, over the committed blocks."""
        if self.is_finished:
            return Table(read_finished_table(self.folder, self.record))
        return Table(neuron_table(self.record, self.statistics()))

    def table(self, name: str) -> ColumnReader:
        """A table of the capture by name, to read rows and columns of."""
        if name not in self._tables:
            self._tables[name] = open_capture_table(self.folder, self.record, name)
        return self._tables[name]

    def statistics(self) -> CaptureStatistics:
        """The statistics of the committed blocks, added in block order."""
        if "_statistics" not in self.__dict__:
            self.__dict__["_statistics"] = sum_statistics(
                self.folder, self.record, self.blocks, is_known_finished=self._committed is not None
            )
        statistics: CaptureStatistics = self.__dict__["_statistics"]
        return statistics

    def layer_statistics(self, layer: int, site: str) -> Statistics:
        """The statistics of one layer's neurons at a site."""
        self._check_captured(layer, site)
        return self.statistics().sites[site, layer]

    @cached_property
    def overflow(self) -> dict[str, Overflow]:
        """Site → which of its neurons have values that precision `half` stores as infinite; see `store.capture.overflow`."""
        if not can_overflow(self.record):
            return {}
        if not self.is_finished:
            return find_overflow(self.neurons().to_arrow(), self.record)
        table = self.table("neurons")
        return find_overflow(table.read([name for name in OVERFLOW_COLUMNS if name in table.names]), self.record)

    def has_overflow(self, layer: int, site: str = "mlp.post") -> NDArray[np.bool_]:
        """Which neurons of a layer have values that are stored as infinite for being too large; shape [neuron]."""
        self._check_captured(layer, site)
        overflow = self.overflow.get(site)
        return np.zeros(self.record.layers(site)[layer], np.bool_) if overflow is None else overflow.neurons[layer]

    def activations(
        self,
        layer: int,
        neuron: int,
        site: str = "mlp.post",
        dtype: npt.DTypeLike = np.float32,
        *,
        saturated: bool = False,
    ) -> NDArray[np.floating[Any]]:
        """One neuron over every committed token, in the order of `tokens()`; NaN where an expert was not routed to.

        At precision `int8` the values are off by at most half of the block's scale; at `sparse`, dropped values are 0; at
        `half`, values beyond 65,504 are infinite, or with `saturated` ±65,504. `dtype` float16 spares captures of precision
        `half` a conversion.
        """
        array = self._values(layer, site, neuron)
        used = self.used_slots[list(self.blocks)]
        ends = np.cumsum(used).tolist()
        values = np.empty(ends[-1] if ends else 0, dtype)
        direct = values.dtype == array.dtype and array.dtype.kind == "f"

        def read(place: tuple[int, int, int]) -> None:
            block, n, end = place
            # A whole block of floats is read into its place, without a copy between.
            out = values[end - n : end] if n == array.block_shape[1] and direct else None
            row = array.shard(block).row(neuron, out)
            if row is not out:
                decoded = row if row.dtype.kind == "f" else self._decoded(row, layer, site, block, neuron)
                values[end - n : end] = decoded[:n]

        with unchanged(self.folder, self.record, self._committed, array):
            list(self.folder.map(read, zip(self.blocks, used.tolist(), ends, strict=True)))
        return self._saturated(values[None], layer, site, slice(neuron, neuron + 1))[0] if saturated else values

    def block_row(
        self, layer: int, neuron: int, block: int, site: str = "mlp.post", *, saturated: bool = False
    ) -> NDArray[np.float32]:
        """One neuron over the slots of one block, padding included; `saturated` as for `activations`."""
        with unchanged(self.folder, self.record, self._committed, array := self._values(layer, site, neuron)):
            values = self._decoded(self._shard(array, block).row(neuron), layer, site, block, neuron)
        return self._saturated(values[None], layer, site, slice(neuron, neuron + 1))[0] if saturated else values

    def token_activations(self, layer: int, token: int, site: str = "mlp.post") -> NDArray[np.float32]:
        """All neurons of a layer at one token, a `token` of `tokens()`: one read where the site lies token by token."""
        block, slot = divmod(argument("token", token, int), self.record.plan.block_slots)
        shard = self._shard(self._values(layer, site), block)
        if not slot < self.used_slots[block]:
            raise NotFoundError(f"Slot {token} of capture {self.record.name!r} is padding. Take one of `tokens()`.")
        raw = shard.token(slot) if isinstance(shard, TokenShard) else self.raw_block(layer, block, site)[:, slot]
        return self._decoded(raw[:, None], layer, site, block)[:, 0]

    def block_values(
        self, layer: int, block: int, site: str = "mlp.post", *, saturated: bool = False
    ) -> NDArray[np.float32]:
        """All neurons of a layer over the slots of one block; shape [neuron, token]; `saturated` as for `activations`."""
        values = self._decoded(self.raw_block(layer, block, site), layer, site, block)
        return self._saturated(values, layer, site) if saturated else values

    def raw_block(
        self, layer: int, block: int, site: str = "mlp.post", *, saturated: bool = False
    ) -> NDArray[np.number[Any]]:
        """The block as it is stored, bfloat16 as its bits, int8 as its steps; shape [neuron, token]."""
        values = self.values_shard(layer, block, site).rows()
        return self._saturated(values, layer, site) if saturated else values

    def values_shard(self, layer: int, block: int, site: str = "mlp.post") -> Shard | TokenShard:
        """The file of one block of a layer's values, as they are stored, to read part by part."""
        return self._shard(self._values(layer, site), block, whole=True)

    def _saturated(self, values: NDArray[Any], layer: int, site: str, neurons: slice = slice(None)) -> NDArray[Any]:
        return saturate(values, self.has_overflow(layer, site)[neurons]) if self.overflow else values

    def gate_signs(self, layer: int, block: int) -> NDArray[np.bool_]:
        """Whether each gate was open (A_gate > 0) in one block; shape [neuron, token]."""
        return np.unpackbits(self.gate_bits(layer, block), axis=1, bitorder="little").astype(bool)

    def gate_bits(self, layer: int, block: int) -> NDArray[np.uint8]:
        """The same as it is stored, a bit per token, the least significant first; shape [neuron, token / 8]."""
        if layer not in self.record.gate_sign:
            raise NotFoundError(
                f"Capture {self.record.name!r} has no gate signs of layer {layer}. Capture with `gate_sign=True`."
            )
        return self._shard(self._array(layout.gate_sign_key(self.record.name, layer)), block, whole=True).rows()

    def write_scale(self, layer: int, block: int) -> NDArray[np.float32]:
        """What each slot of a block multiplies the write vectors of a layer of `record.write_scale` with [token]; see there."""
        shard = self._shard(self._array(layout.write_scale_key(self.record.name, layer)), block, whole=True)
        return np.asarray(shard.rows()[0])

    def block_parameter(
        self, name: str, layer: int, block: int, site: str = "mlp.post", neuron: int | None = None
    ) -> NDArray[Any]:
        """`scale` of an int8 block, `threshold` or `dropped` of a sparse one; shape [neuron], or [1] of the one `neuron`."""
        array = self._array(layout.block_parameters_key(self.record.name, site, layer, name))
        shard = self._shard(array, block, whole=neuron is None)
        return shard.rows()[:, 0] if neuron is None else shard.row(neuron)

    def _decoded(
        self, raw: NDArray[Any], layer: int, site: str, block: int, neuron: int | None = None
    ) -> NDArray[np.float32]:
        encoding, of = self.record.encoding, (layer, block, site, neuron)
        if neuron is not None and self._committed is not None and encoding.decode_parameters == (SCALE,):
            scales = np.array(self._scales.of(site, layer, neuron)[block : block + 1], np.float32)
            return encoding.decode(raw, {SCALE: scales if len(scales) else self.block_parameter(SCALE, *of)})
        return encoding.decode(raw, {name: self.block_parameter(name, *of) for name in encoding.decode_parameters})

    def _shard(self, array: BlockArray, block: int, *, whole: bool = False) -> Shard | TokenShard:
        if argument("block", block, int) not in self.blocks:
            raise NotFoundError(
                f"Block {block} of capture {self.record.name!r} is not committed; {len(self.blocks)} of "
                f"{self.record.plan.n_blocks} blocks are."
            )
        return array.shard(block, whole=whole)

    def _values(self, layer: int, site: str, neuron: int = 0) -> BlockArray:
        self.check_neuron(layer, neuron, site)
        if not self.record.encoding.keeps_values:
            raise NotFoundError(
                f"Capture {self.record.name!r} keeps statistics only (precision none), no values. "
                "Capture again with another `precision`."
            )
        return self._array(layout.values_key(self.record.name, site, layer))

    def check_neuron(self, layer: int, neuron: int, site: str = "mlp.post") -> None:
        """Raise `NotFoundError` where the capture has no such neuron at `site`."""
        neuron = argument("neuron", neuron, int)
        self._check_captured(layer, site)
        width = self.record.layers(site)[layer]
        if not 0 <= neuron < width:
            raise NotFoundError(f"Layer {layer} has neurons 0 to {width - 1} at {site}, found neuron {neuron}.")

    def _check_captured(self, layer: int, site: str) -> None:
        layer, site = argument("layer", layer, int), argument("site", site, str)
        if site not in self.record.sites:
            raise NotFoundError(
                f"Capture {self.record.name!r} has no site {site!r}. Its sites are: {', '.join(self.record.sites)}."
            )
        if layer not in self.record.layers(site):
            raise NotFoundError(f"Capture {self.record.name!r} has no layer {layer} at {site}.")

    def _array(self, key: str) -> BlockArray:
        with self._opening:
            if key not in self._arrays:
                check = partial(check_shard, self.folder, self.record, self._specs[key])
                self._arrays[key] = open_block_array(self.folder, self._specs[key], check)
            return self._arrays[key]

    @cached_property
    def _specs(self) -> dict[str, BlockArraySpec]:
        return {spec.key: spec for spec in block_arrays(self.record)}

"""Sharded [neuron, …] arrays of a store, filled block by block.

Metadata is Zarr's own; the shards' bytes come from `shards`. Commit records are not checked here: readers of a block must have
read its record first.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from zarr.codecs import BloscCodec, ShardingCodec, TransposeCodec

from actstore.store.errors import FIND_DAMAGE, FormatError
from actstore.store.files.array_metadata import NewArray, open_array
from actstore.store.files.shards import Shard, index_nbytes, shard_seed
from actstore.store.files.token_shards import TokenShard
from actstore.store.layout import FAST, ShardGrid, shard_grid, shard_key, token_grid

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import zarr

    from actstore.store.layout import Compression
    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source

OPEN_SHARDS: Final = 256
"""Maximum number of shards of all arrays that stay open: each has a file descriptor."""
FEWEST_SHARDS: Final = 8
"""The same where the process may open few files."""
SMALL_SHARD_NBYTES: Final = 1 << 15
"""Shards of up to this size are fetched from a server whole: those of a block's scales, one value per neuron."""
MOST_NBYTES_HELD: Final = 1 << 16
"""Shards of which more than this is in memory are not kept open beside others of their array."""

_opened: Final[OrderedDict[tuple[ref[BlockArray], int], None]] = OrderedDict()
"""(array, block) of the shards that are open, the oldest first."""
_opening: Final = Lock()


def affordable_files(most: int) -> int:
    """Maximum number of files that stay open: at most a quarter of those that the process may open, and `most`."""
    try:
        import resource
    except ImportError:  # not on Windows, which sets no such limit
        return most
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if limit == resource.RLIM_INFINITY else min(most, max(FEWEST_SHARDS, limit // 4))


def _affordable_shards() -> int:
    """Maximum number of shards that stay open."""
    return affordable_files(OPEN_SHARDS)


def _close_oldest(n_left: int) -> None:
    """Close the shards that have been open longest until `n_left` are open; `_opening` must be held."""
    while len(_opened) > n_left:
        (reference, block), _ = _opened.popitem(last=False)
        if (array := reference()) is not None:
            array._open.pop(block, None)


@dataclass(frozen=True)
class BlockArraySpec:
    """A sharded [neuron, …] array of a capture."""

    key: str
    rows: int
    columns: int
    """Columns per block."""
    dtype: np.dtype[Any]
    fill_value: float
    dimension: str
    """The name of the second dimension."""
    attributes: dict[str, Any] = field(default_factory=dict)
    compression: Compression = FAST
    identity: str = ""
    """The capture's, which the checksums of rows begin with; empty where it has none."""
    title: str = ""
    """What errors call it: the capture, the layer and the site."""
    bundled: bool = False
    """Whether its shards lie in bundles."""
    order: str = "neuron"
    """One of `layout.ORDERS`."""

    @property
    def grid(self) -> ShardGrid:
        """The grid of one shard, whose rows are neurons, or tokens in their order."""
        by_token = self.order == "token"
        return (
            token_grid(self.rows, self.columns, self.dtype.itemsize)
            if by_token
            else shard_grid(self.rows, self.columns)
        )


def create_block_array(folder: Folder, spec: BlockArraySpec, n_blocks: int) -> None:
    """Write the metadata of a sharded array of `n_blocks` blocks where nothing is; no block is written yet."""
    grid, item = spec.grid, spec.dtype.itemsize
    shards, chunks = (grid.padded_rows, grid.columns), (grid.chunk_rows, grid.chunk_columns)
    is_by_token = spec.order == "token"
    array = NewArray(
        spec.key,
        shape=(spec.rows, spec.columns * n_blocks),
        shards=shards[::-1] if is_by_token else shards,
        chunks=chunks[::-1] if is_by_token else chunks,
        filters=TransposeCodec(order=(1, 0)) if is_by_token else "auto",
        dtype=spec.dtype,
        fill_value=spec.fill_value,
        compressors=BloscCodec(typesize=item, blocksize=grid.chunk_columns * item, **spec.compression.metadata),
        dimension_names=("neuron", spec.dimension),
        attributes=spec.attributes,
    )
    array.put(folder, bundled=spec.bundled)


class BlockArray:
    """A sharded array for reading: rows of single blocks."""

    def __init__(
        self,
        folder: Folder,
        key: str,
        *,
        identity: str = "",
        title: str = "",
        before_opening: Callable[[int], None] = lambda block: None,
    ) -> None:
        """Open the metadata under `key`; `NotFoundError` where there is none.

        `identity` and `title` are as in `BlockArraySpec`; `before_opening` is called with a block whose shard is to be opened.
        """
        array = open_array(folder, key)
        if array.shards is None:
            raise FormatError(f"{folder}/{key} should be a sharded array, found a plain one.")
        self.order = _order_of(array)
        self.grid = _grid_of(array, self.order, f"{folder}/{key}")
        self.folder, self.key = folder, key
        self._identity, self._title, self._before_opening = identity, title, before_opening
        self.dtype: np.dtype[Any] = array.dtype
        self.attributes: dict[str, Any] = dict(array.attrs)
        self._open: dict[int, Shard | TokenShard] = {}
        self.n_opened = 0
        """Shards that were opened since; it grows with each."""

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of one block, as `BlockArraySpec` has them: neurons first, whatever the order."""
        shape = self.grid.rows, self.grid.columns
        return shape[::-1] if self.order == "token" else shape

    def shard(self, block: int, *, whole: bool = False) -> Shard | TokenShard:
        """The shard of one block, to read single rows of; with `whole`, to read all of them.

        The latest shards stay open, so that reading one neuron after another does not open files again. Of a shard on a server,
        its index is kept, and what was read of its inner chunks' heads; to read a row then takes one request.
        """
        shard = self._open.get(block)
        if shard is None or (whole and self.folder.storage.concurrency > 1):
            self._before_opening(block)
            key = shard_key(self.key, block)
            seed = shard_seed(self._identity, self.key, block)
            place = f"{self._title}, block {block}" if self._title else ""
            source = self._source(key, None if whole or self._is_small else index_nbytes(self.grid))
            rows = Shard(source, self.grid, self.dtype, f"{self.folder}/{key}", seed, place, self.order)
            shard = TokenShard(rows) if self.order == "token" else rows
            with _opening:
                self._keep(block, shard)
                self.n_opened += 1
        return shard

    def close(self) -> None:
        """Close all shards; who reads them opens them again."""
        with _opening:
            self._open.clear()

    @property
    def _is_small(self) -> bool:
        """Whether a shard, compressed or not, is sooner fetched from a server than looked up in."""
        return self.grid.padded_rows * self.grid.columns * self.dtype.itemsize <= SMALL_SHARD_NBYTES

    def _source(self, key: str, tail: int | None) -> Source:
        try:
            return self.folder.source(key, tail=tail)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            with _opening:
                _close_oldest(0)
            return self.folder.source(key, tail=tail)

    def _keep(self, block: int, shard: Shard | TokenShard) -> None:
        """Keep a shard open, and close the oldest ones beyond the maximum."""
        if shard.nbytes_held > MOST_NBYTES_HELD:
            self._open.clear()  # a copy in memory, not a file: one per array
        else:
            _opened[ref(self), block] = None
            _close_oldest(_affordable_shards())
        self._open[block] = shard


def open_block_array(folder: Folder, spec: BlockArraySpec, before_opening: Callable[[int], None]) -> BlockArray:
    """The array of `spec` for reading; `FormatError` where its metadata describe another one.

    `before_opening` is called with a block whose shard is to be opened.
    """
    array = BlockArray(folder, spec.key, identity=spec.identity, title=spec.title, before_opening=before_opening)
    if (what := other_blocks(array, spec)) is not None:
        raise FormatError(f"The metadata of {folder}/{spec.key} is damaged: it {what}.")
    return array


def other_blocks(array: BlockArray, spec: BlockArraySpec) -> str | None:
    """How an array's blocks differ from those of `spec`, as a phrase; None where they do not."""
    found, expected = (
        f"{rows} × {columns} {one.dtype}, {one.order} by {one.order}"
        for one, (rows, columns) in ((array, array.block_shape), (spec, (spec.rows, spec.columns)))
    )
    return None if found == expected else f"describes blocks of {found}, expected {expected}"


def _order_of(array: zarr.Array[Any]) -> str:
    """The order in which the values of an array's chunks lie."""
    codecs = getattr(array.metadata, "codecs", ())
    inner = codecs[0].codecs if codecs and isinstance(codecs[0], ShardingCodec) else ()
    return "token" if any(isinstance(codec, TransposeCodec) for codec in inner) else "neuron"


def _grid_of(array: zarr.Array[Any], order: str, where: str) -> ShardGrid:
    """The grid of an array; `FormatError` unless its shards have all its rows, and inner chunks that fill no more than them."""
    assert array.shards is not None
    if len(array.shape) == len(array.shards) == len(array.chunks) == 2 and min(*array.shape, *array.chunks) > 0:
        if order == "token":
            grid = ShardGrid(array.shards[1], array.shape[0], array.chunks[1], array.chunks[0])
            divides = grid.rows % grid.chunk_rows == array.shape[1] % grid.rows == 0
            if divides and array.shards[0] == grid.columns == grid.chunk_columns:
                return grid
        else:
            grid = ShardGrid(array.shape[0], array.shards[1], *array.chunks)
            fits = grid.chunk_rows <= grid.rows and grid.columns % grid.chunk_columns == 0
            if fits and array.shape[1] % grid.columns == 0 and array.shards[0] == grid.padded_rows:
                return grid
    raise FormatError(
        f"The metadata of {where} are damaged: they describe {array.shape} in shards of {array.shards} and chunks of "
        f"{array.chunks}.",
        FIND_DAMAGE,
    )

"""One block of one layer as bytes and back: Zarr's `sharding_indexed` codec with Blosc inner chunks, written whole.

Any Zarr v3 reader decodes what is encoded here. Doing it without Zarr's pipeline saves one copy and one event loop per chunk,
and one neuron's row can be decoded without the rest of its chunk.

Directly before each inner chunk lie the checksums of its rows, in a gap that Zarr's index skips. They are taken of the decoded
bytes, and begin with what tells capture, array, block and row apart: a row in another's place fails as a changed one does.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np

from actstore.store.errors import FormatError
from actstore.store.files.chunks import HEADER_NBYTES, Frame, chunk_encoder
from actstore.store.layout import FAST
from actstore.store.storage.pieces import local_file, will_need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.store.files.chunks import Rows
    from actstore.store.layout import Compression, ShardGrid
    from actstore.store.storage.pieces import Bytes, Source

WHAT_TO_DO: Final = "Run `store.verify()` to find every damaged block, and `store.repair()` to make them again."

_PIECE = 1 << 24
_INDEX_ENTRY = 16
_CRC = 4
_CHECKSUM = struct.Struct("<I")
_UNREADABLE = ValueError, RuntimeError, struct.error, EOFError
_extend = google_crc32c.extend


def checksum(data: Bytes) -> str:
    """CRC-32C of `data` in eight hexadecimal digits."""
    will_need(data, 0, len(data))
    return f"{google_crc32c.value(data if isinstance(data, bytes) else bytes(data)):08x}"


def source_checksum(source: Source, start: int = 0) -> str:
    """`checksum` of all bytes of `source` from `start` on, read piece by piece; "cut short" where the file was truncated."""
    source.will_need()
    crc = 0
    try:
        for at in range(start, source.nbytes, _PIECE):
            crc = google_crc32c.extend(crc, bytes(source.read(at, min(at + _PIECE, source.nbytes))))
    except EOFError:
        return "cut short"
    return f"{crc:08x}"


def write_parts(parts: Iterable[Bytes], write: Callable[[Bytes], object]) -> tuple[int, str]:
    """Pass the parts to `write`, which must not keep one beyond its call; returns the number of bytes and their `checksum`."""
    from actstore.kernels.crc32c.api import extend  # only here, as below: reading a store needs no compiler

    crc, nbytes = 0, 0
    for part in parts:
        write(part)
        crc = extend(crc, part)
        nbytes += len(part)
    return nbytes, f"{crc:08x}"


def shard_seed(identity: str, key: str, block: int) -> int | None:
    """What the checksums of the rows of block `block` of the array `key` begin with, in the capture of that identity.

    None where the capture has no identity: its shards have no such checksums.
    """
    return google_crc32c.value(json.dumps([identity, key, block]).encode()) if identity else None


def _table_of(chunk: NDArray[Any], seed: int, number: int, step: int, rows_per_checksum: int) -> bytes:
    """The checksums of an inner chunk [row, column]: the first piece is `number`, the next ones follow in steps of `step`."""
    if rows_per_checksum > 1:
        return _CHECKSUM.pack(_extend(seed ^ number, chunk))
    return struct.pack(f"<{len(chunk)}I", *[_extend(seed ^ (number + i * step), row) for i, row in enumerate(chunk)])


def shard_parts(
    values: Rows, grid: ShardGrid, compression: Compression = FAST, seed: int | None = None
) -> Iterator[Bytes]:
    """The shard that holds `values` [grid.rows, grid.columns], piece by piece: compressed inner chunks, then their index.

    With a `seed` (see `shard_seed`), the checksums of each chunk's rows lie directly before the chunk. A piece must be written
    before the next one is requested, which reuses its memory: joining 50 MB first takes longer than compressing them.
    """
    encode = chunk_encoder(compression)
    rows_per_checksum, step = grid.rows_per_checksum(values.itemsize), grid.grid[1]
    index = np.empty((*grid.grid, 2), "<u8")
    offset = 0
    for i in range(grid.grid[0]):
        rows = values[i * grid.chunk_rows : (i + 1) * grid.chunk_rows]
        if len(rows) < grid.chunk_rows:
            # Rows past the layer's last neuron exist only to complete the chunk.
            rows = np.concatenate([rows, np.zeros((grid.chunk_rows - len(rows), grid.columns), values.dtype)])
        for j in range(grid.grid[1]):
            chunk = np.ascontiguousarray(rows[:, j * grid.chunk_columns : (j + 1) * grid.chunk_columns])
            if seed is not None:
                first = i * grid.chunk_rows // rows_per_checksum * step + j
                table = _new_table(chunk, seed, first, step, rows_per_checksum)
                offset += len(table)
                yield table
            part = encode(chunk)
            index[i, j] = offset, len(part)
            offset += len(part)
            yield part
    index_bytes = index.tobytes()
    yield index_bytes + struct.pack("<I", google_crc32c.value(index_bytes))


def _new_table(chunk: NDArray[Any], seed: int, number: int, step: int, rows_per_checksum: int) -> bytes:
    """As `_table_of`, without holding the interpreter's lock."""
    if rows_per_checksum > 1:
        return _table_of(chunk, seed, number, step, rows_per_checksum)
    from actstore.kernels.crc32c.api import row_checksums

    starts = np.uint32(seed) ^ np.arange(number, number + len(chunk) * step, step, dtype=np.uint32)
    return row_checksums(chunk, starts).astype("<u4", copy=False).tobytes()


def encode_shard(values: Rows, grid: ShardGrid, compression: Compression = FAST, seed: int | None = None) -> bytes:
    """The shard that holds `values` [grid.rows, grid.columns] in one piece; `seed` is as for `shard_parts`."""
    return b"".join(map(bytes, shard_parts(values, grid, compression, seed)))


def index_nbytes(grid: ShardGrid) -> int:
    """Bytes at the end of a shard that say where its inner chunks are."""
    return grid.grid[0] * grid.grid[1] * _INDEX_ENTRY + _CRC


class Shard:
    """Reads rows out of an encoded shard, and holds them against their checksums where it has any."""

    def __init__(
        self, source: Source, grid: ShardGrid, dtype: np.dtype[Any], name: str, seed: int | None = None, place: str = "",
        row_name: str = "neuron",
    ) -> None:  # fmt: skip
        """Check the index at the end of `source`; `FormatError`, calling the shard `name`, where it is damaged.

        `seed` is that of the checksums of its rows (see `shard_seed`), None where it has none. `place` says in errors whose
        block it is, and `row_name` what a row is.
        """
        self._source, self._grid, self._dtype, self._name, self._place = source, grid, dtype, name, place
        self._row_name, self._seed, self._rows_per_checksum = row_name, seed, grid.rows_per_checksum(dtype.itemsize)
        self._n_table = 0 if seed is None else _CRC * (grid.chunk_rows // self._rows_per_checksum)
        self._row_nbytes = grid.chunk_columns * dtype.itemsize
        self._chunk_rows, self._n_across = grid.chunk_rows, grid.grid[1]
        n_tail, end = index_nbytes(grid), source.nbytes
        tail = self._read(max(0, end - n_tail), end)
        if len(tail) != n_tail or google_crc32c.value(tail[:-_CRC]) != struct.unpack("<I", tail[-_CRC:])[0]:
            raise self._damaged("its index does not match its checksum")
        index = np.frombuffer(tail[:-_CRC], "<u8").reshape(-1, 2)
        # Chunks follow one another, each behind its table: what an index says of sizes is not believed where it cannot be.
        ends = np.cumsum(index[:, 1] + np.uint64(self._n_table))
        if end != int(ends[-1]) + n_tail or (index.sum(axis=1) != ends).any():
            raise self._damaged("its chunks do not fill it")
        self._index: list[list[int]] = index.tolist()
        """(offset, bytes) of the frame of each inner chunk, row of chunks by row."""
        self._frames: dict[int, Frame] = {}

    @property
    def nbytes_held(self) -> int:
        """Bytes of the shard that are in memory as long as this is."""
        return self._source.nbytes_held

    def _damaged(self, what: str) -> FormatError:
        place = f"{self._place}: " if self._place else ""
        return FormatError(f"{place}{self._name} is damaged: {what}.", WHAT_TO_DO)

    def _mismatch(self, first: int) -> FormatError:
        """The error that the checksum from row `first` on does not match."""
        last = min(first + self._rows_per_checksum, self._grid.rows) - 1
        rows = f"{self._row_name}s {first} to {last}" if last > first else f"{self._row_name} {first}"
        return FormatError(f"{self._place or self._name}, {rows}: checksum mismatch in {self._name}.", WHAT_TO_DO)

    def _read(self, start: int, stop: int) -> bytes:
        try:
            data = self._source.read(start, stop)
        except EOFError as error:  # truncated after it was opened
            raise self._damaged(str(error)) from None
        return data if type(data) is bytes else bytes(data)

    def row(self, row: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values of one row; shape [token]. They are put into `out`, contiguous and of the same dtype, if it is given."""
        out = np.empty(self._grid.columns, self._dtype) if out is None else out
        i, within = divmod(row, self._chunk_rows)
        if self._n_across == 1:
            self._part_of_row(i, within, row, out)
        else:
            n, width = self._n_across, self._grid.chunk_columns
            for j in range(n):
                self._part_of_row(i * n + j, within, row * n + j, out[j * width : (j + 1) * width])
        return out

    def rows(self) -> NDArray[Any]:
        """All values; shape [neuron, token]."""
        self._source.will_need()
        out = np.empty((self._grid.padded_rows, self._grid.columns), self._dtype)
        for band, part in enumerate(np.split(out, self._grid.grid[0])):
            self._decode_band(band, part, _table_of)
        return out[: self._grid.rows]

    def parts(self, n_rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, values [row, token]) of some `n_rows` rows at a time, in the same memory; other threads go on."""
        self._source.will_need()
        height, n_bands = self._chunk_rows, self._grid.grid[0]
        n_together = max(1, n_rows // height)
        buffer = np.empty((n_together * height, self._grid.columns), self._dtype)
        for first in range(0, n_bands, n_together):
            n = min(n_together, n_bands - first)
            for i in range(n):
                self._decode_band(first + i, buffer[i * height : (i + 1) * height], _new_table)
            yield first * height, buffer[: min(n * height, self._grid.rows - first * height)]

    def scatter(self, target: NDArray[np.int64], out: NDArray[Any], column: int) -> None:
        """Put row r into row `target[r]` of the contiguous `out`, nowhere where that is -1, from `column` on.

        No two have the same. Of a shard whose chunks are whole rows; those of which no row is wanted are not read.
        """
        if out.dtype != self._dtype or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(
                f"rows of {self._dtype} do not go into {out.dtype} that is not contiguous, or not to be changed"
            )
        if (
            target.shape != (self._grid.rows,)
            or int(target.max(initial=-1)) >= len(out)
            or int(target.min(initial=0)) < -1
        ):
            raise ValueError(f"there is one target below {len(out)}, or -1, for each of {self._grid.rows} rows")
        if not 0 <= column <= out.shape[1] - self._grid.columns or self._n_across != 1:
            raise ValueError(f"{self._grid.columns} columns do not go into {out.shape[1]} from column {column} on")
        self._source.will_need()
        height = self._chunk_rows
        buffer = np.empty((height, self._grid.columns), self._dtype)
        bands = np.flatnonzero(np.maximum.reduceat(target, np.arange(0, len(target), height)) >= 0).tolist()
        if self._seed is not None and self._rows_per_checksum == 1:
            self._scatter_checked(bands, target, buffer, out, column)
            return
        for band in bands:
            self._decode_band(band, buffer, _new_table)
            wanted = np.flatnonzero((rows := target[band * height : (band + 1) * height]) >= 0)
            out[:, column : column + self._grid.columns][rows[wanted]] = buffer[wanted]

    def _scatter_checked(
        self, bands: list[int], target: NDArray[np.int64], buffer: NDArray[Any], out: NDArray[Any], column: int
    ) -> None:
        """As `scatter`, of the chunks `bands`, whose rows are checked as they are put there; `buffer` is for a chunk."""
        from actstore.kernels.crc32c.api import scatter_rows

        assert self._seed is not None
        starts = np.uint32(self._seed) ^ np.arange(self._grid.rows, dtype=np.uint32)
        for band in self._scatter_copied(bands, target, starts, out, column):
            frame = self._decompress(band, buffer)
            first, stop = band * self._chunk_rows, (band + 1) * self._chunk_rows
            table = np.frombuffer(frame.table, "<u4")
            wrong = scatter_rows(buffer, target[first:stop], starts[first:stop], table, out, column)
            if wrong is not None:
                raise self._mismatch(first + wrong)

    def _scatter_copied(
        self, bands: list[int], target: NDArray[np.int64], starts: NDArray[np.uint32], out: NDArray[Any], column: int
    ) -> list[int]:
        """As `scatter`, of those of the chunks `bands` that were not compressed, and lie in a local file; the others."""
        from actstore.kernels.crc32c.api import scatter_file

        height, file = self._chunk_rows, local_file(self._source)
        copied = [band for band in bands if self._index[band][1] == HEADER_NBYTES + height * self._row_nbytes]
        if file is None or not copied:
            return bands
        offsets = np.array([file[1] + self._index[band][0] - self._n_table for band in copied])
        row = self._dtype, self._grid.columns
        n, wrong = scatter_file(file[0], offsets, np.array(copied), height, row, target, starts, out, column)
        if wrong is not None:
            raise self._mismatch(copied[n] * height + wrong)
        return [band for band in bands if band not in set(copied[:n])]

    def _decode_band(self, band: int, out: NDArray[Any], table_of: Callable[..., bytes]) -> None:
        """Put the inner chunks of the same rows into the contiguous `out` [row, token]; `table_of` takes their checksums."""
        if self._n_across == 1:
            self._decode_chunk(band, out, table_of)
            return
        for j, part in enumerate(np.split(out, self._n_across, axis=1)):
            contiguous = np.empty(part.shape, part.dtype)
            self._decode_chunk(band * self._n_across + j, contiguous, table_of)
            part[...] = contiguous

    def _part_of_row(self, chunk: int, within: int, number: int, out: NDArray[Any]) -> None:
        """Put row `within` of an inner chunk into `out`; its checksum was begun with its `number`."""
        if self._rows_per_checksum > 1:
            rows = np.empty((self._chunk_rows, self._grid.chunk_columns), self._dtype)
            self._decode_chunk(chunk, rows, _table_of)
            out[:] = rows[within]
            return
        try:
            frame = self._frame_of(chunk)
            if frame.copied_at:
                self._source.read_into(frame.copied_at + within * self._row_nbytes, out)
            else:
                frame.decompress(self._read, within * self._row_nbytes, out)
        except _UNREADABLE as error:
            raise self._damaged(str(error) or "a chunk cannot be decompressed") from None
        if self._seed is not None and _extend(self._seed ^ number, out) != frame.checksum(within):
            raise self._mismatch(chunk // self._n_across * self._chunk_rows + within)

    def _decode_chunk(self, chunk: int, out: NDArray[Any], table_of: Callable[..., bytes]) -> None:
        """Decompress an inner chunk into the contiguous `out` [row, column], and check every row of it, by `table_of`."""
        frame = self._decompress(chunk, out)
        if self._seed is None:
            return
        i, j = divmod(chunk, self._n_across)
        first = i * self._chunk_rows // self._rows_per_checksum * self._n_across + j
        table = table_of(out, self._seed, first, self._n_across, self._rows_per_checksum)
        if table != frame.table:
            pairs = zip(struct.iter_unpack("<I", table), struct.iter_unpack("<I", frame.table), strict=True)
            at = next(at for at, (found, expected) in enumerate(pairs) if found != expected)
            raise self._mismatch(i * self._chunk_rows + at * self._rows_per_checksum)

    def _decompress(self, chunk: int, out: NDArray[Any]) -> Frame:
        """Put an inner chunk into the contiguous `out` [row, column], of which nothing is checked; its frame."""
        try:
            frame = self._frame_of(chunk)
            if frame.copied_at:
                self._source.read_into(frame.copied_at, out)
            else:
                frame.decompress(self._read, 0, out)
        except _UNREADABLE as error:
            raise self._damaged(str(error) or "a chunk cannot be decompressed") from None
        return frame

    def _frame_of(self, chunk: int) -> Frame:
        if (known := self._frames.get(chunk)) is not None:
            return known
        offset, nbytes = self._index[chunk]
        # The checksums, a header, and one offset per row: the writer makes one Blosc block per row.
        head = self._read(offset - self._n_table, offset + min(nbytes, HEADER_NBYTES + 4 * self._chunk_rows))
        table, head = head[: self._n_table], head[self._n_table :]
        frame = self._frames[chunk] = Frame(table, head, offset, nbytes, self._chunk_rows * self._row_nbytes)
        return frame

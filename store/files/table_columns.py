"""Tables read by column and row group: what is asked for is fetched and checked, and nothing else.

Libraries read a table through `CheckedFile`, which gives them no byte that was not held against its checksum before. Tables of
earlier versions, without checksums of their column chunks, are checked whole when they are first used.
"""

from __future__ import annotations

import io
import math
import threading
from typing import TYPE_CHECKING, Final

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actstore.store.files.parquet import check_opened, open_table, undamaged
from actstore.store.files.shards import checksum
from actstore.store.files.table_checksums import (
    TailSource,
    Trailer,
    chunk_places,
    mismatch,
    read_chunk_checksums,
    read_trailer,
    verify_footer,
    whole_checksum,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source

FEWEST_ROWS: Final = 64
"""Rows of a group in the tables of small models."""
_BYTES_PER_CHUNK: Final = 15
"""Bytes that a row group adds to the footer for each byte that a row has: see `group_rows`."""
_TAIL_NBYTES: Final = 1 << 15
"""Bytes at a table's end that are fetched at once: the footers of most tables are shorter."""


def group_rows(widths: Iterable[int]) -> list[int]:
    """The rows of each row group of a table with a row per neuron, given the neurons of each layer.

    A group never has rows of two layers. Small tables have groups of 64 rows. With more rows they grow as the square root of
    their number: a reader of one row reads the footer, which has some 15 × as many bytes for a group as a row has, and one
    group; that is least where both are as long. Measured, of 352,256 neurons and 28 columns: groups of 64 rows have a footer
    of 16.1 MB and make the table 40 % longer; groups of 4,096, which this gives, one of 0.3 MB, and a group has 0.6 MB.
    """
    widths = [*widths]
    size = FEWEST_ROWS
    while size < math.sqrt(_BYTES_PER_CHUNK * sum(widths)):
        size *= 2
    return [min(size, width - start) for width in widths for start in range(0, width, size)]


class CheckedFile(io.RawIOBase):
    """A table's bytes for libraries that seek and read: a piece is fetched when it is read, and checked then.

    A damage is a `FormatError`, which libraries may turn into errors of their own: `damage` keeps it.
    """

    def __init__(self, folder: Folder, key: str, source: Source, footer_at: int, checksums: NDArray[np.uint32]) -> None:
        """The table under `key`, its footer verified; `ValueError` where it has other chunks than checksums."""
        super().__init__()
        self._folder, self._key, self._source = folder, key, source
        self._footer = bytes(source.read(footer_at, source.nbytes))
        places = chunk_places(pq.read_metadata(io.BytesIO(b"PAR1" + self._footer)))
        if len(places) != len(checksums) or ((places < 0) | (places > footer_at)).any() or (np.diff(places) < 0).any():
            raise ValueError(f"it has {len(checksums)} checksums for {len(places)} column chunks")
        order = np.argsort(places[:, 0], kind="stable")
        self._starts, self._ends = places[order].T.copy() if len(places) else np.empty((2, 0), np.int64)
        self._checksums = checksums[order]
        self._at = 0
        self.damage: Exception | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of every file."""
        self._at = offset + (0, self._at, self._source.nbytes)[whence]
        return self._at

    def tell(self) -> int:
        """As of every file."""
        return self._at

    def size(self) -> int:
        """Bytes of the table."""
        return self._source.nbytes

    def read(self, n: int = -1) -> bytes:
        """As of every file; bytes that are no part of the footer or a column chunk are zeros."""
        stop = self._source.nbytes if n < 0 else min(self._at + n, self._source.nbytes)
        try:
            data = self._piece(self._at, stop)
        except Exception as error:
            self.damage = error
            raise
        self._at = stop
        return data

    def _piece(self, start: int, stop: int) -> bytes:
        out = np.zeros(max(0, stop - start), np.uint8)
        footer_at = self._source.nbytes - len(self._footer)
        if stop > footer_at:
            # Only the footer is read up to the end: of a guessed length, with column chunks before it that nobody asked for.
            begin = max(start, footer_at)
            out[begin - start :] = np.frombuffer(self._footer, np.uint8)[begin - footer_at : stop - footer_at]
            return out.tobytes()
        first, last = np.searchsorted(self._ends, start, "right"), np.searchsorted(self._starts, stop, "left")
        if first < last:
            begin, end = int(self._starts[first]), int(self._ends[last - 1])
            data = self._fetch(begin, end, range(int(first), int(last)))
            inner = slice(max(start, begin), min(stop, end))
            out[inner.start - start : inner.stop - start] = data[inner.start - begin : inner.stop - begin]
        return out.tobytes()

    def _fetch(self, begin: int, end: int, chunks: range) -> NDArray[np.uint8]:
        """Bytes begin…end, which are these column chunks, each checked."""
        data = bytes(self._source.read(begin, end))
        for i in chunks:
            chunk = data[int(self._starts[i]) - begin : int(self._ends[i]) - begin]
            if google_crc32c.value(chunk) != self._checksums[i]:
                raise mismatch(self._folder, self._key)
        return np.frombuffer(data, np.uint8)


def _read_end(source: Source) -> tuple[TailSource, Trailer | None]:
    """A table with its footer, and the checksums before it, in memory; and the first of these."""
    tail = TailSource(source, _TAIL_NBYTES)
    trailer = read_trailer(tail)
    if trailer is not None and tail.nbytes - trailer.at > _TAIL_NBYTES // 2:
        # 4 bytes for each column chunk, of which the footer says 100 and more.
        tail = TailSource(source, (tail.nbytes - trailer.at) * 5 // 4)
    return tail, trailer


def table_checksum(folder: Folder, key: str) -> str:
    """The checksum of all bytes of a table, for which its end is read; of a table of an earlier version, all of it."""
    tail = TailSource(folder.source(key, tail=_TAIL_NBYTES), _TAIL_NBYTES)
    with undamaged(folder, key):
        return whole_checksum(key, tail) or checksum(folder.view(key))


class ColumnReader:
    """A table opened to read some columns of some row groups."""

    def __init__(self, folder: Folder, key: str, *, digest: str = "", owner: Mapping[str, str] | None = None) -> None:
        """Open the table under `key`; arguments and errors as of `open_table`."""
        self._folder, self._key = folder, key
        # pyarrow's ParquetFile reads for one thread at a time: others make it crash, or find the table damaged.
        self._reading = threading.Lock()
        self._last: tuple[range, pa.Table] | None = None
        """The row groups that `rows` read last: neurons are asked for one after another."""
        self.checked: CheckedFile | None = None
        """What is read through; None in a table of an earlier version, which is checked whole."""
        with undamaged(folder, key):
            source, trailer = _read_end(folder.source(key, tail=_TAIL_NBYTES))
            checksums = None if trailer is None else read_chunk_checksums(folder, key, source, trailer)
            if trailer is None or checksums is None:
                self.file = open_table(folder, key, digest=digest, owner=owner)
                return
            if digest and trailer.digest != digest:
                raise mismatch(folder, key)
            verify_footer(folder, key, source, trailer)
            self.checked = CheckedFile(folder, key, source, trailer.footer_at, checksums)
            self.file = pq.ParquetFile(pa.PythonFile(self.checked, mode="r"), page_checksum_verification=True)
            check_opened(folder, key, self.file, source.nbytes, owner)

    @property
    def damage(self) -> Exception | None:
        """What was found to be damaged in reading it, here or by another library; None where nothing was."""
        return None if self.checked is None else self.checked.damage

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.file.schema_arrow.names)

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return int(self.file.metadata.num_rows)

    def read(self, columns: Sequence[str] | None = None, groups: Iterable[int] | None = None) -> pa.Table:
        """Some columns of some row groups, in the order given; all unless told."""
        return self._read(range(self.file.metadata.num_row_groups) if groups is None else groups, columns)

    def rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows start…stop; the row groups that they lie in are read, and some columns of them, all unless told."""
        counts = [self.file.metadata.row_group(i).num_rows for i in range(self.file.metadata.num_row_groups)]
        ends = np.cumsum(counts)
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop - 1, "right"))
        groups = range(first, min(last + 1, len(counts)))
        kept, needed = self._last, {*(self.names if columns is None else columns)}
        if kept is None or kept[0] != groups or not needed <= {*kept[1].column_names}:
            self._last = kept = groups, self._read(groups, columns)
        table = kept[1] if columns is None else kept[1].select([*columns])
        begin = int(ends[first]) - counts[first] if first < len(counts) else 0
        return table.slice(start - begin, stop - start)

    def _read(self, groups: Iterable[int], columns: Sequence[str] | None) -> pa.Table:
        with undamaged(self._folder, self._key):
            try:
                with self._reading:
                    return self.file.read_row_groups([*groups], columns=None if columns is None else [*columns])
            except Exception:
                if self.damage is not None:
                    raise self.damage from None
                raise

    def dataset(self) -> ds.Dataset:
        """The table as other libraries scan it: the columns and row groups that a scan needs are read.

        Text that is stored as a dictionary is text.
        """
        options = ds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
        format_ = ds.ParquetFileFormat(default_fragment_scan_options=options)
        fields = [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in self.file.schema_arrow
        ]
        if self.checked is None:
            return ds.dataset(self.read().cast(pa.schema(fields)))
        fragment = format_.make_fragment(pa.PythonFile(self.checked, mode="r"))
        return ds.FileSystemDataset([fragment], pa.schema(fields), format_)

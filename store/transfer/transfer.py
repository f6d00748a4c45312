"""Files on their way from one folder to another: several at once, each read once, held against its record, and written.

A file appears at the target whole, and only where its bytes are those that its record tells.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Final, Self, TypeVar

import google_crc32c

from actstore.store.errors import NotFoundError
from actstore.store.storage.batch import Batch
from actstore.store.transfer.ranges import damaged, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source
    from actstore.store.transfer.ranges import CheckedRange, Ranges

Item = TypeVar("Item")
Result = TypeVar("Result")

PIECE_NBYTES: Final = 1 << 23
"""Bytes of a file that are read, and written, at once. What is smaller comes from a server in one request."""
_FEWEST_AT_ONCE: Final = 4
"""Files at once between two disks: while one is synced, others are read."""
_LARGE_AT_ONCE: Final = 4
"""Files of more than a piece at once: each may take some 60 MB of memory on its way to an object store."""
_GROUPS_AT_ONCE: Final = 8
"""Groups of files, such as blocks and arrays, at once where a server is waited for."""
_SYNCING_THREADS: Final = 4


@dataclass(frozen=True)
class File:
    """A file to be copied."""

    key: str
    ranges: Ranges = unknown
    nbytes: int | None = None
    """Its size, where a record tells it."""
    is_optional: bool = False
    """Whether it need not be there."""


class Transfer:
    """Copies files from `source` to `target`; use as a context manager."""

    def __init__(self, source: Folder, target: Folder) -> None:
        self.source, self.target = source, target
        concurrency = max(source.storage.concurrency, target.storage.concurrency)
        self._pool = ThreadPoolExecutor(max(concurrency, _FEWEST_AT_ONCE), thread_name_prefix="actstore-copy")
        self._groups = ThreadPoolExecutor(
            _GROUPS_AT_ONCE if concurrency > 1 else 1, thread_name_prefix="actstore-group"
        )
        self._syncing = ThreadPoolExecutor(_SYNCING_THREADS, thread_name_prefix="actstore-sync")
        self._large = BoundedSemaphore(_LARGE_AT_ONCE)
        self._counting = Lock()
        self.n_files = self.nbytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._groups, self._pool, self._syncing):
            pool.shutdown(wait=True, cancel_futures=kind is not None)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """What `function`, which may copy files, gives for each item, in order; several at once over a network."""
        return list(self._groups.map(function, items))

    def copy(self, files: Iterable[File]) -> None:
        """Copy some files; when this returns, they are safe at the target.

        `FormatError` naming the first that is not what its record says, or is not there.
        """
        self.each(lambda file, batch: self._copy(file, batch), files)

    def each(self, function: Callable[[Item, Batch], object], items: Iterable[Item]) -> None:
        """Call `function` for each item, several at once, and then wait for the disk to have what was written by the batch."""
        batch = Batch(self._syncing)
        for _ in self._pool.map(lambda item: function(item, batch), items):
            pass
        batch.sync()

    def write(self, key: str, data: bytes, batch: Batch | None = None) -> None:
        """Put bytes that were read, and checked, into the target."""
        with self.target.writer(key, batch) as out:
            out.write(data)
        self.count(len(data))

    def count(self, nbytes: int) -> None:
        """Count a file that was written."""
        with self._counting:
            self.n_files += 1
            self.nbytes += nbytes

    def _copy(self, file: File, batch: Batch) -> None:
        with self._large if file.nbytes is None or file.nbytes > PIECE_NBYTES else nullcontext():
            try:
                source = self.source.source(file.key, tail=PIECE_NBYTES)
            except NotFoundError:
                if file.is_optional:
                    return
                raise damaged(self.source, file.key, "it is missing") from None
            if file.nbytes not in (None, source.nbytes):
                raise damaged(self.source, file.key, f"{source.nbytes} bytes, expected {file.nbytes}")
            try:
                self._write_pieces(file.key, source, file.ranges(source), batch)
            except EOFError as error:
                raise damaged(self.source, file.key, str(error)) from None
            self.count(source.nbytes)

    def _write_pieces(self, key: str, source: Source, ranges: Sequence[CheckedRange], batch: Batch) -> None:
        source.will_need()
        found = [one.seed for one in ranges]
        with self.target.writer(key, batch) as out:
            for start in range(0, source.nbytes, PIECE_NBYTES):
                stop = min(start + PIECE_NBYTES, source.nbytes)
                piece = bytes(source.read(start, stop))
                for i, one in enumerate(ranges):
                    begin, end = max(start, one.start), min(stop, one.stop)
                    if begin < end:
                        found[i] = google_crc32c.extend(found[i], piece[begin - start : end - start])
                out.write(piece)
            for crc, one in zip(found, ranges, strict=True):
                if crc != one.checksum:  # before it is closed, so that nothing appears
                    raise damaged(self.source, key, f"checksum {crc:08x}, expected {one.checksum:08x}")

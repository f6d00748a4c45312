"""Writes bundles: the files of one block, encoded by several threads, one behind another in one object."""

from __future__ import annotations

from threading import Condition
from typing import TYPE_CHECKING

from actstore.store.errors import FormatError
from actstore.store.files.bundles.index import NO_CHUNKS, chunks_of, pack_index
from actstore.store.files.bundles.reader import Bundle, forget_bundle
from actstore.store.files.shards import WHAT_TO_DO, write_parts
from actstore.store.layout import bundle_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.batch import Batch
    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Bytes


class BundleWriter:
    """Writes the files of one block into one object: threads encode them at the same time, and take turns in writing.

    A file is written while it is encoded where those before it are there; else it waits in memory, so that at most one per
    thread does. The bytes do not depend on which thread is faster.
    """

    def __init__(self, folder: Folder, key: str, batch: Batch | None = None) -> None:
        """Begin the bundle `key`, which appears when it is closed, with a `batch` at the latest when that is synced."""
        self._folder, self._key = folder, key
        self._file = folder.writer(key, batch)
        self._turn = Condition()
        self._index: list[tuple[str, int, int, NDArray[np.uint32]]] = []
        self._error: BaseException | None = None

    @property
    def n_files(self) -> int:
        """Files that are written; that of this number, from 0, may be next."""
        return len(self._index)

    def add_shard(self, number: int, key: str, parts: Iterable[Bytes]) -> tuple[int, str]:
        """As `add`, of a shard, whose last part is its index."""
        last: Bytes = b""

        def watched() -> Iterator[Bytes]:
            nonlocal last
            for part in parts:
                last = part
                yield part

        return self._add(number, key, watched(), lambda: chunks_of(bytes(last)))

    def add(
        self, number: int, key: str, parts: Iterable[Bytes], gap: int = 0, chunks: NDArray[np.uint32] = NO_CHUNKS
    ) -> tuple[int, str]:
        """Append the file `key`, the `number`-th of the bundle, from 0: its size in bytes and its checksum.

        Returns when it and all files before it are written. Where another of them failed, that is raised here too.
        """
        return self._add(number, key, parts, lambda: (gap, chunks))

    def _add(
        self, number: int, key: str, parts: Iterable[Bytes], chunks_of: Callable[[], tuple[int, NDArray[np.uint32]]]
    ) -> tuple[int, str]:
        waiting: list[Bytes] = []

        def write(piece: Bytes) -> None:
            if self.n_files == number:
                self._write(waiting)
                self._write([piece])
            else:
                waiting.append(bytes(piece))  # its memory is used again

        try:
            nbytes, checksum = write_parts(parts, write)
            with self._turn:
                self._turn.wait_for(lambda: self._error is not None or self.n_files == number)
                self._write(waiting)
                self._index.append((key, nbytes, *chunks_of()))
                self._turn.notify_all()
        except BaseException as error:
            with self._turn:
                self._error = self._error or error
                self._turn.notify_all()
            raise
        return nbytes, checksum

    def _write(self, pieces: list[Bytes]) -> None:
        if self._error is not None:
            raise self._error
        for piece in pieces:
            self._file.write(piece)
        pieces.clear()

    def close(self) -> int:
        """Write the index, and publish the bundle; its size in bytes."""
        index = pack_index(self._index)
        self._file.write(index)
        self._file.close()
        forget_bundle(self._folder, self._key)
        return sum(nbytes for _, nbytes, *_ in self._index) + len(index)

    def abandon(self) -> None:
        """Drop what was written, when no thread is adding to it; nothing happens once it is closed."""
        self._file.abandon()


def write_bundle(
    folder: Folder,
    record: CaptureRecord,
    block: int,
    files: Iterable[tuple[str, Bundle]],
    expected: Mapping[str, tuple[int, str]],
) -> int:
    """Write a block's bundle anew, each file (its key below the capture) out of some bundle; it appears whole or not at all.

    Returns its size in bytes.
    `expected`: key → (size, checksum), as the block's commit record has them. `FormatError` where a file has others, and
    `NotFoundError` where a bundle lacks it: nothing is written then.
    """
    writer = BundleWriter(folder, key := bundle_key(record.name, block))
    try:
        for file, bundle in files:
            found = writer.add(writer.n_files, file, *bundle.copy(file))
            _compare(f"{file} of {key}", found, expected[file])
        return writer.close()
    except BaseException:
        writer.abandon()
        raise


def _compare(where: str, found: tuple[int, str], expected: tuple[int, str]) -> None:
    if found != expected:
        raise FormatError(
            f"{where} is damaged: {found[0]} bytes of checksum {found[1]}, expected {expected[0]} of {expected[1]}.",
            WHAT_TO_DO,
        )

"""Bytes of which pieces are read: of a file of the local disk, in place, or of memory. Knows nothing about what they mean."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    Bytes = bytes | bytearray | memoryview


class Source(Protocol):
    """Bytes under a key that are read piece by piece."""

    nbytes: int
    """How many there were when the source was opened."""

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes start…stop; `EOFError` where they are no longer all there."""

    def will_need(self) -> None:
        """Say that all of it will be read, so that it can be fetched ahead."""


class MemorySource:
    """Bytes that are in memory already."""

    def __init__(self, data: Bytes) -> None:
        self._data, self.nbytes = memoryview(data), len(data)

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes start…stop, not copied."""
        return self._data[start:stop]

    def will_need(self) -> None:
        """Nothing: it is here."""


class FileSource:
    """A file of the local disk, read where it is asked to be, by any number of threads.

    Mapped into memory it would be read no faster, and would end the process (SIGBUS) where the file is cut short meanwhile.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; it closes with the last reference to the source."""
        self._path = path
        with path.open("rb") as file:
            self._descriptor = os.dup(file.fileno())
        self.nbytes = os.fstat(self._descriptor).st_size
        # A reader that wants a few kilobytes of a shard must not wait for the megabytes around them.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._lock = Lock()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start…stop; `EOFError` where the file ends before."""
        try:
            data = self._read(start, stop - start)
            while len(data) < stop - start:  # Linux gives 2 GiB at most
                more = self._read(start + len(data), stop - start - len(data))
                if not more:
                    raise EOFError(f"it ends at byte {start + len(data)}")
                data += more
        except OSError as error:
            error.filename = str(self._path)
            raise
        return data

    def will_need(self) -> None:
        """Have the system fetch the file in one go."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def _read(self, start: int, n: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, n, start)
        with self._lock:  # Windows has no way to read at a place without going there
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, n)

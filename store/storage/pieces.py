"""Bytes of which pieces are read: of a file on the local disk, in place, or of memory."""

from __future__ import annotations

import mmap
import os
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes = bytes | bytearray | memoryview

_WILL_NEED: int | None = getattr(mmap, "MADV_WILLNEED", None)


def local_file(source: Source) -> tuple[int, int] | None:
    """The descriptor of the local file that a source reads, open as long as the source is, and where in the file it begins."""
    if isinstance(source, FileSource):
        return source.descriptor, 0
    if isinstance(source, PartSource) and (file := local_file(source.whole)) is not None:
        return file[0], file[1] + source.at
    return None


def will_need(view: Bytes, start: int, stop: int) -> None:
    """Ask the system to read bytes start…stop of a mapped file in one go, before they are touched."""
    mapping = view.obj if isinstance(view, memoryview) else None
    if _WILL_NEED is not None and isinstance(mapping, mmap.mmap) and stop > start:
        aligned = start - start % mmap.PAGESIZE
        mapping.madvise(_WILL_NEED, aligned, stop - aligned)


class Source(Protocol):
    """Bytes under a key that are read piece by piece."""

    nbytes: int
    """How many there were when the source was opened."""
    nbytes_held: int
    """How many of them are in memory as long as the source is."""

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes start…stop; `EOFError` where they are no longer all there."""

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with the bytes from `start`; `EOFError` where they are no longer all there."""

    def will_need(self) -> None:
        """Say that all of it will be read, so that it can be fetched ahead."""


class MemorySource:
    """Bytes that are in memory already."""

    def __init__(self, data: Bytes) -> None:
        self._data, self.nbytes, self.nbytes_held = memoryview(data), len(data), len(data)

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes start…stop, not copied."""
        return self._data[start:stop]

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Copy the bytes from `start` into the contiguous `out`; `EOFError` where there are fewer."""
        data = self._data[start : start + out.nbytes]
        if len(data) < out.nbytes:
            raise EOFError(f"it ends at byte {self.nbytes}")
        out[...] = np.frombuffer(data, out.dtype).reshape(out.shape)

    def will_need(self) -> None:
        """Nothing: all of it is in memory."""


class PartSource:
    """A part of a source, of whose end a copy may be in memory."""

    def __init__(self, whole: Source, at: int, nbytes: int, tail: bytes = b"") -> None:
        """The `nbytes` bytes of `whole` from `at` on; `tail` are the last of them."""
        self.whole, self.at, self.nbytes = whole, at, nbytes
        self._tail, self._tail_at = memoryview(tail), nbytes - len(tail)
        self.nbytes_held = nbytes if whole.nbytes_held >= whole.nbytes else len(tail)

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes start…stop; `EOFError` where there are fewer."""
        self._check(stop)
        if start >= self._tail_at:
            return self._tail[start - self._tail_at : stop - self._tail_at]
        return self.whole.read(self.at + start, self.at + stop)

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with the bytes from `start`; `EOFError` where there are fewer."""
        self._check(start + out.nbytes)
        self.whole.read_into(self.at + start, out)

    def will_need(self) -> None:
        """Have the system fetch the part in one go, where it is one of a file of the local disk."""
        if isinstance(self.whole, FileSource):
            self.whole.will_need(self.at, self.nbytes)

    def _check(self, stop: int) -> None:
        if stop > self.nbytes:
            raise EOFError(f"it ends at byte {self.nbytes}")


class FileSource:
    """A file on the local disk, read in place by any number of threads.

    A mapping would be no faster, and would end the process (SIGBUS) where the file is truncated while it is open.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; it closes with the last reference to the source."""
        self._path, self.nbytes_held = path, 0
        with path.open("rb") as file:
            self.descriptor = os.dup(file.fileno())
        self.nbytes = os.fstat(self.descriptor).st_size
        # A reader that wants a few kilobytes of a shard must not wait for the megabytes around them.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._lock = Lock()

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

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

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with the bytes from `start`, not copied twice; `EOFError` where the file ends before."""
        n = 0
        if hasattr(os, "preadv"):  # not on Windows
            try:
                n = os.preadv(self.descriptor, [out.data], start)
            except OSError as error:
                error.filename = str(self._path)
                raise
        if n < out.nbytes:
            rest = self.read(start + n, start + out.nbytes)
            out.reshape(-1).view(np.uint8)[n:] = np.frombuffer(rest, np.uint8)

    def will_need(self, start: int = 0, n: int = 0) -> None:
        """Have the system fetch `n` bytes from `start` in one go; with 0, all from there on."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, start, n, os.POSIX_FADV_WILLNEED)

    def _read(self, start: int, n: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, n, start)
        with self._lock:  # Windows has no pread
            os.lseek(self.descriptor, start, os.SEEK_SET)
            return os.read(self.descriptor, n)

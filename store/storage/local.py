"""Storage in a folder of the local disk: files are read in place; `disk` says how they are written."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.store.errors import InvalidInputError
from actstore.store.layout import LOCK_NAME
from actstore.store.storage.disk import Disk, PartialFile, is_temporary
from actstore.store.storage.local_zarr import LocalZarr
from actstore.store.storage.pieces import FileSource
from actstore.store.storage.writers import KeyWriter
from actstore.store.storage.zarr_storage import ZarrStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.store.storage.batch import Batch
    from actstore.store.storage.pieces import Bytes, Source


class LocalStorage(ZarrStorage):
    """The files below a folder, given as a path or as a `file://` URL."""

    def __init__(
        self, location: str, *, read_only: bool, sync: bool = True, options: Mapping[str, Any] | None = None
    ) -> None:
        """Point at the folder; `InvalidInputError` where there is a file, or `options`, which a folder has none of."""
        if options:
            raise InvalidInputError(
                f"storage_options are for stores at a URL, and {location} is a folder of this machine: found "
                f"{', '.join(map(repr, options))}."
            )
        self._path = _path_of(location)
        if self._path.is_file():
            raise InvalidInputError(f"A store is a folder, but {self._path} is a file. Name another path.")
        self._disk = Disk(self._path, sync=sync)
        super().__init__(location, LocalZarr(self._disk, read_only=read_only))

    def address(self) -> str:
        """The absolute path."""
        return os.path.abspath(self._path)

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        """Bytes start…stop of a file."""
        with _naming(self._path / key), (self._path / key).open("rb") as file:
            file.seek(start or 0)
            size = os.fstat(file.fileno()).st_size  # a damaged record may ask for terabytes
            return file.read(max(0, min(size, size if stop is None else stop) - (start or 0)))

    def view(self, key: str) -> Bytes:
        """A file mapped into memory; the mapping closes with its last reference."""
        with _naming(self._path / key), (self._path / key).open("rb") as file:
            try:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                return b""
        # A reader that wants a few kilobytes of a shard must not wait for the megabytes around them: systems read ahead
        # by up to 8 MB per page fault. `pieces.will_need` says what is needed.
        if hasattr(mmap, "MADV_RANDOM"):
            mapping.madvise(mmap.MADV_RANDOM)
        return memoryview(mapping)

    def source(self, key: str, tail: int | None) -> Source:
        """A file that stays open."""
        return FileSource(self._path / key)

    def write(self, key: str, data: Bytes) -> None:
        """Write a file beside the target, and rename it."""
        self._disk.write(self._path / key, data)

    def create(self, key: str, data: Bytes) -> None:
        """Write a file beside the target, and give it the target's name, which must be free."""
        self._disk.write(self._path / key, data, new=True)

    def swap(self, key: str, data: Bytes, expected: Bytes) -> bool:
        """Replace a file that still holds `expected`, under a lock on it; whether it did."""
        return self._disk.swap(self._path / key, data, expected)

    def writer(self, key: str, batch: Batch | None = None) -> KeyWriter:
        """A file beside the target that is renamed on `close`, or in the threads of `batch`."""
        return LocalWriter(key, PartialFile(self._disk, self._path / key), batch)

    def delete(self, key: str) -> None:
        """Remove a file, or a folder with all below it."""
        self._disk.delete(self._path / key)

    def remove_leftovers(self, prefix: str) -> None:
        """Remove temporary files of processes that were killed, except in folders below `prefix` with a lock of their own."""
        for path in self._disk.leftovers(self._path / prefix, LOCK_NAME):
            path.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return (self._path / key).is_file()

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every file below `prefix` with its size in bytes."""
        # Zarr's own listing takes the store's path out of a key wherever it finds it: "s/" out of "captures/" too.
        yield from _sizes_below(str(self._path / prefix), f"{prefix.rstrip('/')}/" if prefix else "")

    def local_path(self, key: str) -> Path:
        """The path of a file; of the folder for the empty key."""
        return self._path / key

    def free_nbytes(self) -> int:
        """Free bytes of the disk that the folder is on, or will be."""
        path = self._path.absolute()
        return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.is_dir())).free


def _sizes_below(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Key and size of every file below a folder, sorted; files that are removed meanwhile are passed over."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes_below(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file() and not is_temporary(entry):
            with contextlib.suppress(FileNotFoundError):
                yield f"{prefix}{entry.name}", entry.stat().st_size


class LocalWriter(KeyWriter):
    """A file on the local disk, under a temporary name until it is published."""

    def __init__(self, key: str, partial: PartialFile, batch: Batch | None) -> None:
        """Write to `partial`."""
        self._partial, self._batch = partial, batch
        super().__init__(key, partial.file)

    def _publish(self) -> None:
        if self._batch is None:
            self._partial.publish()
        else:
            self._partial.end()
            self._batch.add(self._partial)

    def _discard(self) -> None:
        self._partial.discard()


def _path_of(location: str) -> Path:
    """The folder of a path or of a `file://` URL, in which nothing is escaped: fsspec reads such URLs so too."""
    scheme, separator, path = location.partition("://")
    return Path(path if separator else scheme)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An `OSError` inside names the file, which errors of reading do not by themselves."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise

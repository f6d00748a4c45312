"""Storage in a folder of the local disk: files are read in place, and written beside their target and renamed."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from actstore.store.errors import InvalidInputError
from actstore.store.storage.pieces import FileSource
from actstore.store.storage.writers import KeyWriter
from actstore.store.storage.zarr_storage import ZarrStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.storage.pieces import Bytes, Source


class LocalStorage(ZarrStorage):
    """The files below a folder, given as a path or as a `file://` URL."""

    def __init__(self, location: str, *, read_only: bool) -> None:
        """Point at the folder; `InvalidInputError` where there is a file."""
        self._path = _path_of(location)
        if self._path.is_file():
            raise InvalidInputError(f"A store is a folder, but {self._path} is a file. Name another path.")
        super().__init__(location, LocalStore(self._path, read_only=read_only))

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

    def source(self, key: str) -> Source:
        """A file that stays open."""
        return FileSource(self._path / key)

    def write(self, key: str, data: Bytes) -> None:
        """Write a file beside the target, and rename it."""
        # Zarr's own local store does the same; its event loop is spared here for the writer's many small records.
        target = self._path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(target)
        try:
            partial.write_bytes(data)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def writer(self, key: str) -> KeyWriter:
        """A file beside the target that is renamed on `close`."""
        return LocalWriter(key, self._path / key)

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return (self._path / key).is_file()

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every file below `prefix` with its size in bytes."""
        # Zarr's own listing takes the store's path out of a key wherever it finds it: "s/" out of "captures/" too.
        for path in sorted((self._path / prefix).rglob("*")):
            if path.is_file():
                yield path.relative_to(self._path).as_posix(), path.stat().st_size

    def local_path(self, key: str) -> Path:
        """The path of a file; of the folder for the empty key."""
        return self._path / key

    def free_nbytes(self) -> int:
        """Free bytes of the disk that the folder is on, or will be."""
        path = self._path.absolute()
        return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.is_dir())).free


class LocalWriter(KeyWriter):
    """A file on the local disk, named `….partial` until it is published."""

    def __init__(self, key: str, target: Path) -> None:
        """Open the file, and make its folder."""
        self._target, self._partial = target, _partial(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(key, self._partial.open("wb"))

    def _publish(self) -> None:
        self._file.close()
        self._partial.replace(self._target)

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    """Where a file is written before it takes the place of `target`."""
    return target.with_name(f"{target.name}.partial")


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

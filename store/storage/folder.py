"""A store's bytes by key: read, write atomically, list, delete.

Everything goes through Zarr's store interface, so an object-store URL is a matter of configuration; on a local disk,
shards are read in place, as much of them as is asked for. Knows nothing about what the bytes mean.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from actstore.store.arguments import argument
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.storage.pieces import FileSource, MemorySource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store as ZarrStore

    from actstore.store.storage.pieces import Bytes, Source


_WILL_NEED: int | None = getattr(mmap, "MADV_WILLNEED", None)


def will_need(view: Bytes, start: int, stop: int) -> None:
    """Ask the system to read bytes start…stop of what `Folder.view` gave in one go, before they are touched."""
    mapping = view.obj if isinstance(view, memoryview) else None
    if _WILL_NEED is not None and isinstance(mapping, mmap.mmap) and stop > start:
        aligned = start - start % mmap.PAGESIZE
        mapping.madvise(_WILL_NEED, aligned, stop - aligned)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What the system refuses meanwhile names the file, which errors of reading do not by themselves."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class KeyWriter(io.BufferedIOBase):
    """A file written front to back that becomes visible whole, on `close`, or never."""

    def __init__(self, folder: Folder, key: str) -> None:
        self._folder, self._key = folder, key
        self._file: IO[bytes]
        if folder.path is None:
            self._file = io.BytesIO()
        else:
            self._target = folder.path / key
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._partial = self._target.with_name(f"{self._target.name}.partial")
            self._file = self._partial.open("wb")

    def writable(self) -> bool:
        """Whether bytes can be written: always."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, data: Any) -> int:
        """The number of bytes appended."""
        return self._file.write(data)

    def close(self) -> None:
        """Publish what was written."""
        if self.closed:
            return
        try:
            if isinstance(self._file, io.BytesIO):
                self._folder.write(self._key, self._file.getvalue())
            self._file.close()
            if self._folder.path is not None:
                self._partial.replace(self._target)
        except BaseException:
            self.abandon()
            raise
        super().close()

    def abandon(self) -> None:
        """Drop what was written; nothing happens once it is published."""
        if self.closed:
            return
        with contextlib.suppress(OSError):  # a full disk may refuse the last bytes, which nobody wants any more
            self._file.close()
        if self._folder.path is not None:
            self._partial.unlink(missing_ok=True)
        super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The base class closes, which here would publish half a file.
        self.close() if kind is None else self.abandon()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.abandon()


class Folder:
    """Keys and bytes of one store, local directory or URL."""

    def __init__(self, location: str | Path, *, read_only: bool = True) -> None:
        """Point at `location`; nothing is created until something is written."""
        self.location: str = argument("location", location, str | Path)
        self.read_only = read_only
        self.path: Path | None = None
        self.zarr: ZarrStore
        if "://" in self.location:
            self.zarr = self._remote()
        else:
            self.path = Path(self.location)
            if self.path.is_file():
                raise InvalidInputError(f"A store is a folder, but {self.path} is a file. Name another path.")
            self.zarr = LocalStore(self.path, read_only=read_only)

    def __str__(self) -> str:
        return self.location

    def __reduce__(self) -> tuple[Any, ...]:
        """Where it is: that is what another process needs."""
        if self.location.startswith("memory://"):
            raise InvalidInputError(
                f"{self.location} lives in the memory of this process, and another cannot open it. Keep the store in a folder."
            )
        location = self.location if self.path is None else os.path.abspath(self.path)
        return _reopen, (location, self.read_only)

    def __copy__(self) -> Folder:
        return self  # nothing in it changes

    def __deepcopy__(self, memo: object) -> Folder:
        return self

    def _remote(self) -> FsspecStore:
        try:
            return FsspecStore.from_url(self.location, read_only=self.read_only)
        except ImportError as error:
            missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
            package = f" (`pip install {missing}`)" if missing else ""
            reason = " ".join(str(error).split()).rstrip(".")
            raise InvalidInputError(
                f"{self.location} needs a package that is not installed{package}: {reason}."
            ) from None
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InvalidInputError(f"{self.location} is no URL that can be opened: {reason}.") from None

    def _read_remote(self, key: str, start: int | None, stop: int | None) -> bytes:
        byte_range = OffsetByteRequest(start or 0) if stop is None else RangeByteRequest(start or 0, stop)
        try:
            buffer = sync(self.zarr.get(key, default_buffer_prototype(), byte_range))
        except OSError:
            raise
        except Exception as error:
            # Every driver has its own errors for a server that cannot be reached or refuses.
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
            raise OSError(f"{self.location} cannot be read: {type(error).__name__}: {reason}") from error
        if buffer is None:
            raise NotFoundError(f"{self.location} has no {key}.")
        return buffer.to_bytes()

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes under `key`, or their half-open range; `NotFoundError` where there are none."""
        if self.path is not None:
            try:
                with _naming(self.path / key), (self.path / key).open("rb") as file:
                    file.seek(start or 0)
                    size = os.fstat(file.fileno()).st_size  # a damaged record may ask for terabytes
                    return file.read(max(0, min(size, size if stop is None else stop) - (start or 0)))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError(f"{self.location} has no {key}.") from None
        return self._read_remote(key, start, stop)

    def view(self, key: str) -> Bytes:
        """The bytes under `key` without copying them where the disk allows; `NotFoundError` where there are none."""
        if self.path is None:
            return self.read(key)
        try:
            with _naming(self.path / key), (self.path / key).open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # A reader that wants a few kilobytes of a shard must not wait for the megabytes around them: systems read
            # ahead by up to 8 MB a fault. `will_need` says what is wanted. The mapping closes with its last reference.
            if hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)
            return memoryview(mapping)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"{self.location} has no {key}.") from None
        except ValueError:  # an empty file cannot be mapped
            return b""

    def source(self, key: str) -> Source:
        """The bytes under `key`, to read pieces of; `NotFoundError` where there are none."""
        if self.path is None:
            return MemorySource(self.read(key))
        try:
            return FileSource(self.path / key)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"{self.location} has no {key}.") from None

    def write(self, key: str, data: Bytes) -> None:
        """Replace what is under `key`, so that a reader sees the old bytes or the new, never a part."""
        self._check_writable()
        if self.path is not None:
            # Zarr's own local store does the same; its event loop is spared here for the writer's many small records.
            target = self.path / key
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            try:
                partial.write_bytes(data)
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            return
        sync(self.zarr.set(key, default_buffer_prototype().buffer.from_bytes(bytes(data))))

    def writer(self, key: str) -> KeyWriter:
        """A binary file whose bytes appear under `key` when it is closed, unless it is left by an exception."""
        self._check_writable()
        return KeyWriter(self, key)

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.location} was opened for reading, and cannot be written to.")

    def exists(self, key: str) -> bool:
        """Whether there are bytes under `key`."""
        return (self.path / key).is_file() if self.path is not None else sync(self.zarr.exists(key))

    def delete(self, key: str) -> None:
        """Remove `key`, and everything below it; nothing happens where there is nothing."""
        self._check_writable()
        if self.exists(key):
            sync(self.zarr.delete(key))
        sync(self.zarr.delete_dir(key))

    def names(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted."""

        async def collect() -> list[str]:
            return sorted([name async for name in self.zarr.list_dir(prefix)])

        return sync(collect())

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every key below `prefix` with its size in bytes."""
        if self.path is not None:
            # Zarr's own listing takes the store's path out of a key wherever it finds it: "s/" out of "captures/" too.
            for path in sorted((self.path / prefix).rglob("*")):
                if path.is_file():
                    yield path.relative_to(self.path).as_posix(), path.stat().st_size
            return

        async def collect() -> list[str]:
            return [key async for key in self.zarr.list_prefix(prefix)]

        for key in sync(collect()):
            yield key, sync(self.zarr.getsize(key))

    def read_json(self, key: str) -> dict[str, Any]:
        """The JSON object under `key`; `FormatError` where the bytes are not one."""
        try:
            value = json.loads(self.read(key))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{self.location}/{key} should hold JSON, but {error}.") from None
        if not isinstance(value, dict):
            raise FormatError(f"{self.location}/{key} should hold a JSON object, found {type(value).__name__}.")
        return value

    def write_json(self, key: str, value: dict[str, Any]) -> None:
        """Write `value` as JSON, keys in the order given."""
        self.write(key, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def _reopen(location: str, read_only: bool) -> Folder:
    return Folder(location, read_only=read_only)

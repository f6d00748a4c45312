"""Storages over a folder that behave as objects behind a server: every request is counted, with its bytes, by key.

`counted://PATH` is an object store; `static://PATH` a web host, which answers reads of a key and nothing else: whoever lists
or asks whether a key exists fails. Use `counting()` around what is measured.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore, WrapperStore

from actstore.store.errors import UnlistableError
from actstore.store.files.table_checksums import TailSource
from actstore.store.storage import schemes
from actstore.store.storage.pieces import FileSource, MemorySource
from actstore.store.storage.zarr_storage import ZarrStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zarr.core.buffer import Buffer

    from actstore.store.storage.pieces import Source


@dataclass(eq=False)
class Requests:
    """What was asked of a server."""

    reads: Counter[str] = field(default_factory=Counter)
    """Key → number of reads."""
    nbytes: Counter[str] = field(default_factory=Counter)
    """Key → bytes that were answered."""
    others: list[str] = field(default_factory=list)
    """Listings, and questions whether a key exists."""

    @property
    def n(self) -> int:
        """All requests."""
        return self.reads.total() + len(self.others)

    def read(self, key: str, n: int) -> None:
        """Count an answer of n bytes."""
        self.reads[key] += 1
        self.nbytes[key] += n

    def __str__(self) -> str:
        lines = [f"{n:3} {self.nbytes[key]:9,} B  {key}" for key, n in sorted(self.reads.items())]
        return "\n".join([f"{self.n} requests, {self.nbytes.total():,} bytes", *lines, *self.others])


_now: list[Requests] = []


@contextmanager
def counting() -> Iterator[Requests]:
    """The requests of counted storages while the context lasts."""
    requests = Requests()
    _now.append(requests)
    schemes.SCHEMES.update(counted=CountedStorage, static=StaticStorage)
    try:
        yield requests
    finally:
        _now.remove(requests)


def _count(key: str, n: int) -> None:
    for requests in _now:
        requests.read(key, n)


def _other(what: str) -> None:
    for requests in _now:
        requests.others.append(what)


class _CountedZarr(WrapperStore[LocalStore]):
    """Zarr's view of the same keys."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        _count(key, 0 if found is None else len(found))
        return found

    async def exists(self, key: str) -> bool:
        _other(f"exists {key}")
        return await super().exists(key)


class _CountedSource(FileSource):
    def __init__(self, path: Path, key: str) -> None:
        super().__init__(path)
        self._key = key
        _count(key, 0)  # its size

    def read(self, start: int, stop: int) -> bytes:
        data = super().read(start, stop)
        _count(self._key, len(data))
        return data

    def read_into(self, start: int, out: Any) -> None:
        super().read_into(start, out)
        _count(self._key, out.nbytes)

    def will_need(self) -> None:
        pass


class CountedStorage(ZarrStorage):
    """The files of a folder as objects."""

    def __init__(
        self, location: str, *, read_only: bool, sync: bool = True, options: Mapping[str, Any] | None = None
    ) -> None:
        self._path = Path(location.partition("://")[2])
        super().__init__(location, _CountedZarr(LocalStore(self._path, read_only=read_only)))

    def source(self, key: str, tail: int | None = None) -> Source:
        """Ranges of an object, its end with the first request; without `tail` all of it at once."""
        return MemorySource(self.view(key)) if tail is None else TailSource(_CountedSource(self._path / key, key), tail)

    def exists(self, key: str) -> bool:
        """One request."""
        _other(f"exists {key}")
        return (self._path / key).is_file()

    def names(self, prefix: str) -> list[str]:
        """One request."""
        _other(f"list {prefix}")
        return super().names(prefix)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """One request."""
        _other(f"list {prefix}")
        return super().sizes(prefix)


class StaticStorage(CountedStorage):
    """The files of a folder behind a web server that knows none of their names."""

    def exists(self, key: str) -> bool:
        """Never answered: what a reader may ask is a key's bytes."""
        raise UnlistableError(f"{self.location} was asked whether {key} exists")

    def names(self, prefix: str) -> list[str]:
        """Never answered."""
        raise UnlistableError(f"{self.location} cannot list {prefix!r}")

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Never answered."""
        raise UnlistableError(f"{self.location} cannot list {prefix!r}")

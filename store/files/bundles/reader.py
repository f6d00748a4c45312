"""Reads bundles: all files of one block in one object, which takes the place of a hundred in a capture of a large model.

How they are laid out is in `index`. `find_bundles` has a folder find the files under the keys that they have without
bundles, so that nobody else needs to know where they lie.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

from actstore.store.errors import FormatError, NotFoundError, finding
from actstore.store.files.arrays import affordable_files
from actstore.store.files.bundles.index import read_index
from actstore.store.files.shards import WHAT_TO_DO
from actstore.store.layout import block_of, bundle_key, bundles_prefix, capture_key
from actstore.store.storage.inner_keys import InnerKeys
from actstore.store.storage.pieces import MemorySource, PartSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source

_PIECE: Final = 1 << 24
"""Bytes that are copied at once."""
FIRST_TAIL_NBYTES: Final = 1 << 16
"""What is fetched of the end of the first bundle; of the others, as much as the largest index so far took."""
MOST_NBYTES_HELD: Final = 1 << 26
"""Of the indexes that are kept, with the ends of their bundles."""
MOST_OPEN: Final = 64
"""Bundles that are kept open, fewer where the process may open few files: each has a file descriptor."""


class Bundle:
    """An open bundle: its files, by their keys below the capture."""

    def __init__(self, source: Source, where: str) -> None:
        """Read the index at the end of `source`; `FormatError` naming `where` in which it is damaged."""
        self._source = source
        try:
            self.index_nbytes, self._parts = read_index(source)
        except (ValueError, TypeError, EOFError, FormatError) as error:
            raise FormatError(f"{where} is damaged: {finding(error)}.", WHAT_TO_DO) from None
        self.nbytes_held = source.nbytes_held + sum(part.chunks.nbytes + 500 for part in self._parts.values())

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its files, in the order in which they lie."""
        return tuple(self._parts)

    def source(self, key: str, tail: int | None, *, at_once: bool) -> Source | None:
        """The bytes of one file, with `at_once` and without `tail` fetched now; None where there is no such file."""
        part = self._parts.get(key)
        if part is None:
            return None
        if tail is None and at_once:
            return MemorySource(bytes(self._source.read(part.at, part.at + part.nbytes)))
        return PartSource(self._source, part.at, part.nbytes, part.tail if tail else b"")

    def copy(self, key: str) -> tuple[Iterator[bytes], int, NDArray[np.uint32]]:
        """A file as `BundleWriter.add` takes it: its pieces, `gap`, `chunks`; `NotFoundError` where there is none."""
        part = self._parts.get(key)
        if part is None:
            raise NotFoundError(f"A bundle has no file {key}.")
        end = part.at + part.nbytes
        pieces = (bytes(self._source.read(at, min(at + _PIECE, end))) for at in range(part.at, end, _PIECE))
        return pieces, part.gap, part.chunks


class Bundles(InnerKeys):
    """The files of the blocks of one capture, found in its bundles; indexes are kept, those used last."""

    def __init__(self, folder: Folder, capture: str) -> None:
        """Of the capture of that name; the folder itself is not kept."""
        self._storage, self._location = folder.storage, str(folder)
        self._capture, self._prefix = capture, f"{capture_key(capture)}/"
        self._opened: OrderedDict[int, tuple[Bundle, tuple[int, ...]]] = OrderedDict()
        self._lock = Lock()
        self._tail_nbytes = FIRST_TAIL_NBYTES

    def has(self, key: str) -> bool:
        """As `InnerKeys.has`."""
        return block_of(key.removeprefix(self._prefix)) is not None

    def source(self, key: str, tail: int | None) -> Source | None:
        """As `InnerKeys.source`; `FormatError` where the bundle's index is damaged."""
        short = key.removeprefix(self._prefix)
        if (block := block_of(short)) is None:
            return None
        # A server is asked once for a file that is read whole; files of the local disk are read in place.
        source = self.open(block).source(short, tail, at_once=self._storage.concurrency > 1)
        if source is None:
            raise FileNotFoundError(key)
        return source

    def open(self, block: int) -> Bundle:
        """The bundle of a block; FileNotFoundError where there is none, `FormatError` where its index is damaged."""
        key = bundle_key(self._capture, block)
        path = self._storage.local_path(key)
        with self._lock:
            if block in self._opened:
                self._opened.move_to_end(block)
                bundle, state = self._opened[block]
                if path is None or state == _state(path):
                    return bundle
        state = () if path is None else _state(path)
        try:
            source = self._storage.source(key, self._tail_nbytes)
        except OSError:
            self.forget("")  # it may have been one open file too many
            raise
        bundle, most_open = Bundle(source, f"{self._location}/{key}"), affordable_files(MOST_OPEN)
        with self._lock:
            self._tail_nbytes = max(self._tail_nbytes, bundle.index_nbytes * 9 // 8)
            self._opened[block] = bundle, state
            held = sum(kept.nbytes_held for kept, _ in self._opened.values())
            while len(self._opened) > 1 and (held > MOST_NBYTES_HELD or len(self._opened) > most_open):
                _, (oldest, _) = self._opened.popitem(last=False)
                held -= oldest.nbytes_held
        return bundle

    def forget(self, key: str) -> None:
        """As `InnerKeys.forget`."""
        prefix = f"{bundles_prefix(self._capture)}/"
        with self._lock:
            if key.startswith(prefix) and key.removeprefix(prefix).isdigit():
                self._opened.pop(int(key.removeprefix(prefix)), None)
            elif prefix.startswith(key):
                self._opened.clear()


def _state(path: Path) -> tuple[int, ...]:
    """What changes of a file when another takes its place; FileNotFoundError where there is none."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def find_bundles(folder: Folder, record: CaptureRecord) -> None:
    """Have `folder` find the files of a capture's blocks where its record says that they are."""
    prefix = capture_key(record.name)
    if record.bundled != isinstance(folder.inner_keys(prefix), Bundles):
        folder.find_inside(prefix, Bundles(folder, record.name) if record.bundled else None)


def forget_bundle(folder: Folder, key: str) -> None:
    """Have `folder` read a bundle anew that may have been replaced."""
    keys = folder.inner_keys(key.rpartition("/bundles/")[0])
    if keys is not None:
        keys.forget(key)


def damaged_bundle(folder: Folder, record: CaptureRecord, block: int, keys: Sequence[str]) -> str | None:
    """What is wrong with a block's bundle as a whole, read anew, which should have the files `keys`; None where nothing is."""
    forget_bundle(folder, bundle_key(record.name, block))
    try:
        found = open_bundle(folder, record, block).keys
    except NotFoundError:
        return "missing"
    except FormatError as error:
        return finding(error)
    if found != tuple(keys):
        return f"it has other files than the commit record lists: {len(found)}, expected {len(keys)}"
    return None


def open_bundle(folder: Folder, record: CaptureRecord, block: int) -> Bundle:
    """A block's bundle; `NotFoundError` where there is none, `FormatError` where its index is damaged."""
    find_bundles(folder, record)
    bundles = folder.inner_keys(capture_key(record.name))
    assert isinstance(bundles, Bundles)
    try:
        return bundles.open(block)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFoundError(f"{folder} has no {bundle_key(record.name, block)}.") from None

"""The stores that a server has open: one object per store and lane, used by one page at a time, opened anew now and then."""

from __future__ import annotations

import time
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from actstore.explorer.pages.table import LANES
from actstore.store.errors import NotFoundError
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MAX_AGE_S: Final = 60.0
"""How long a store is kept open. Blocks and captures that are added meanwhile are seen at once, graphs made anew are not."""


class Shelf:
    """Some stores by number; may be used by several threads."""

    def __init__(self, locations: Sequence[str | Path | Store], clock: Callable[[], float] = time.monotonic) -> None:
        """Open each store once, so that what is missing or damaged is said before a server begins."""
        self._clock = clock
        self._folders = [Folder(_folder_of(location), read_only=True) for location in locations]
        for folder in self._folders:
            Store(folder)
        self._locks = {(number, lane): Lock() for number in range(len(self._folders)) for lane in LANES}
        self._open: dict[tuple[int, str], tuple[float, Store]] = {}

    def __len__(self) -> int:
        return len(self._folders)

    def folder(self, number: int) -> Folder:
        """Where a store is; `NotFoundError` where there is none of the number."""
        if not 0 <= number < len(self._folders):
            raise NotFoundError(f"There are stores 0 to {len(self._folders) - 1}, found {number}.")
        return self._folders[number]

    @contextmanager
    def use(self, number: int, lane: str = "pages") -> Iterator[Store]:
        """A store, which nobody else uses meanwhile."""
        folder, key = self.folder(number), (number, lane)
        with self._locks[key]:
            opened_at, store = self._open.get(key, (-MAX_AGE_S, None))
            if store is None or self._clock() - opened_at > MAX_AGE_S:
                self._open[key] = self._clock(), (store := Store(folder))
            yield store

    def open_other(self, number: int) -> Store:
        """A store of its own, for a page that reads two."""
        return Store(self.folder(number))


def _folder_of(location: Any) -> Any:
    return location.folder if isinstance(location, Store) else location

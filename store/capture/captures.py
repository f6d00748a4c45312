"""A store's captures by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store import layout
from actstore.store.arguments import argument
from actstore.store.capture.reader import Capture
from actstore.store.capture.record import read_capture
from actstore.store.errors import NotFoundError
from actstore.store.model.root import Root

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.storage.folder import Folder


class Captures(Root):
    """One model and its captures."""

    def __init__(self, location: str | Path | Folder) -> None:
        """As `Root`."""
        super().__init__(location)
        self._complete: dict[str, Capture] = {}

    @property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures that have a plan."""
        names = self.folder.names("captures")
        return tuple(name for name in names if name != "zarr.json" and read_capture(self.folder, name) is not None)

    def capture(self, name: str | None = None) -> Capture:
        """A capture by name; without one, the only capture or else the one called `corpus`."""
        name, names = argument("name", name, str | None), self.captures
        if name is None:
            name = names[0] if len(names) == 1 else layout.DEFAULT_CAPTURE
        if name in self._complete:
            return self._complete[name]
        record = read_capture(self.folder, name) if name in names else None
        if record is None:
            raise NotFoundError(
                f"{self.folder} has no capture {name!r}. Its captures are: {', '.join(names) or 'none'}."
            )
        capture = Capture(self, record)
        if capture.is_complete:
            # Nothing will be added to it, so what one question read (statistics, mapped shards) serves the next.
            self._complete[name] = capture
        return capture

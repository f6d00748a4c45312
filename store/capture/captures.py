"""A store's captures by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store import layout
from actstore.store.arguments import argument
from actstore.store.capture.reader import Capture
from actstore.store.capture.record import read_capture
from actstore.store.errors import NotFoundError
from actstore.store.files.record_checks import check_of_model
from actstore.store.model.root import Root

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.files.records import CaptureRecord
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
        return tuple(name for name in self._names() if self._record(name) is not None)

    def capture(self, name: str | None = None) -> Capture:
        """A capture by name; without one, the only capture or else the one called `corpus`."""
        name = argument("name", name, str | None)
        if name is None:
            name = self.default_capture() or layout.DEFAULT_CAPTURE
        if name in self._complete:
            return self._complete[name]
        record = self._record(name) if name in self._names() else None
        if record is None:
            raise NotFoundError(
                f"{self.folder} has no capture {name!r}. Its captures are: {', '.join(self.captures) or 'none'}."
            )
        capture = Capture(self, record)
        if capture.is_complete:
            # Nothing will be added to it, so what one question read (statistics, mapped shards) serves the next.
            self._complete[name] = capture
        return capture

    def default_capture(self) -> str | None:
        """The name of the capture that is meant where none is named; None where that is not clear."""
        names = self._names()
        # The others are read only where there is no capture of the default name.
        if layout.DEFAULT_CAPTURE in names and self._record(layout.DEFAULT_CAPTURE) is not None:
            return layout.DEFAULT_CAPTURE
        planned = [name for name in names if self._record(name) is not None]
        return planned[0] if len(planned) == 1 else None

    def _names(self) -> list[str]:
        """What lies in the folder of captures, with a plan or without."""
        return [name for name in self.folder.names("captures") if name != "zarr.json"]

    def _record(self, name: str) -> CaptureRecord | None:
        """The record of a capture, read now: another process may have added it; None where its plan is not finished."""
        if name in self._complete:
            return self._complete[name].record
        record = read_capture(self.folder, name)
        if record is not None:
            check_of_model(record.sites, self.model, f"{self.folder}/{layout.capture_key(name)}/zarr.json")
        return record

"""A store's captures by name."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from actstore.store import layout
from actstore.store.arguments import argument
from actstore.store.calls import checks
from actstore.store.capture.identity import check_belongs
from actstore.store.capture.reader import Capture
from actstore.store.capture.record import read_capture
from actstore.store.capture.unfinished import logger, unfinished_sentence
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.names import stored_names
from actstore.store.files.record_checks import check_of_model
from actstore.store.model.root import Root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
"""Names that can be looked up without listing the folder of captures: those that a capture can be given."""


@checks
class Captures(Root):
    """One model and its captures."""

    def __init__(self, location: str | Path | Folder) -> None:
        """As `Root`; `FormatError` also where the root is not that of any capture that can be read."""
        super().__init__(location)
        self._read_at_opening: dict[str, CaptureRecord] = {}
        self._check_root()
        self._complete: dict[str, Capture] = {}
        self._reported: set[str] = set()
        self._warned_of: set[str] = set()

    @property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures that have a plan; one that cannot be read is left out, with a warning in the log."""
        names = []
        for name in self._names():
            try:
                names += [name] * (self._record(name) is not None)
            except FormatError as error:
                if name not in self._reported:
                    logger.warning("Capture %r is left out, as it cannot be read: %s", name, error)
                    self._reported.add(name)
        return tuple(names)

    def read_captures(self) -> tuple[dict[str, Capture], dict[str, FormatError]]:
        """All captures by name, and of those whose record cannot be read the error; each record is read once."""
        captures, reasons = {}, {}
        for name in self._names():
            try:
                record = self._record(name)
            except FormatError as error:
                reasons[name] = error
            else:
                if record is not None:
                    captures[name] = self._open(name, record)
        return captures, reasons

    def capture(self, name: str | None = None) -> Capture:
        """A capture by name; without one, the only capture or else the one called `corpus`.

        That it is unfinished, the logger `actstore` warns of the first time. `NotFoundError` where there is none, `FormatError`
        where its record is damaged, lost, or another store's.
        """
        capture = self.peek(name)
        sentence = unfinished_sentence(capture)
        if sentence is not None and capture.record.name not in self._warned_of:
            self._warned_of.add(capture.record.name)
            logger.warning(sentence)
        return capture

    def peek(self, name: str | None = None) -> Capture:
        """As `capture`, without a warning: for what looks at captures to choose one, or itself says how far they are."""
        name = argument("name", name, str | None)
        record = None
        if name is None:
            name, record = self._find_default() or (layout.DEFAULT_CAPTURE, None)
        if name in self._complete:
            return self._complete[name]
        is_plain = _PLAIN_NAME.fullmatch(name) is not None and name != "zarr.json"
        if record is None and (is_plain or name in self._names()):
            record = self._record(name)
        if record is None:
            raise NotFoundError(
                f"{self.folder} has no capture {name!r}. Its captures are: {', '.join(self.captures) or 'none'}."
            )
        return self._open(name, record)

    def reopened(self, name: str) -> Capture:
        """A capture opened anew, of which this store has kept another state."""
        for kept in (self._complete, self._read_at_opening):
            kept.pop(name, None)
        return self.peek(name)

    def default_capture(self) -> str | None:
        """The name of the capture that is meant where none is named; None where that is not clear."""
        found = self._find_default()
        return found and found[0]

    def _find_default(self) -> tuple[str, CaptureRecord] | None:
        """Name and record of the capture that is meant where none is named; None where that is not clear."""
        # The others are read only where there is no capture of the default name.
        if (record := self._record(layout.DEFAULT_CAPTURE)) is not None:
            return layout.DEFAULT_CAPTURE, record
        planned: list[tuple[str, CaptureRecord]] = []
        for name in self._names():
            try:
                record = self._record(name)
            except FormatError:
                return None  # it may be the one that is meant
            if record is not None:
                planned.append((name, record))
            if len(planned) > 1:
                return None
        return planned[0] if planned else None

    def _check_root(self) -> None:
        """`FormatError` where the root is of another store than the captures beside it; the first of its own settles it."""
        foreign = None
        for name in self._default_first():
            try:
                record = read_capture(self.folder, name)
            except FormatError:
                continue  # it does not say where it belongs; whoever reads it is told
            if record is None:
                continue
            try:
                check_belongs(self.folder, record, self.root_record)
            except FormatError as error:
                foreign = foreign or error
            else:
                self._read_at_opening[name] = record
                return
        if foreign is not None:
            raise foreign

    def _open(self, name: str, record: CaptureRecord) -> Capture:
        if name in self._complete:
            return self._complete[name]
        capture = Capture(self, record)
        if capture.is_complete:
            # Nothing will be added to it, so what one question read (statistics, mapped shards) serves the next.
            self._complete[name] = capture
        return capture

    def _names(self) -> list[str]:
        """What lies in the folder of captures, with a plan or without."""
        return stored_names(self.folder, "captures")

    def _default_first(self) -> Iterator[str]:
        """As `_names`, which is asked only where the capture of the default name is not enough."""
        yield layout.DEFAULT_CAPTURE
        with suppress(NotFoundError):  # where nothing says which there are, each is compared when it is named
            yield from (name for name in self._names() if name != layout.DEFAULT_CAPTURE)

    def _record(self, name: str) -> CaptureRecord | None:
        """The record of a capture, read now: another process may have added it; None where its plan is not finished.

        `FormatError` where it is damaged or lost, and where the capture is another store's.
        """
        if name in self._complete:
            return self._complete[name].record
        record = self._read_at_opening.pop(name, None) or read_capture(self.folder, name)
        if record is not None:
            check_belongs(self.folder, record, self.root_record)
            check_of_model(record.sites, self.model, f"{self.folder}/{layout.capture_key(name)}/zarr.json")
        return record

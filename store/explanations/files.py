"""The files of a set of explanations: which there are, how one more is written, and which are damaged."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from actstore.store.capture.record import read_capture
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError, UnlistableError, finding
from actstore.store.explanations.record import (
    INDEX,
    RECORD,
    Explanation,
    ExplanationSet,
    Score,
    encode,
    parse_file,
    read_file,
    read_set,
)
from actstore.store.files.names import write_names
from actstore.store.files.record_checks import is_name
from actstore.store.files.records import verify_checksum, with_checksum
from actstore.store.layout import explanations_key
from actstore.store.neurons import neuron_name
from actstore.store.storage.lock import own_explanations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from actstore.store.model.root import RootRecord
    from actstore.store.storage.folder import Folder

_FREE = ("written_by", "created")
"""Fields of a set's record that a later run may have otherwise."""


def now() -> str:
    """The time in UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def list_files(folder: Folder, name: str) -> list[str]:
    """The names of a set's explanations and scores, sorted: what is listed, or where nothing can be, what the index lists."""
    try:
        names = folder.names(explanations_key(name, "").rstrip("/"))
    except (UnlistableError, PermissionError):
        names = indexed_files(folder, name)
    return sorted(file for file in names if parse_file(file) is not None)


def indexed_files(folder: Folder, name: str) -> list[str]:
    """The names in a set's index; none where it has none, `FormatError` where it is damaged."""
    key = explanations_key(name, INDEX)
    try:
        value = folder.read_json(key)
    except NotFoundError:
        return []
    verify_checksum(value, f"{folder}/{key}")
    files = value.get("files")
    if not isinstance(files, list) or not all(isinstance(file, str) and is_name(file) for file in files):
        raise FormatError(
            f"{folder}/{key} is damaged: it should hold a list of files.", "Delete it, or restore it from a copy."
        )
    return files


def write_index(folder: Folder, name: str) -> None:
    """Write which explanations and scores a set has, for readers that cannot list them, and for `verify`."""
    value = with_checksum({"files": list_files(folder, name)})
    folder.write_json(explanations_key(name, INDEX), value)


class ExplanationWriter:
    """Adds explanations and scores to a set, which is its own until the context is left. What is there stays as it is."""

    def __init__(self, folder: Folder, record: ExplanationSet) -> None:
        """Begin the set, or go on with it.

        `InvalidInputError` where it was begun otherwise, `ReadOnlyError` while another process writes it.
        """
        if not is_name(record.name):
            raise InvalidInputError(
                f"Explanations need a name that can be a folder's, found {record.name!r}. Check `name`."
            )
        self._folder = folder
        with ExitStack() as owned:
            owned.enter_context(own_explanations(folder, record.name))
            found = read_set(folder, record.name)
            if found is None:
                write_names(folder, "explanations", record.name)
                folder.write(explanations_key(record.name, RECORD), encode(record))
            else:
                check_same(found, record)
            self.record = found or record
            self._owned = owned.pop_all()
        self._files = set(list_files(folder, record.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._owned:
            write_index(self._folder, self.record.name)

    def has(self, layer: int, neuron: int, method: str = "") -> bool:
        """Whether the set has an explanation of the neuron, or that score of it."""
        return f"{neuron_name(layer, neuron)}{method and f'.{method}'}.json" in self._files

    def read(self, layer: int, neuron: int) -> Explanation:
        """The explanation of a neuron, which it must have."""
        return read_file(self._folder, self.record, f"{neuron_name(layer, neuron)}.json", Explanation)

    def add(self, item: Explanation | Score) -> None:
        """Write one file, whole or not at all; may be called by several threads. `FileExistsError` where it is there."""
        item = dataclasses.replace(item, of=self.record.identity)
        self._folder.create(explanations_key(self.record.name, item.file), encode(item))
        self._files.add(item.file)


def check_same(found: ExplanationSet, asked: ExplanationSet) -> None:
    """`InvalidInputError` where explanations that are there were made otherwise than is asked now."""
    for item in dataclasses.fields(ExplanationSet):
        before, now_asked = getattr(found, item.name), getattr(asked, item.name)
        if item.name in _FREE or before == now_asked:
            continue
        what, was, is_now = item.name, before, now_asked
        if item.name == "settings":
            what = next(key for key in {**before, **now_asked} if before.get(key) != now_asked.get(key))
            was, is_now = before.get(what), now_asked.get(what)
        raise InvalidInputError(
            f"Explanations {found.name!r} were made with {what} {was!r}, now {is_now!r}: go on as they were begun, or choose "
            "another `name`."
        )


def damaged_files(folder: Folder, name: str, root: RootRecord) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of everything in a set that is damaged, lost, or of another store."""
    record: ExplanationSet | None = None
    try:
        record = read_set(folder, name)
    except FormatError as error:
        yield explanations_key(name, RECORD), finding(error)
        return
    if record is None:
        if list_files(folder, name):  # it is written first
            yield explanations_key(name, RECORD), "missing"
        return
    if (what := foreign(folder, record, root)) is not None:
        yield explanations_key(name, RECORD), what
    files = list_files(folder, name)
    known: dict[str, str] = {}
    for file in files:
        neuron, method = parse_file(file) or ("", "")
        kind: Any = Score if method else Explanation
        try:
            read = read_file(folder, record, file, kind)
        except (FormatError, NotFoundError) as error:
            yield explanations_key(name, file), finding(error)
            continue
        if isinstance(read, Explanation):
            known[neuron] = read.digest
        elif known.get(neuron, read.explanation) != read.explanation:
            yield explanations_key(name, file), "it is the score of another explanation"
    try:
        lost = sorted(set(indexed_files(folder, name)) - {*files})
    except FormatError as error:
        yield explanations_key(name, INDEX), finding(error)
        return
    for file in lost:
        yield explanations_key(name, file), "missing"


def foreign(folder: Folder, record: ExplanationSet, root: RootRecord) -> str | None:
    """What to say of explanations of another model or capture than the store's; None where they are of it."""
    if record.model_fingerprint != root.model.fingerprint:
        return f"explanations {record.name!r} are of another model than the store's; restore them from a copy"
    try:
        capture = read_capture(folder, record.capture)
    except FormatError:
        return None  # reported as that capture's damage
    if capture is not None and (capture.plan.fingerprint, capture.identity) != (
        record.plan_fingerprint,
        record.capture_identity,
    ):
        return f"explanations {record.name!r} are of another capture {record.capture!r}; restore them from a copy"
    return None

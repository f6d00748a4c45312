"""The record of a capture, where its plan is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store import layout
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.records import CaptureRecord, verify_checksum

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder


def read_capture(folder: Folder, name: str) -> CaptureRecord | None:
    """The record of a planned capture; None where there is none."""
    key = f"{layout.capture_key(name)}/zarr.json"
    try:
        group = folder.read_json(key)
    except NotFoundError:
        return None
    # Zarr makes the group as soon as the plan's first array is written; only a finished plan puts the record there.
    attributes = group.get("attributes")
    record = attributes.get("actstore_capture") if isinstance(attributes, dict) else None
    if record is None:
        return None
    if isinstance(record, dict):
        verify_checksum(record, f"{folder}/{key}")
    parsed = CaptureRecord.from_json(record, f"{folder}/{key}")
    if parsed.name != name:  # its keys would be another capture's
        raise FormatError(
            f"{folder}/{key} is the record of a capture {parsed.name!r}, expected {name!r}. Restore it from a copy."
        )
    return parsed

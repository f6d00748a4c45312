"""The record of a capture, where its plan is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store import layout
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.bundles.reader import find_bundles
from actstore.store.files.records import CaptureRecord, verify_checksum
from actstore.store.model.remains import part_of_lost_capture

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder


def read_capture(folder: Folder, name: str) -> CaptureRecord | None:
    """The record of a planned capture; None where there is none, and never was. `folder` finds its blocks' files from then on.

    `FormatError` where it is damaged, is another capture's, or is lost while blocks of the capture are there.
    """
    key = f"{layout.capture_key(name)}/zarr.json"
    value, what = _look_up(folder, key)
    if value is None:
        part = part_of_lost_capture(folder, name)
        if part is None:
            return None
        value, what = _look_up(folder, key)  # a writer beside us may have written it since, and that part after it
        if value is None:
            prefix = f"{folder}/{layout.capture_key(name)}"
            raise FormatError(
                f"{prefix}/zarr.json {what}, and {part.removeprefix(layout.capture_key(name))[1:]} is there: the record "
                f"of capture {name!r} is lost.",
                f"Restore it from a copy, or delete {prefix} to discard the capture.",
            )
    if isinstance(value, dict):
        verify_checksum(value, f"{folder}/{key}")
    record = CaptureRecord.from_json(value, f"{folder}/{key}")
    if record.name != name:
        raise FormatError(
            f"{folder}/{key} is the record of a capture {record.name!r}, which lies in the folder of {name!r}.",
            f"Rename the folder to {record.name!r}, or restore it from a copy.",
        )
    find_bundles(folder, record)
    return record


def _look_up(folder: Folder, key: str) -> tuple[Any, str]:
    """The record in a capture's metadata, of whatever type, or None, and in what way it is not there."""
    try:
        # Zarr makes the group as soon as the plan's first array is written; only a finished plan puts the record there.
        attributes = folder.read_json(key).get("attributes")
    except NotFoundError:
        return None, "is missing"
    value = attributes.get("actstore_capture") if isinstance(attributes, dict) else None
    return value, "lacks the attribute 'actstore_capture'"

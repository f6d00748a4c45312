"""Whether parts of a store belong together: a capture to the root, a block's record to the capture.

What a record of an earlier version does not say is not compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.errors import FormatError
from actstore.store.layout import capture_key, commit_key

if TYPE_CHECKING:
    from actstore.store.files.records import CaptureRecord, CommitRecord
    from actstore.store.model.root import RootRecord
    from actstore.store.storage.folder import Folder

_SHOWN: Final = 12
"""Digits of a fingerprint in a message."""


def check_belongs(folder: Folder, record: CaptureRecord, root: RootRecord) -> None:
    """`FormatError` where a capture is of another store than the one it lies in, or of another model."""
    where = f"{folder}/{capture_key(record.name)}"
    if record.model_fingerprint != root.model.fingerprint:
        raise FormatError(
            f"{where} is a capture of another model (fingerprint {record.model_fingerprint[:_SHOWN]}…) than that of the "
            f"store, {root.model.name} (fingerprint {root.model.fingerprint[:_SHOWN]}…).",
            "Restore the capture, or the store's zarr.json, from a copy.",
        )
    if record.root and record.root != root.id:
        raise FormatError(
            f"{where} was captured into another store (root {record.root[:_SHOWN]}…) than the one it lies in (root "
            f"{root.id[:_SHOWN] or 'of an earlier version, without an id'}…).",
            "Restore the capture, or the store's zarr.json, from a copy.",
        )


def check_commit(folder: Folder, commit: CommitRecord, capture: CaptureRecord) -> None:
    """`FormatError` where a block's record was not written for the capture that it lies in."""
    expected = {
        "capture": capture.name,
        "plan": capture.plan.fingerprint,
        "model": capture.model_fingerprint,
        "identity": capture.identity,
    }
    for name, of_capture in expected.items():
        of_commit = getattr(commit, name)
        # A capture with an identity has had such records from its first block on.
        if of_commit != of_capture and (of_commit or capture.identity):
            raise FormatError(
                f"{folder}/{commit_key(capture.name, commit.block)} belongs to another capture: its {name} is "
                f"{of_commit[:_SHOWN] or 'not said'}, expected {of_capture[:_SHOWN] or 'none'}.",
                "Restore the block from a copy, or delete this record and resume the capture with `resume=True`.",
            )

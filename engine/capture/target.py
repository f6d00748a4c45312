"""Where a capture is to be written: whether it may be, and what is removed where it was not even planned."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from actstore.store import layout
from actstore.store.errors import InvalidInputError, ReadOnlyError
from actstore.store.model import root
from actstore.store.model.remains import remove_begun, unexpected_entry
from actstore.store.reader import read_capture
from actstore.store.storage.lock import own_root

if TYPE_CHECKING:
    from actstore.engine.models.load import ModelSpec
    from actstore.store.storage.folder import Folder


def check_target(folder: Folder, name: str, spec: ModelSpec, resume: bool) -> None:
    """Raise `InvalidInputError` where the folder holds another model, the capture already, or something else."""
    if root.is_store(folder):
        record = root.read_root(folder)
        if (record.model_type, record.d_model, len(record.layers)) != (spec.model_type, spec.d_model, len(spec.layers)):
            raise InvalidInputError(
                f"{folder} holds {record.name} ({record.model_type}, {len(record.layers)} layers of width {record.d_model}), "
                f"not {spec.name} ({spec.model_type}, {len(spec.layers)} of {spec.d_model}). One store has one model: name "
                "another."
            )
        if not resume and read_capture(folder, name) is not None:
            raise InvalidInputError(
                f"{folder} already has a capture {name!r}. Continue it with `resume=True`, or name the new one with `name`."
            )
    elif folder.local_path() is not None and (entry := unexpected_entry(folder)) is not None:
        raise InvalidInputError(f"{folder} is a folder with other content ({entry}, …). Name a new path for the store.")


def remove_unplanned(folder: Folder, name: str) -> bool:
    """Remove a capture, which must be owned, that failed before its plan was recorded, and the store if it was to be its first.

    What a model has answered meanwhile is kept: it took a forward pass per token. Returns whether something is kept.
    """
    if folder.names(layout.generated_prefix(name)):
        return True
    if folder.local_path() is not None:
        with suppress(OSError):  # where the disk is full or fails, what remains is a beginning still
            try:
                with own_root(folder, timeout_s=0):
                    if root.is_store(folder):
                        folder.delete(layout.capture_key(name))
                    else:
                        remove_begun(folder, name)
            except ReadOnlyError:  # who has the root is making a store of the folder
                folder.delete(layout.capture_key(name))
    return False

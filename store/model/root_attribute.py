"""What makes a folder a store: the attribute of its root's metadata, which is there, damaged, lost, or not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.model.remains import is_begun, part_of_lost_store

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder

ATTRIBUTE: Final = "actstore"
ROOT_KEY: Final = "zarr.json"
RESTORE: Final = (
    "Restore zarr.json from a copy of the store, or capture into a new folder; nothing is written into this one."
)


def read_root_attribute(folder: Folder) -> Any:  # JSON of any kind
    """The value of actstore's attribute in the root's metadata; None for a Zarr hierarchy of something else.

    `NotFoundError` where there is no root, or only what a first capture makes before it; `FormatError` where the root is
    damaged, or lost.
    """
    found, problem = _look_up(folder)
    if problem is None:
        return found
    part = part_of_lost_store(folder)
    if part is not None:  # a writer beside us may have made the root since we looked, and that part after it
        found, problem = _look_up(folder)
        if problem is None:
            return found
    elif is_begun(folder):
        raise NotFoundError(f"{folder}/{ROOT_KEY} is not written yet")
    if isinstance(problem, FormatError):
        raise FormatError(f"{str(problem).removesuffix('.')}: the store's root is damaged.", RESTORE)
    if part is not None:
        what = "is missing" if isinstance(problem, NotFoundError) else f"lacks the attribute {ATTRIBUTE!r}"
        raise FormatError(f"{folder}/{ROOT_KEY} {what}, and {part} is there: the store's root is lost.", RESTORE)
    if isinstance(problem, NotFoundError):
        raise problem
    return None


def _look_up(folder: Folder) -> tuple[Any, Exception | None]:
    """The value of actstore's attribute in the root's metadata, or why there is none: a `KeyError` where it is left out."""
    try:
        attributes = folder.read_json(ROOT_KEY).get("attributes")
    except (NotFoundError, FormatError) as error:
        return None, error
    found = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    return found, KeyError(ATTRIBUTE) if found is None else None

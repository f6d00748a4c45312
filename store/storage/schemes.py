"""Which storage a location is opened with: the one table of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import InvalidInputError
from actstore.store.storage.fsspec import FsspecStorage
from actstore.store.storage.local import LocalStorage
from actstore.store.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actstore.store.storage.objects.storage import HttpStorage, ObjectStorage
    from actstore.store.storage.protocol import Storage


# The driver takes 40 ms to load, and whoever reads from a disk does not need it.
def _objects(location: str, **settings: Any) -> ObjectStorage:
    from actstore.store.storage.objects.storage import ObjectStorage

    return ObjectStorage(location, **settings)


def _http(location: str, **settings: Any) -> HttpStorage:
    from actstore.store.storage.objects.storage import HttpStorage

    return HttpStorage(location, **settings)


SCHEMES: Final[dict[str, Callable[..., Storage]]] = {
    "": LocalStorage,
    "file": LocalStorage,
    "local": LocalStorage,
    "memory": MemoryStorage,
    **dict.fromkeys(("s3", "s3a", "gs", "gcs", "az", "azure", "adl", "abfs", "abfss"), _objects),
    **dict.fromkeys(("http", "https"), _http),
}
"""What stands before "://" in a location → its storage. Every other scheme is opened by `FsspecStorage`."""


_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]+):/+(?P<rest>.*)")


def url_of(location: str) -> str | None:
    """The URL that a location is, or of which pathlib has made a path with one slash; None of any other path."""
    found = _URL.fullmatch(location)
    return f"{found['scheme']}://{found['rest']}" if found else None


def open_storage(
    location: str, *, read_only: bool, sync: bool = True, options: Mapping[str, Any] | None = None
) -> Storage:
    """The storage at a path or URL; `InvalidInputError` where none can be opened there."""
    scheme, separator, _ = location.partition("://")
    if not separator and (url := url_of(location)) and not Path(location.partition("/")[0]).exists():
        raise InvalidInputError(
            f"Expected a path or a URL, found {location}. Give {url} as a text: as a `Path` it loses a slash."
        )
    kind = SCHEMES.get(scheme if separator else "", FsspecStorage)
    try:
        return kind(location, read_only=read_only, sync=sync, options=options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "obstore":
            raise
        raise InvalidInputError(
            f"{location} needs the package obstore, which is not installed here: `pip install obstore`."
        ) from None

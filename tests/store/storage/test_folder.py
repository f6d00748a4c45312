"""What stands before every storage: JSON records. The rest of it is in the contract of storages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actstore.store.errors import FormatError
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "should hold JSON, but"),
        (b"{", "should hold JSON, but"),
        (b"\xff\xfe", "should hold JSON, but"),
        (b"[" * 100_000, "should hold JSON, but"),
        (b"[1]", "should hold a JSON object, found list"),
        (b"null", "should hold a JSON object, found NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write("record.json", data)
    with pytest.raises(FormatError, match=message):
        folder.read_json("record.json")

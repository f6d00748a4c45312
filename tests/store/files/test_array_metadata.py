"""Metadata of an array that no array can have are refused before anything is read by them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import zarr

from actstore.store.errors import FormatError
from actstore.store.files.array_metadata import open_array
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("key", "value"), [("shape", -1), ("shape", 1 << 63), ("chunk_shape", 0), ("chunk_shape", -3)])
def test_a_shape_that_cannot_be(tmp_path: Path, key: str, value: int) -> None:
    zarr.create_array(tmp_path / "a", shape=(7,), chunks=(3,), dtype="int32")
    assert open_array(Folder(tmp_path), "a").nchunks == 3
    file = tmp_path / "a/zarr.json"
    metadata = json.loads(file.read_text())
    (metadata if key == "shape" else metadata["chunk_grid"]["configuration"])[key] = [value]
    file.write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match=r"The metadata of .*/a (are damaged: its shape is|cannot be read: )"):
        open_array(Folder(tmp_path), "a")

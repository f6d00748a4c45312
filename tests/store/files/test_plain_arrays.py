"""Plain arrays: what is written is read, and a damaged chunk is an error that names its array."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.plain_arrays import read_array, write_array
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path


def test_an_array_is_read_whole_and_in_part(tmp_path: Path) -> None:
    folder, values = Folder(tmp_path, read_only=False), np.arange(12.0).reshape(3, 4)
    write_array(folder, "a/mean", values, ("neuron", "k"))
    np.testing.assert_array_equal(read_array(folder, "a/mean"), values)
    np.testing.assert_array_equal(read_array(folder, "a/mean", (slice(1, 2), 3)), values[1:2, 3])
    with pytest.raises(NotFoundError, match=r"has no array a/other\.$"):
        read_array(folder, "a/other")


@pytest.mark.parametrize("at", [4, 5, 6, 7, 15])
def test_a_damaged_size_in_a_chunk_header_is_an_error_that_names_the_array(tmp_path: Path, at: int) -> None:
    """Bytes 4 to 7 are the size of what is decompressed, and 15 is the sign of the chunk's own."""
    folder, values = Folder(tmp_path, read_only=False), np.arange(1000.0)
    write_array(folder, "a/mean", values, ("neuron",))
    data = bytearray(folder.read("a/mean/c/0"))
    data[at] ^= 0x80
    folder.write("a/mean/c/0", bytes(data))
    with pytest.raises(FormatError, match=r"a/mean is damaged: "):
        read_array(folder, "a/mean")


@pytest.mark.parametrize("attributes", ["NaN", 3, [], None, True])
def test_attributes_that_are_none_are_an_error(tmp_path: Path, attributes: object) -> None:
    folder = Folder(tmp_path, read_only=False)
    write_array(folder, "a", np.arange(5, dtype=np.int32), ("token",))
    path = tmp_path / "a/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attributes": attributes}))
    with pytest.raises(FormatError, match=r"The metadata of .*/a cannot be read"):
        read_array(folder, "a")

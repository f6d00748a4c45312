"""Where on an image every position of a capture looks: one table, written with the plan, one row group per block."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actstore.store.capture.tables import open_capture_table
from actstore.store.files.parquet import TableWriter, undamaged
from actstore.store.layout import table_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

PATCHES = pa.schema(
    [
        ("window", pa.int32()),
        ("position", pa.int32()),
        ("token", pa.int64()),
        ("tile", pa.int16()),
        ("row", pa.int16()),
        ("column", pa.int16()),
        ("left", pa.float32()),
        ("top", pa.float32()),
        ("right", pa.float32()),
        ("bottom", pa.float32()),
    ],
    metadata={
        "position": "in the window; every position that stands for a part of the image has a row",
        "token": "its slot, as in the tokens table; -1 where the position is not kept",
        "tile": "which of the crops that the image is cut into; -1 without a place",
        "row": "of the patch on its tile's grid, from 0 at the top; -1 without a place",
        "column": "of the patch on its tile's grid, from 0 at the left; -1 without a place",
        "left": "left, top, right and bottom: its box as shares of the image as it was given; NaN without a place",
    },
)


class PatchesWriter:
    """Writes the table block by block; `close` gives its SHA-256."""

    def __init__(self, folder: Folder, capture: str) -> None:
        self._hash = hashlib.sha256()
        self._writer = TableWriter(folder, table_key(capture, "patches"), PATCHES, self._hash)

    def add_block(self, columns: dict[str, Any]) -> None:
        """Append one block's rows, in the order of its windows; there may be none."""
        self._writer.write(pa.table([columns[name] for name in PATCHES.names], schema=PATCHES))

    def close(self) -> str:
        """Publish the table."""
        self._writer.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Drop what was written."""
        self._writer.abandon()


def read_patches(folder: Folder, record: CaptureRecord, blocks: Iterable[int] | None = None) -> pa.Table:
    """The rows of some blocks, in their order, or of all; see `PATCHES`."""
    selected = None if blocks is None else [*blocks]
    if selected == []:
        return PATCHES.empty_table()
    rows = open_capture_table(folder, record, "patches").read(None, selected)
    with undamaged(folder, table_key(record.name, "patches")):
        return rows.select(PATCHES.names)


def patch_texts(patches: pa.Table, window: int, image: str | None = None) -> dict[int, str]:
    """Position → what to print for it, of the positions of a window that stand for a part of an image.

    `<image 3,4>` for the patch in row 3 and column 4, counted from 0; of another tile than the first, `<image 3,4 of tile 2>`;
    `<image>` without a place. With the name of the `image`, for positions of a tower: `[patch 3,4 of 012.png]`.
    """
    rows = patches.filter(pa.array(patches["window"].to_numpy() == window))
    texts = {}
    for position, tile, row, column in zip(
        *(rows[name].to_pylist() for name in ("position", "tile", "row", "column")), strict=True
    ):
        place = f"{row},{column}" + (f" of tile {tile}" if tile > 0 else "")
        if image is None:
            texts[position] = f"<image {place}>" if row >= 0 else "<image>"
        else:
            texts[position] = f"[patch {place} of {image}]" if row >= 0 else f"[position {position} of {image}]"
    return texts


def patches_sha256(folder: Folder, capture: str) -> str:
    """The SHA-256 of the table as it is on disk."""
    return hashlib.sha256(folder.read(table_key(capture, "patches"))).hexdigest()

"""What a builder was given, on a disk until all of it is there: rows of each site and layer, and ids, one file each.

Where a token's values lie follows from a plan of all tokens, so none can be written to the store before the last is known.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.building.arrays import Place


class Spool:
    """Rows appended to files of a temporary folder, read back in any part."""

    def __init__(self, beside: Path | None) -> None:
        """In a folder beside the path `beside`, so on the same disk, else where temporary files are."""
        parent = beside.parent if beside is not None and beside.parent.is_dir() else None
        prefix = f"{beside.name}.building-" if beside is not None else "actstore-building-"
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._files: dict[Place, BinaryIO] = {}
        self._forms: dict[Place, tuple[np.dtype[Any], int]] = {}
        self._ids = (self.path / "ids").open("wb")
        self._numbers: dict[Place, Path] = {}

    def append(self, place: Place, rows: NDArray[Any]) -> None:
        """Add rows [token, neuron] of a site and layer, always of one dtype and width."""
        if place not in self._files:
            self._numbers[place] = self.path / f"rows-{len(self._files)}"
            self._files[place] = self._numbers[place].open("wb")
            self._forms[place] = rows.dtype, rows.shape[1]
        self._files[place].write(np.ascontiguousarray(rows).data)

    def append_ids(self, ids: NDArray[np.int32]) -> None:
        """Add the token ids of a sequence."""
        self._ids.write(np.ascontiguousarray(ids, np.int32).data)

    def rows(self, place: Place, first: int, n: int) -> NDArray[Any]:
        """The rows from `first` on, in memory; [token, neuron]."""
        self._files[place].flush()
        dtype, width = self._forms[place]
        values = np.fromfile(self._numbers[place], dtype, n * width, offset=first * width * dtype.itemsize)
        return values.reshape(n, width)

    def ids(self, first: int, n: int) -> NDArray[np.int32]:
        """The ids from the token `first` on."""
        self._ids.flush()
        return np.fromfile(self.path / "ids", np.int32, n, offset=4 * first)

    def remove(self) -> None:
        """Delete the folder."""
        for file in (self._ids, *self._files.values()):
            file.close()
        shutil.rmtree(self.path, ignore_errors=True)

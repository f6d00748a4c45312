"""What a capture holds, to be compared between runs that should have written the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

CLOCKS: Final = {"zarr.json": ("created", "root", "checksum"), "blocks/": ("seconds", "checksum")}
"""Record → its fields that say when it was written, how long that took, and in which store; and the checksum over them."""


def written(store: Path, capture: str = "corpus") -> dict[str, object]:
    """Every file of a capture by its key, but for what clocks say, and the checkpoint of one process that fills all blocks."""
    found: dict[str, object] = {}
    folder = store / "captures" / capture
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = path.relative_to(folder).as_posix()
        if key.startswith("blocks/folded.") or key == "writer.lock":
            continue
        clocks = next((fields for start, fields in CLOCKS.items() if key.startswith(start)), None)
        if clocks is None or not key.endswith(".json"):
            found[key] = path.read_bytes()
            continue
        value = json.loads(path.read_text())
        record = value["attributes"]["actstore_capture"] if key == "zarr.json" else value
        found[key] = {name: item for name, item in record.items() if name not in clocks}
    return found


def downloaded(location: str, path: Path) -> Path:
    """A store at a URL, key by key, in a folder."""
    folder, copy = Folder(location), Folder(path, read_only=False)
    for key, _ in folder.sizes():
        copy.write(key, folder.read(key))
    return path

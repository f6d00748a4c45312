"""Checksums of a safetensors file, in the file's own metadata: one of its header, one of its tensors' bytes.

Needs no torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from actstore.store.files.shards import checksum, source_checksum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.store.storage.pieces import Source


def checksum_metadata(name: str, data: bytes) -> dict[str, str]:
    """The metadata with the checksums of the file `data`, which has none yet.

    `name` goes into them, so that a file under another name does not match.
    """
    n_header = _header_size(data)
    # One entry: safetensors writes several in an order that differs from run to run.
    return {"seal": f"{_header_checksum(name, json.loads(data[8:n_header]))} {checksum(data[n_header:])}"}


def read_checksums(header: bytes) -> str | None:
    """The checksums that a file's header says it has; None where it has none, as files of earlier versions."""
    found = json.loads(header[8 : _header_size(header)]).get("__metadata__", {}).get("seal")
    return None if found is None else str(found)


def verify_checksums(name: str, source: Source, *, bound_to: str | None = None) -> None:
    """Raise `ValueError` where a file does not match its checksums; all of it is read, piece by piece.

    A file of an earlier version has none. `bound_to`: the checksums that whoever refers to the file knows it by.
    """
    if source.nbytes < 8:
        raise ValueError(f"it has {source.nbytes} bytes")
    n_header = min(_header_size(bytes(source.read(0, 8))), source.nbytes)
    header = json.loads(bytes(source.read(8, n_header)))
    expected = header.get("__metadata__", {}).get("seal")
    if bound_to is not None and expected != bound_to:
        raise ValueError(
            f"it is another file than the store was written with: checksums {expected}, expected {bound_to}"
        )
    if expected is None:
        return
    of_header, _, of_tensors = str(expected).partition(" ")
    if of_header != _header_checksum(name, header):
        raise ValueError("checksum mismatch in its header")
    if of_tensors != source_checksum(source, n_header):
        raise ValueError("checksum mismatch in its tensors")


def _header_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _header_checksum(name: str, header: Mapping[str, object]) -> str:
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    return checksum(json.dumps([name, entries], sort_keys=True).encode())

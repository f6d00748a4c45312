"""Checksums of a safetensors file, in the file's own metadata: one of its header, one of its tensors' bytes.

Needs no torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from actstore.store.errors import FormatError
from actstore.store.files.shards import checksum, source_checksum
from actstore.store.storage.strict_json import MAX_NBYTES, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.store.storage.pieces import Source


def checksum_metadata(name: str, data: bytes) -> dict[str, str]:
    """The metadata with the checksums of the file `data`, which has none yet.

    `name` goes into them, so that a file under another name does not match.
    """
    n_header = header_nbytes(data[:8], len(data))
    # One entry: safetensors writes several in an order that differs from run to run.
    return {"seal": f"{_header_checksum(name, json.loads(data[8:n_header]))} {checksum(data[n_header:])}"}


def read_checksums(header: bytes) -> str | None:
    """The checksums that a file's header says it has; None where it has none, as files of earlier versions.

    `ValueError` where `header` is no whole header of a safetensors file.
    """
    return _stored_checksums(read_header(header[8 : header_nbytes(header[:8], len(header))]))


def _stored_checksums(header: Mapping[str, Any]) -> str | None:
    metadata = header.get("__metadata__", {})
    found = metadata.get("seal") if isinstance(metadata, dict) else None
    return None if found is None else str(found)


def verify_checksums(name: str, source: Source, *, bound_to: str | None = None) -> None:
    """Raise `ValueError` where a file does not match its checksums; all of it is read, piece by piece.

    A file of an earlier version has none. `bound_to`: the checksums that whoever refers to the file knows it by.
    """
    found = verify_header(name, source, bound_to=bound_to)
    if found is not None and found[1] != source_checksum(source, found[0]):
        raise ValueError("checksum mismatch in its tensors")


def verify_header(name: str, source: Source, *, bound_to: str | None = None) -> tuple[int, str] | None:
    """Where the tensors of a file begin, and the checksum that they must have; None of a file without checksums.

    `ValueError` where the header does not match its own checksum, or the file is another than `bound_to`.
    """
    n_header = header_nbytes(bytes(source.read(0, 8)) if source.nbytes >= 8 else b"", source.nbytes)
    header = read_header(bytes(source.read(8, n_header)))
    expected = _stored_checksums(header)
    if bound_to is not None and expected != bound_to:
        raise ValueError(
            f"it is another file than the store was written with: checksums {expected}, expected {bound_to}"
        )
    if expected is None:
        return None
    of_header, _, of_tensors = expected.partition(" ")
    if of_header != _header_checksum(name, header):
        raise ValueError("checksum mismatch in its header")
    return n_header, of_tensors


def header_nbytes(first: bytes, nbytes: int) -> int:
    """Where the tensors begin in a file of `nbytes`, by its `first` 8 bytes; `ValueError` where that lies outside of it."""
    n_header = 8 + int.from_bytes(first, "little")
    if len(first) < 8 or n_header > min(nbytes, MAX_NBYTES):
        raise ValueError(f"its header should have at most {min(nbytes, MAX_NBYTES):,} bytes, and says {n_header:,}")
    return n_header


def read_header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file; `ValueError` where it is no JSON object."""
    try:
        header = parse_json(data, "its header")
    except FormatError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 (of bytes, not of an argument)
    return header


def _header_checksum(name: str, header: Mapping[str, object]) -> str:
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    return checksum(json.dumps([name, entries], sort_keys=True).encode())

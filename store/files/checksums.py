"""The seal of a safetensors file: its metadata say what the checksums of its header and of its numbers must be.

Knows nothing about tensors, and so needs no torch.
"""

from __future__ import annotations

import json
from typing import Any

from actstore.store.files.shards import checksum


def seals_of(name: str, data: bytes) -> dict[str, str]:
    """The metadata that seal the file `data`, which has none yet. `name` is in them: one file does not pass for another."""
    n_header = _header_size(data)
    # One entry: safetensors writes several in an order that differs from run to run.
    return {"seal": f"{_header_seal(name, json.loads(data[8:n_header]))} {checksum(data[n_header:])}"}


def check_seals(name: str, data: bytes, *, whole: bool) -> None:
    """Raise ValueError where a file, of which `data` is the header or the `whole`, is not what its metadata say.

    A file of an earlier version says nothing.
    """
    n_header = _header_size(data)
    header = json.loads(data[8:n_header])
    seal = header.get("__metadata__", {}).get("seal")
    if seal is None:
        return
    of_header, _, of_numbers = str(seal).partition(" ")
    if of_header != _header_seal(name, header):
        raise ValueError("its header is not what was written there")
    if whole and of_numbers != checksum(data[n_header:]):
        raise ValueError("its numbers are not what was written there")


def _header_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _header_seal(name: str, header: dict[str, Any]) -> str:
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    return checksum(json.dumps([name, entries], sort_keys=True).encode())

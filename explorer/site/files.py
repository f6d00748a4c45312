"""The files of a site: where a document lies, and how it is written.

A page that is opened from a folder may load scripts and nothing else, so each file is one: a call with base64 of a compressed
document. Documents of neighbouring neurons share a file, because they are smaller together. `frontend/source.js` reads them.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actstore.display.reports import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Value = TypeVar("Value")

SHARD: Final = 16
"""Neurons per file."""
TOKENS: Final = 64
"""Ids of tokens per file."""
MAX_NAME: Final = 100
_NEURON: Final = re.compile(r"L(\d+)\.N(\d+)")
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def file_name(part: str) -> str:
    """A name that every file system takes: other bytes than plain ones as ~ and two digits; long ones end in a hash."""
    data = part.encode()
    name = "".join(chr(byte) if byte in _PLAIN else f"~{byte:02x}" for byte in data)
    if len(name) <= MAX_NAME:
        return name
    digest = 0x811C9DC5  # FNV-1a
    for byte in data:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{name[: MAX_NAME - 9]}~{digest:08x}"


def file_of(parts: Sequence[str]) -> tuple[str, str | None]:
    """The file that holds a document, by the parts of its address, and its name in it; None where it is alone there."""
    *before, last = parts
    folder = [file_name(part) for part in before]
    if before and (neuron := _NEURON.fullmatch(last)):
        return "/".join([*folder, f"L{neuron[1]}", str(int(neuron[2]) // SHARD)]), last
    if before and before[0] == "token":
        return "/".join([*folder, str(int(last) // TOKENS)]), last
    return "/".join([*folder, file_name(last)]), None


def sharded(named: Iterable[tuple[tuple[str, str | None], Value]]) -> dict[str, dict[str | None, Value]]:
    """File → what is in it by name, of ((file, name), what is there)."""
    files: dict[str, dict[str | None, Value]] = {}
    for (file, name), value in named:
        files.setdefault(file, {})[name] = value
    return files


def script(file: str, document: object) -> bytes:
    """The bytes of a file."""
    packed = base64.b64encode(zlib.compress(json_text(document).encode(), 9)).decode()
    return f"actstoreData({json.dumps(file)},{json.dumps(packed)})\n".encode()


def unpacked(data: bytes) -> Any:
    """The document in the bytes of a file."""
    call = data.decode().strip().removeprefix("actstoreData(").removesuffix(")")
    _, packed = json.loads(f"[{call}]")
    return json.loads(zlib.decompress(base64.b64decode(packed)))

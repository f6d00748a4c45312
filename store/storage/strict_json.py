"""JSON from outside: read strictly, and bounded before anything is made of it."""

from __future__ import annotations

import json
from typing import Any, Final

from actstore.store.errors import FormatError

MAX_NBYTES: Final = 1 << 26
"""The largest JSON file that is read. Records of the largest models, with an entry for each expert, have some megabytes."""
MAX_DEPTH: Final = 100
"""How deep lists and objects may lie in one another: less than at which the functions that walk through them give up."""


def parse_json(data: bytes, where: str) -> Any:
    """The JSON value in `data`, which is UTF-8; `FormatError` naming `where` for anything else.

    No object has a key twice, no string half a surrogate pair, and nothing lies deeper than `MAX_DEPTH`.
    """
    if len(data) > MAX_NBYTES:
        raise FormatError(
            f"{where} should hold JSON of at most {MAX_NBYTES:,} bytes, found more.", "Restore it from a copy."
        )
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} should hold JSON, but {error}.") from None
    if (fault := _fault_of(value)) is not None:
        raise FormatError(f"{where} should hold JSON that actstore wrote, but {fault}.", "Restore it from a copy.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice[:80]!r} twice")
    return value


def _fault_of(value: Any) -> str | None:
    """What makes a value one that no record holds; None where nothing does."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str) and not _is_encodable(item):
                return f"{item[:80]!r} is no text"
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return None
        level = below
    return f"its values lie in one another more than {MAX_DEPTH} deep"


def _is_encodable(text: str) -> bool:
    """Whether a string is Unicode text: JSON can spell half a surrogate pair, which cannot be printed."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False

"""What the bits of a capture's values depend on beside model and plan: one list per capture, of all that computed blocks of it.

Whoever computes the first block writes it. Others are admitted only if they compute as one that is there, or if mixing is
allowed, which the list then shows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.records import verify_checksum, with_checksum
from actstore.store.layout import numerics_key
from actstore.store.storage.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.store.storage.folder import Folder


def first_numerics(folder: Folder, capture: str, numerics: Mapping[str, str]) -> dict[str, str]:
    """The numerics of whoever was first to compute blocks of a capture: these, where nobody was before."""
    key = numerics_key(capture)
    try:
        folder.create(key, _encode([dict(numerics)]))
    except FileExistsError:
        return _parse(folder.read(key), f"{folder}/{key}")[0]
    return dict(numerics)


def read_numerics(folder: Folder, capture: str) -> dict[str, str]:
    """The numerics of whoever was first to compute blocks of a capture; none where an earlier version captured.

    `FormatError` where they are damaged.
    """
    key = numerics_key(capture)
    try:
        return _parse(folder.read(key), f"{folder}/{key}")[0]
    except NotFoundError:
        return {}


def admit(folder: Folder, capture: str, numerics: Mapping[str, str], *, allow_mixed: bool) -> None:
    """Let a process of these `numerics` (what → which) compute blocks of a capture, of which others have computed some.

    `InvalidInputError` naming every difference where theirs are others, unless `allow_mixed` has it written down instead.
    """
    key, own = numerics_key(capture), dict(numerics)
    while True:
        written = folder.read(key)
        known = _parse(written, f"{folder}/{key}")
        if own in known:
            return
        if not allow_mixed:
            names = dict.fromkeys((*known[0], *own))
            differences = "; ".join(
                f"{name} is {own.get(name, 'not known')}, not {known[0].get(name, 'known')}"
                for name in names
                if own.get(name) != known[0].get(name)
            )
            raise InvalidInputError(
                f"Capture {capture!r} of {folder} was begun on other numerics than this process has ({differences}), so its "
                "values may come out in other bits. Run it where these agree, or mix both with `allow_mixed=True`."
            )
        if folder.swap(key, _encode([*known, own]), written):
            return


def _encode(numerics: list[dict[str, str]]) -> bytes:
    return (json.dumps(with_checksum({"numerics": numerics}), indent=1) + "\n").encode()


def _parse(data: bytes, where: str) -> list[dict[str, str]]:
    value = parse_json(data, where)
    listed = value.get("numerics") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(listed, list) or not listed:
        raise FormatError(f"{where} is damaged: expected a list of numerics.", "Restore it from a copy, or delete it.")
    verify_checksum(value, where)
    for one in listed:
        if not isinstance(one, dict) or not all(isinstance(item, str) for item in one.values()):
            raise FormatError(f"{where} is damaged: expected texts by name.", "Restore it from a copy, or delete it.")
    return listed

"""Tokens as labels: one line of printable text for any token.

Labels are not escaped for XML or DOT: the modules that write these formats do that.
"""

from __future__ import annotations

import re
import unicodedata

from actstore.store.graphs.nodes import BOUNDARY, IGNORE

SIGNS = {"\n": "↵", "\t": "→"}
LONGEST = 32
"""Maximum number of characters of a label; its tooltip has the whole text."""


def token_label(token: int, text: bytes) -> str:
    r"""A token's label; `text` are the bytes it stands for.

    Bytes of incomplete characters and control characters are written as \xE2 and \x1B, line breaks and tabs as signs, invisible
    characters (direction marks, unassigned characters) as \u202E, and outer spaces, or several in a row, as ·. A combining
    mark at the beginning is placed on a dotted circle.
    """
    if token < 0:
        return {IGNORE: "…", BOUNDARY: "(start)"}[token]
    decoded = text.decode(errors="surrogateescape")  # bytes of incomplete characters become U+DC80 to U+DCFF
    if not decoded:
        return "(empty)"
    core = decoded.strip(" ")
    left = len(decoded) - len(decoded.lstrip(" "))
    shown = re.sub("  +", lambda spaces: "·" * len(spaces[0]), "".join(map(_visible, core)))
    if shown and unicodedata.category(shown[0]).startswith("M"):
        shown = "◌" + shown
    return "·" * left + shown + "·" * (len(decoded) - left - len(core))


def cut_label(label: str, longest: int = LONGEST) -> str:
    """The label, or its beginning and end where it is longer than `longest`."""
    if len(label) <= longest:
        return label
    end = longest // 3
    return f"{label[: longest - end - 1]}…{label[-end:]}"


def label_width(label: str) -> float:
    """Approximate width of a label in ems; Chinese, Japanese and Korean characters are wider."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.64 for c in label)


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02X}"
    if character in SIGNS:
        return SIGNS[character]
    if code < 32 or code == 127:
        return f"\\x{code:02X}"
    if character == " " or (character.isprintable() and code not in (0xFFFE, 0xFFFF)):
        return character
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"

"""Tokens as labels: one line of printable text, whatever the token, fit for a terminal, a picture or a page.

Knows nothing about where a label is drawn; who writes XML or DOT escapes what these have a meaning for.
"""

from __future__ import annotations

import re
import unicodedata

from actstore.store.graphs.nodes import BOUNDARY, IGNORE

SIGNS = {"\n": "↵", "\t": "→"}
LONGEST = 32
"""Characters of a label where it is cut; the whole of it stands in its tooltip."""


def token_label(token: int, text: bytes) -> str:
    r"""A token's label; `text` are the bytes it stands for.

    Bytes that are no whole character and control characters show as \xE2 and \x1B, line breaks and tabs as signs, what cannot
    be seen (direction marks, unassigned characters) as \u202E, and spaces at either end, or several in a row, as ·. A mark
    that would sit on the character before it gets a circle to sit on.
    """
    if token < 0:
        return {IGNORE: "…", BOUNDARY: "(start)"}[token]
    decoded = text.decode(errors="surrogateescape")  # what is no character becomes U+DC80 to U+DCFF
    if not decoded:
        return "(empty)"
    body = decoded.strip(" ")
    left = len(decoded) - len(decoded.lstrip(" "))
    shown = re.sub("  +", lambda spaces: "·" * len(spaces[0]), "".join(map(_visible, body)))
    if shown and unicodedata.category(shown[0]).startswith("M"):
        shown = "◌" + shown
    return "·" * left + shown + "·" * (len(decoded) - left - len(body))


def cut_label(label: str, longest: int = LONGEST) -> str:
    """A label's beginning and end where it is longer than there is room for."""
    if len(label) <= longest:
        return label
    end = longest // 3
    return f"{label[: longest - end - 1]}…{label[-end:]}"


def label_width(label: str) -> float:
    """About how many ems a label takes, Chinese and its like being wider."""
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

"""A tokenizer's patterns for Python's `re`, and texts split by them and by the tokens added to its vocabulary."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

GPT_2_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The words that `ByteLevel` splits a text into (Radford et al. 2019)."""
SPACES: Final = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's white space."""


def parts_between(text: str, added: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int | None]]:
    """The added tokens that occur in a text, leftmost and longest first, with their ids, and the text between them."""
    by_content = {item["content"]: item for item in added}
    longest_first = sorted(by_content, key=len, reverse=True)
    at = 0
    for match in re.finditer("|".join(map(re.escape, longest_first)), text) if by_content else ():
        item, (start, stop) = by_content[match[0]], match.span()
        inside_a_word = re.match(r"\w", text[start - 1 : start] if start else "") or re.match(
            r"\w", text[stop : stop + 1]
        )
        if start < at or (item.get("single_word") and inside_a_word):
            continue
        if item.get("lstrip"):
            start = at + len(re.sub(f"[{SPACES}]+\\Z", "", text[at:start]))
        if item.get("rstrip"):
            stop = len(text) - len(re.sub(f"\\A[{SPACES}]+", "", text[stop:]))
        if start > at:
            yield text[at:start], None
        yield match[0], int(item["id"])
        at = stop
    if at < len(text):
        yield text[at:], None


def isolated(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """The matches of a pattern in a text, and the text between them."""
    at = 0
    for match in pattern.finditer(text):
        if match.start() > at:
            yield text[at : match.start()]
        if match[0]:
            yield match[0]
        at = match.end()
    if at < len(text):
        yield text[at:]


@cache
def python_pattern(pattern: str) -> re.Pattern[str]:
    r"""A tokenizer's pattern for Python's `re`, which lacks \p{L} and takes U+001C to U+001F for spaces."""
    within, out, at = False, [], 0
    for part in re.finditer(r"\\p\{(\w+)\}|\\.|[\[\]]", pattern):
        out.append(pattern[at : part.start()])
        at = part.end()
        if part[0] in "[]":
            within = part[0] == "["
        characters = SPACES if part[0] in (r"\s", r"\S") else _class(part[1]) if part[1] else ""
        negated = "^" if part[0] == r"\S" else ""
        out.append(part[0] if not characters else characters if within else f"[{negated}{characters}]")
    return re.compile("".join(out) + pattern[at:])


@cache
def _class(category: str) -> str:
    """All characters of the Unicode categories that begin with `category`, as ranges."""
    points = (c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith(category))
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    if not ranges:
        raise InvalidInputError(
            f"The store's tokenizer has a pattern of characters {category!r}, which is not known here. Install the library "
            "tokenizers, or give token ids."
        )
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in ranges)

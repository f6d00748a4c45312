"""How the chunks of a capture's activations are compressed: a name and a level, which its record keeps.

Readers do not need it: every array's metadata name a codec of Blosc that decodes it.
"""

from __future__ import annotations

import re
from typing import Final

from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.layout import FAST, SMALL, Compression

HUFFMAN: Final = "huffman"
"""The default of int8 and sparse values, the smallest and the fastest there: activations have no repetitions that zstandard's
search could find, only bytes of unequal frequency, and runs of zeros."""
LZ4: Final = "lz4:5"
"""The default of dense floats, as `FAST`."""
MOST_LEVEL: Final = 9
DEFAULT_LEVELS: Final = {"lz4": FAST.clevel, "zstd": SMALL.clevel}
NAMES: Final = (HUFFMAN, "none", *DEFAULT_LEVELS)
_SHAPE: Final = re.compile(r"([a-z0-9]+)(?::([0-9]))?")


def check_compression(text: str) -> None:
    """Raise `InvalidInputError` unless `text` names a compression."""
    if _parsed(text) is None:
        raise InvalidInputError(
            f"`compression` is {HUFFMAN}, none, lz4 or zstd, the last two with a level of 1 to {MOST_LEVEL} as in zstd:3: "
            f"found {text!r}."
        )


def compression_of(text: str, itemsize: int, *, is_sparse: bool = False) -> Compression:
    """What compresses elements of `itemsize` bytes, of which most are 0 where it `is_sparse`.

    `FormatError` for what only a later version knows.
    """
    parsed = _parsed(text)
    if parsed is None:
        raise FormatError(f"The compression {text!r} is unknown: found in the record of a capture. Update actstore.")
    name, level = parsed
    # Bytes of one kind side by side; of sparse values, and of single bytes, the zeros are side by side as they are.
    shuffle = "noshuffle" if is_sparse or itemsize == 1 else "shuffle"
    if name == HUFFMAN:
        return Compression("zstd", 1, shuffle, is_huffman=True)
    if name == "none":
        return Compression("lz4", 0, "noshuffle")
    if name == "lz4" and not is_sparse:
        shuffle = "bitshuffle"
    return Compression(name, level, shuffle)


def _parsed(text: str) -> tuple[str, int] | None:
    match = _SHAPE.fullmatch(text)
    if match is None or match[1] not in NAMES:
        return None
    name, level = match[1], match[2]
    if name not in DEFAULT_LEVELS:
        return (name, 0) if level is None else None
    return None if level == "0" else (name, int(level or DEFAULT_LEVELS[name]))

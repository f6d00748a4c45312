"""Zstandard frames, decompressed no further than is expected: a frame of some kilobytes may say, or become, gigabytes."""

from __future__ import annotations

from typing import Final

from numcodecs import Zstd

_MAGIC: Final = 0xFD2FB528
_SIZES: Final = (0, 2, 4, 8)
"""Bytes of a frame's content size, by the two highest bits of its descriptor."""
_WINDOW_NBYTES: Final = 1
_DICTIONARY_NBYTES: Final = (0, 1, 2, 4)


def declared_nbytes(data: bytes) -> int:
    """What a frame says that it decompresses to; `ValueError` for what is no frame, or one that does not say.

    The layout is that of RFC 8878, section 3.1.1.
    """
    if len(data) < 6 or int.from_bytes(data[:4], "little") != _MAGIC:
        raise ValueError("it is no zstandard frame")
    descriptor = data[4]
    is_single = bool(descriptor & 0x20)
    n = _SIZES[descriptor >> 6] or (1 if is_single else 0)
    if not n:
        raise ValueError("its zstandard frame does not say what it decompresses to")
    at = 5 + (0 if is_single else _WINDOW_NBYTES) + _DICTIONARY_NBYTES[descriptor & 3]
    return int.from_bytes(data[at : at + n], "little") + (256 if n == 2 else 0)


def decompress(data: bytes, most: int) -> bytes:
    """The content of one frame; `ValueError` where it is damaged, or says that it has more than `most` bytes."""
    nbytes = declared_nbytes(data)
    if nbytes > most:
        raise ValueError(f"it says that it decompresses to {nbytes:,} bytes, expected {most:,} at most")
    try:
        content = bytes(Zstd().decode(data))  # into a buffer of the declared size, which it never exceeds
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if len(content) != nbytes:
        raise ValueError(f"it decompresses to {len(content):,} bytes, and says {nbytes:,}")
    return content

"""How a bundle ends: its index and footer, which say where each file of a block lies in it.

    file | file | … | index | footer

The files are the very bytes that a capture without bundles has under their keys, in the order of the commit record. The index,
a zstandard frame, is one line of JSON and the lengths of the inner chunks of all shards: from them follows each shard's own
index, so that whoever wants a row of one layer after another reads the end of the bundle once. The footer says how long the
index is, and has a checksum of both.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import google_crc32c
import numpy as np
from numcodecs import Zstd

from actstore.store.files.zstandard import decompress
from actstore.store.storage.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from actstore.store.storage.pieces import Source

FOOTER: Final = struct.Struct("<QI8s")
"""The index's size in bytes, the CRC-32C of the index and this size, a mark."""
_MARK: Final = b"actblock"
_LEVEL: Final = 3
_CRC: Final = 4
NO_CHUNKS: Final[NDArray[np.uint32]] = np.empty(0, np.uint32)
MAX_INDEX_NBYTES: Final = 1 << 28
"""What an index may decompress to: a block of a model with a million inner chunks has some 12 MB."""


@dataclass(frozen=True)
class Part:
    """Where a file lies in its bundle, and what is known of it without reading it."""

    at: int
    nbytes: int
    gap: int
    """Bytes before each inner chunk of a shard, for the checksums of its rows."""
    chunks: NDArray[np.uint32]
    """Bytes of each inner chunk; none of a file that is no shard."""

    @property
    def tail(self) -> bytes:
        """The index at the end of the shard; empty for another file."""
        return _shard_index(self.chunks, self.gap)


def _shard_index(chunks: NDArray[np.uint32], gap: int) -> bytes:
    """The index of a shard whose inner chunks follow one another in order, `gap` bytes before each."""
    if not len(chunks):
        return b""
    index = np.empty((len(chunks), 2), "<u8")
    index[:, 1] = chunks
    index[:, 0] = np.cumsum(index[:, 1] + np.uint64(gap)) - index[:, 1]
    data = index.tobytes()
    return data + struct.pack("<I", google_crc32c.value(data))


def chunks_of(tail: bytes) -> tuple[int, NDArray[np.uint32]]:
    """What `_shard_index` makes `tail` of, the index at a shard's end; no chunks where it makes another."""
    pairs = np.frombuffer(tail[:-_CRC], "<u8").reshape(-1, 2)
    gap, chunks = int(pairs[0, 0]), pairs[:, 1].astype("<u4")
    return (gap, chunks) if _shard_index(chunks, gap) == tail else (0, chunks[:0])


def pack_index(files: Iterable[tuple[str, int, int, NDArray[np.uint32]]]) -> bytes:
    """Index and footer of a bundle of these files, in order: key, bytes, and `gap` and `chunks` as of a `Part`."""
    files = list(files)
    line = json.dumps([[key, nbytes, gap, len(chunks)] for key, nbytes, gap, chunks in files])
    lengths = b"".join(chunks.astype("<u4").tobytes() for *_, chunks in files)
    index = bytes(Zstd(_LEVEL).encode(line.encode() + b"\n" + lengths))
    return index + FOOTER.pack(len(index), _checksum(index), _MARK)


def read_index(source: Source) -> tuple[int, dict[str, Part]]:
    """The size of the index and footer, and the files by key; `ValueError` where they are damaged."""
    end = source.nbytes
    if end < FOOTER.size:
        raise ValueError("it is too short for a bundle")
    n, crc, mark = FOOTER.unpack(source.read(end - FOOTER.size, end))
    if mark != _MARK or n > end - FOOTER.size:
        raise ValueError("it does not end as a bundle does")
    at = end - FOOTER.size - n
    index = bytes(source.read(at, at + n))
    if _checksum(index) != crc:
        raise ValueError("its index does not match its checksum")
    line, _, lengths = decompress(index, MAX_INDEX_NBYTES).partition(b"\n")
    chunks = np.frombuffer(lengths, "<u4")
    parts: dict[str, Part] = {}
    begin = first = 0
    for key, *numbers in parse_json(line, "its index"):
        nbytes, gap, n_chunks = numbers
        if not all(isinstance(number, int) and 0 <= number < 1 << 48 for number in numbers):
            raise ValueError(f"its index says {numbers} of {key!r:.80}")
        parts[str(key)] = Part(begin, nbytes, gap, chunks[first : first + n_chunks])
        begin, first = begin + nbytes, first + n_chunks
    if (begin, first) != (at, len(chunks)):
        raise ValueError("its files do not fill it")
    return n + FOOTER.size, parts


def _checksum(index: bytes) -> int:
    return int(google_crc32c.value(index + struct.pack("<Q", len(index))))

"""What a file of a corpus is: its format and compression by its name, and what else it may be by its first bytes.

Knows nothing about how any of it is read, but that a compressed file is opened decompressed.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, Literal, cast

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _typeshed import WriteableBuffer

Format = Literal["text", "json lines", "json", "csv", "tsv", "parquet", "arrow"]

_FORMATS: Final[dict[str, Format]] = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_COMPRESSIONS: Final = {
    ".gz": "gzip",
    ".tgz": "gzip",
    ".bz2": "bzip2",
    ".tbz2": "bzip2",
    ".xz": "xz",
    ".txz": "xz",
    ".lzma": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".tzst": "zstd",
}
COMPRESSED_SUFFIXES: Final = (".gz", ".bz2", ".xz", ".zst")
"""For messages."""
_MARKS: Final = (
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"PK\x05\x06", "a ZIP archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar\0", "a tar archive"),
    (257, b"ustar  \0", "a tar archive"),
    (0, b"\x04\x22\x4d\x18", "LZ4-compressed"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    (0, b"\x1f\x9d", "compressed by compress"),
    (4, b"1AY&SY", "bzip2-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (0, b"\xff\x06\0\0sNaPpY", "Snappy-compressed"),
    (0, b"\x89LZO\0", "LZO-compressed"),
    (0, b"PAR1\x15", "Parquet"),
    (0, b"ARROW1\0\0", "Arrow"),
    (0, b"%PDF-", "a PDF"),
    (0, b"\x89HDF\r\n", "HDF5"),
    (0, b"SQLite format 3\0", "an SQLite database"),
)
_WIDE_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CHUNK_NBYTES: Final = 1 << 18


@dataclass(frozen=True)
class FileType:
    """What a file is by its name."""

    format: Format
    compression: str | None


def file_type(path: Path) -> FileType:
    """The type of a file by its suffixes, in upper or lower case; what has none that is known is a text."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    inner = suffixes[-2:-1] if compression else suffixes[-1:]
    suffix = inner[0] if inner else ""
    return FileType(_FORMATS.get(suffix, "text"), compression)


def recognise(start: bytes) -> str | None:
    """What the first bytes of a file say it is, where that is no text in UTF-8; None where they say nothing."""
    for offset, mark, kind in _MARKS:
        if start.startswith(mark, offset):
            return kind
    return None


def wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, where a file's first bytes are a text in it with a byte order mark."""
    for mark, name in _WIDE_MARKS:
        if start.startswith(mark):
            try:
                codecs.getincrementaldecoder(name)().decode(start)
            except UnicodeDecodeError:
                continue
            return name
    return None


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed as its name says; several compressed parts in a row are read as one.

    A file that is cut short, or that goes on with something else, raises `OSError`, `EOFError`, `zlib.error` or
    `lzma.LZMAError` where reading comes to it.
    """
    compression = file_type(path).compression
    file = path.open("rb")
    if compression is None:
        return file
    try:
        return _decompressed(file, compression)
    except BaseException:
        file.close()
        raise


def _decompressed(file: io.BufferedReader, compression: str) -> IO[bytes]:
    if not file.peek(1):
        raise EOFError(f"it has no bytes, and should be {compression}-compressed")
    if compression == "gzip":
        return cast("IO[bytes]", _Gzip(file))
    if compression == "zstd":
        return io.BufferedReader(_ArrowStream(file, compression), _CHUNK_NBYTES)
    new = bz2.BZ2Decompressor if compression == "bzip2" else lzma.LZMADecompressor
    return io.BufferedReader(_Parts(file, new), _CHUNK_NBYTES)


class _Gzip(gzip.GzipFile):
    """A gzip file that closes what it reads from."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._compressed = file

    def close(self) -> None:
        super().close()
        self._compressed.close()


class _ArrowStream(io.RawIOBase):
    """A stream that pyarrow decompresses, as Python's own; it closes what it reads from."""

    def __init__(self, file: IO[bytes], compression: str) -> None:
        self._file = file
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        content = self._stream.read(len(view))
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Parts(io.RawIOBase):
    """Compressed parts in a row, decompressed; unlike the standard library's files, what follows them must be one more."""

    def __init__(
        self, file: IO[bytes], new: Callable[[], bz2.BZ2Decompressor] | Callable[[], lzma.LZMADecompressor]
    ) -> None:
        self._file, self._new = file, new
        self._decompressor = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        content = b""
        while not content:
            compressed = b""
            if self._decompressor.eof:
                if not (compressed := self._next_part()):
                    return 0
                self._decompressor = self._new()
            elif self._decompressor.needs_input and not (compressed := self._file.read(_CHUNK_NBYTES)):
                raise EOFError("the compressed data is cut short")
            content = self._decompressor.decompress(compressed, len(view))
        view[: len(content)] = content
        return len(content)

    def _next_part(self) -> bytes:
        """Where one part has ended, the beginning of the next; empty at the end. Zeros may stand between, as xz allows."""
        compressed = self._decompressor.unused_data.lstrip(b"\0")
        while not compressed and (chunk := self._file.read(_CHUNK_NBYTES)):
            compressed = chunk.lstrip(b"\0")
        return compressed

    def close(self) -> None:
        self._file.close()
        super().close()

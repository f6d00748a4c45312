"""What a file of a corpus is: its format and compression by its name, and what else it may be by its first bytes.

`open_bytes` opens a compressed file decompressed; everything else about reading a format is in the module of that format.
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
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from _typeshed import WriteableBuffer

Format = Literal["text", "json lines", "json", "csv", "tsv", "parquet", "arrow"]


@dataclass(frozen=True)
class RecordFormat:
    """A format that a file of documents or images may have."""

    suffixes: tuple[str, ...]
    """By which it is known, in lower case."""
    holds_rows: bool = True
    """Whether each row or line is a record with named columns."""
    is_seekable: bool = False
    """Whether it is read from any position, so that a file compressed as a whole cannot be read."""
    delimiter: str = ""
    """Between the fields of a line."""


FORMATS: Final[Mapping[Format, RecordFormat]] = {
    "text": RecordFormat((), holds_rows=False),
    "json lines": RecordFormat((".jsonl", ".ndjson")),
    "json": RecordFormat((".json",), holds_rows=False),  # a list of records, JSON lines, or any text
    "csv": RecordFormat((".csv",), delimiter=","),
    "tsv": RecordFormat((".tsv",), delimiter="\t"),
    "parquet": RecordFormat((".parquet", ".pq"), is_seekable=True),
    "arrow": RecordFormat((".arrow", ".feather", ".ipc"), is_seekable=True),
}
"""Name → format. A file without any of the suffixes is a text."""

COMPRESSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "gzip": (".gz", ".tgz"),
    "bzip2": (".bz2", ".tbz2"),
    "xz": (".xz", ".txz", ".lzma"),
    "zstd": (".zst", ".zstd", ".tzst"),
}
"""Name → suffixes, the usual one first."""

COMPRESSED_SUFFIXES: Final = tuple(suffixes[0] for suffixes in COMPRESSIONS.values())
"""For messages."""
_FORMAT_OF: Final = {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}
_COMPRESSION_OF: Final = {suffix: name for name, suffixes in COMPRESSIONS.items() for suffix in suffixes}
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

    @property
    def is_unreadable(self) -> bool:
        """Whether it is a table that is read from any position, compressed as a whole."""
        return self.compression is not None and FORMATS[self.format].is_seekable


def file_type(path: Path) -> FileType:
    """The type of a file by its suffixes, in upper or lower case; a text where it has none of `FORMATS`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSION_OF.get(suffixes[-1]) if suffixes else None
    inner = suffixes[-2:-1] if compression else suffixes[-1:]
    suffix = inner[0] if inner else ""
    return FileType(_FORMAT_OF.get(suffix, "text"), compression)


def recognise(start: bytes) -> str | None:
    """What a file is by its first bytes, where that is no text in UTF-8; None where they do not show it."""
    for offset, mark, kind in _MARKS:
        if start.startswith(mark, offset):
            return kind
    return None


def wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, where a file's first bytes are a byte order mark and text in that encoding; else None."""
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

    A file that is truncated, or that continues with anything else, raises `OSError`, `EOFError`, `zlib.error` or
    `lzma.LZMAError` when that position is read.
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
    """A gzip file that closes the file it reads from."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._compressed = file

    def close(self) -> None:
        super().close()
        self._compressed.close()


class _ArrowStream(io.RawIOBase):
    """A stream that pyarrow decompresses, as a Python stream that closes the file it reads from."""

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
    """Compressed parts in a row, decompressed; unlike in the standard library's files, only another part may follow a part."""

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
        """The beginning of the part after one that has ended; empty at the end. Zeros may lie between parts, as xz allows."""
        compressed = self._decompressor.unused_data.lstrip(b"\0")
        while not compressed and (chunk := self._file.read(_CHUNK_NBYTES)):
            compressed = chunk.lstrip(b"\0")
        return compressed

    def close(self) -> None:
        self._file.close()
        super().close()

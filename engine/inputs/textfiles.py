"""Documents from text, JSON lines and JSON lists: streams of bytes decoded as UTF-8, with the position of every fault.

Holds one document and one chunk of bytes at a time.
"""

import codecs
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, cast

from actstore.engine.inputs.documents import Document
from actstore.engine.inputs.filetypes import COMPRESSED_SUFFIXES, recognise, wide_encoding
from actstore.engine.inputs.records import RecordReader
from actstore.engine.inputs.value_names import describe_value
from actstore.store.errors import InvalidInputError

StreamReader = Callable[[IO[bytes], str, RecordReader], Iterator[Document]]

BINARY = "binary"
CHUNK_NBYTES = 1 << 20
# A JSON error this close to the end of what was read may only mean that the rest has yet to be read (half a literal).
_JSON_TAIL = 16
_SPACE = re.compile(r"[ \t\n\r]*")


class BinaryFileError(InvalidInputError):
    """A file that is no text where text was expected; a walk through a folder may skip it."""

    def __init__(self, source: str, kind: str, position: str = "") -> None:
        what = f"{kind} ({position})" if position else kind
        super().__init__(
            f"{source} is {what}: expected UTF-8 text, JSON lines, CSV, Parquet or Arrow, which may be compressed where the "
            f"name says so ({', '.join(COMPRESSED_SUFFIXES)}); convert it, or leave it out with `pattern`."
        )
        self.reason = f"{kind}: {position}" if position else kind


@contextmanager
def reading(source: str) -> Iterator[None]:
    """While open, any error of the file system or a decompressor becomes one sentence that names the file."""
    try:
        yield
    except PermissionError:
        raise InvalidInputError(
            f"{source} cannot be read (permission denied): grant access to it, or leave it out."
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise InvalidInputError(f"{source} cannot be read ({reason}): fix the file, or leave it out.") from None


def decode_chunks(stream: IO[bytes], source: str, errors: str) -> Iterator[str]:
    """The stream's text in pieces, unchanged but for a byte order mark at the start, which is removed.

    `BinaryFileError` where it begins as another kind of file does, and at the first NUL byte; `InvalidInputError` for UTF-16
    and UTF-32, and at the first byte that is not UTF-8 if errors is "strict".
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = 0
    at_start = True
    while True:
        chunk = stream.read(CHUNK_NBYTES)
        if offset == 0:
            _check_start(chunk, source)
        if (nul := chunk.find(0)) >= 0:
            raise BinaryFileError(source, BINARY, f"NUL byte at offset {offset + nul}")
        n_pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            fault = offset - n_pending + error.start
            raise InvalidInputError(
                f"{source} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {fault}; "
                'convert the file, or pass `errors="replace"` to read on with U+FFFD in its place.'
            ) from None
        if at_start and text:
            text = text.removeprefix("\ufeff")
            at_start = False
        yield text
        if not chunk:
            return
        offset += len(chunk)


def _check_start(start: bytes, source: str) -> None:
    if (kind := recognise(start)) is not None:
        raise BinaryFileError(source, kind)
    if (encoding := wide_encoding(start)) is not None:
        raise InvalidInputError(
            f"{source} is text in {encoding}, and text is read as UTF-8; convert it (iconv -f {encoding} -t UTF-8), or leave "
            "it out with `pattern`."
        )


def read_text(stream: IO[bytes], source: str, records: RecordReader) -> Iterator[Document]:
    """The whole stream as one document."""
    text = "".join(decode_chunks(stream, source, records.options.errors))
    yield Document(source, text=text, labels=records.labels(source, {}))


def read_json_lines(stream: IO[bytes], source: str, records: RecordReader) -> Iterator[Document]:
    """A document for every line that is not blank."""
    for number, line in enumerate(split_lines(decode_chunks(stream, source, records.options.errors)), start=1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InvalidInputError(
                f"{source}:{number} is not valid JSON ({reason}): expected one object on each line."
            ) from None
        if not isinstance(record, dict):
            raise InvalidInputError(
                f"{source}:{number} holds {describe_value(record)}: expected one object on each line, "
                f'such as {{"{records.options.text_column}": "..."}}.'
            )
        yield records.read(f"{source}:{number}", record)


def sniff_json(stream: IO[bytes], source: str, records: RecordReader) -> StreamReader:
    """The reader of a .json file, which may be one of three things, for the same stream from its beginning.

    A list of objects gives a document for each; a first line that is a whole object with the text or ids column gives
    JSON lines; anything else, a package.json for one, is a text.
    """
    return _sniff(decode_chunks(stream, source, records.options.errors), records)


def read_json_list(stream: IO[bytes], source: str, records: RecordReader) -> Iterator[Document]:
    """A document for every object of one JSON list; the row in its source counts from 0."""
    objects = _list_objects(decode_chunks(stream, source, records.options.errors), source)
    for row, record in enumerate(objects):
        yield records.read(f"{source}:{row}", record)


def _sniff(chunks: Iterator[str], records: RecordReader) -> StreamReader:
    start = ""
    for chunk in chunks:
        start = (start + chunk).lstrip()
        if start and not (start[0] == "[" and not start[1:].strip()):
            break
    if start.startswith("[") and start[1:].lstrip().startswith(("{", "]")):
        return read_json_list
    if start.startswith("{"):
        line = next(split_lines(chain([start], chunks)))
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return read_text
        if isinstance(record, dict) and not record.keys().isdisjoint(records.content_columns):
            return read_json_lines
    return read_text


def _list_objects(chunks: Iterator[str], source: str) -> Iterator[dict[str, object]]:
    cursor = _ListCursor(chunks, source)
    cursor.take()  # the [ by which it was recognised as a list
    if cursor.peek() == "]":
        cursor.take()
    else:
        mark = ","
        while mark == ",":
            if (mark := cursor.peek()) != "{":
                raise cursor.fault(f"found {mark!r} where an object should be" if mark else "the file ends too early")
            yield cursor.take_object()
            mark = cursor.take()
        if mark != "]":
            raise cursor.fault(f"found {mark!r} where , or ] should be" if mark else "the file ends too early")
    if cursor.peek():
        raise cursor.fault("there is more after the list")


class _ListCursor:
    """A position in a JSON text of which only a part is in memory."""

    def __init__(self, chunks: Iterator[str], source: str) -> None:
        self._chunks = chunks
        self._source = source
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0  # index into _text
        self._line = 1  # of the first character of _text

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it also matches the empty string
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def take(self) -> str:
        """The same character, after which the position is behind it."""
        mark = self.peek()
        self._at += len(mark)
        return mark

    def take_object(self) -> dict[str, object]:
        """The object that starts at the position, reading on until it is complete."""
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                fault = self.fault(error.msg, self._line + error.lineno - 1)
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _JSON_TAIL
                if not (cut_off and self._fill()):
                    raise fault from None
            except (ValueError, RecursionError) as error:
                raise self.fault(str(error)) from None
            else:
                return cast("dict[str, object]", value)

    def fault(self, reason: str, line: int | None = None) -> InvalidInputError:
        """The error at the position, or on the given line."""
        line = line or self._line + self._text.count("\n", 0, self._at)
        return InvalidInputError(f"{self._source}:{line} is not valid JSON ({reason}): expected a list of objects.")

    def _fill(self) -> bool:
        """Read on, by at least as much as remains, so that a long object is decoded again only a few times."""
        self._line += self._text.count("\n", 0, self._at)
        pieces = [self._text[self._at :]]
        self._at = 0
        n_read = 0
        for chunk in self._chunks:
            pieces.append(chunk)
            n_read += len(chunk)
            if n_read > len(pieces[0]):
                break
        self._text = "".join(pieces)
        return n_read > 0


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines, split at line feeds only: JSON allows the other Unicode line ends within a string."""
    pending: list[str] = []
    for chunk in chunks:
        first, *rest = chunk.split("\n")
        pending.append(first)
        for piece in rest:
            yield "".join(pending)
            pending = [piece]
    yield "".join(pending)

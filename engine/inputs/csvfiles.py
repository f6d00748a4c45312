"""Tables in CSV and TSV: a header row that names the columns, and rows of strings, quoted as in RFC 4180.

One row is in memory at a time.
"""

from __future__ import annotations

import csv
from typing import IO, TYPE_CHECKING, Final

from actstore.engine.inputs.filetypes import FORMATS
from actstore.engine.inputs.textfiles import decode_chunks, split_lines
from actstore.engine.inputs.value_names import name_columns
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.engine.inputs.documents import Document
    from actstore.engine.inputs.records import RecordReader

DELIMITERS: Final = {name: form.delimiter for name, form in FORMATS.items() if form.delimiter}
"""Format → what separates its fields."""
_MAX_FIELD: Final = (1 << 31) - 1
"""Maximum number of characters in a field, which may be a whole book; Python's own maximum is 131,072."""


class CsvRows:
    """The rows of one file, in order; its columns are known before the first row is read."""

    def __init__(self, stream: IO[bytes], source: str, errors: str, delimiter: str) -> None:
        """Read the header of `stream`; `columns` is empty where the file is.

        Raises `InvalidInputError` where two columns have one name, and for what is not UTF-8.
        """
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
        self._source = source
        lines = split_lines(decode_chunks(stream, source, errors))
        self._reader = csv.reader(_with_line_ends(lines), delimiter=delimiter, strict=True)
        self.columns = tuple(self._next() or ())
        for column in self.columns:
            if self.columns.count(column) > 1:
                raise InvalidInputError(
                    f"{source} has two columns {column!r} in its header: {name_columns(self.columns)}; give each its own name."
                )

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Each row by column; `InvalidInputError`, naming the line, for wrong quoting and a wrong number of fields."""
        while (fields := self._next()) is not None:
            if len(fields) != len(self.columns):
                raise InvalidInputError(
                    f"{self._source} has {len(fields)} fields in the row that ends on line {self._reader.line_num}, and "
                    f"{len(self.columns)} in its header; fix the row, or quote a field that holds a delimiter or a line end."
                )
            yield dict(zip(self.columns, fields, strict=True))

    def _next(self) -> list[str] | None:
        """The fields of the next row that is not blank; None at the end."""
        started = self._reader.line_num + 1
        try:
            return next((fields for fields in self._reader if fields), None)
        except csv.Error as error:
            ended = self._reader.line_num
            lines = f"line {ended}" if ended <= started else f"lines {started} to {ended}"
            raise InvalidInputError(
                f"{self._source} is not valid CSV on {lines} ({error}): expected fields that are quoted whole or not at all, "
                "with quotes doubled inside them, and lines that end in a line feed; fix the file."
            ) from None


def _with_line_ends(lines: Iterator[str]) -> Iterator[str]:
    """The same lines, each with its line feed, which the last line may lack."""
    before = next(lines)
    for line in lines:
        yield f"{before}\n"
        before = line
    if before:
        yield before


def read_csv(stream: IO[bytes], source: str, records: RecordReader, delimiter: str) -> Iterator[Document]:
    """A document for every row; the row in its source counts from 0, the header left out."""
    rows = CsvRows(stream, source, records.options.errors, delimiter)
    if not rows.columns:
        return
    records.check_schema(source, rows.columns)
    for row, record in enumerate(rows):
        yield records.read(f"{source}:{row}", record)

"""Records of images from JSON lines, CSV, Parquet, Arrow and saved datasets: rows of any columns, a few in memory at a time.

The counterpart of `textfiles` and `tables` for rows that hold images.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from actstore.engine.inputs.class_labels import Features, class_columns, features_in, name_classes
from actstore.engine.inputs.csvfiles import DELIMITERS, CsvRows
from actstore.engine.inputs.filetypes import FORMATS, file_type, open_bytes
from actstore.engine.inputs.tables import arrow_faults
from actstore.engine.inputs.textfiles import reading
from actstore.engine.inputs.value_names import describe_value
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Record = dict[str, Any]  # values of any type of JSON or Arrow

BATCH_ROWS: Final = 16
"""Rows in memory at a time: an image may take megabytes."""


def is_table(path: Path) -> bool:
    """Whether a file is by its name a table that `read_rows` reads."""
    kind = file_type(path)
    return FORMATS[kind.format].holds_rows and not kind.is_unreadable


def read_rows(path: Path, source: str, features: Features | None = None) -> Iterator[tuple[str, Record]]:
    """(row source, record) of every row of a file, in order; row sources are `source:line` from 1 or `source:row` from 0.

    An empty field of CSV is None. Classes get the names that the file's metadata, or `features`, have. Raises
    `InvalidInputError`, naming the row, for a file that is not what its suffix says.
    """
    kind = file_type(path).format
    if not is_table(path):
        raise InvalidInputError(
            f"{source} is neither an image nor a table of images. Expected JSON lines, CSV, Parquet or Arrow, by its suffix."
        )
    if kind == "json lines":
        yield from _read_lines(path, source)
        return
    if kind in DELIMITERS:
        with reading(source), open_bytes(path) as stream:
            for row, fields in enumerate(CsvRows(stream, source, "strict", DELIMITERS[kind])):
                yield f"{source}:{row}", {column: field or None for column, field in fields.items()}
        return
    with reading(source), arrow_faults(source, "a table"), pa.memory_map(str(path)) as stream:
        row = 0
        for batch in _batches(stream, kind):
            classes = class_columns(features_in(batch.schema.metadata) or features or {})
            for record in batch.to_pylist():
                row_source = f"{source}:{row}"
                for column, feature in classes.items():
                    record[column] = name_classes(record.get(column), feature, row_source, column)
                yield row_source, record
                row += 1


def read_columns(path: Path) -> tuple[str, ...]:
    """The columns of a table, or the keys of the first record of JSON lines; `InvalidInputError` where it is neither."""
    source, kind = str(path), file_type(path).format
    if kind == "json lines":
        return tuple(next(_read_lines(path, source), (source, {}))[1])
    if kind in DELIMITERS:
        with reading(source), open_bytes(path) as stream:
            return CsvRows(stream, source, "strict", DELIMITERS[kind]).columns
    with reading(source), arrow_faults(source, "a table"), pa.memory_map(source) as stream:
        if kind == "parquet":
            return tuple(pq.read_schema(stream).names)
        with _open_arrow(stream) as opened:
            return tuple(opened.schema.names)


def _read_lines(path: Path, source: str) -> Iterator[tuple[str, Record]]:
    with reading(source), open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            row_source = f"{source}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"{row_source} is not UTF-8 ({error.reason} at byte {error.start}).") from None
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise InvalidInputError(
                    f"{row_source} is not valid JSON ({reason}): expected one object on each line."
                ) from None
            if not text.strip():
                continue
            if not isinstance(record, dict):
                raise InvalidInputError(
                    f"{row_source} holds {describe_value(record)}: expected one object on each line."
                )
            yield row_source, record


def _batches(stream: pa.NativeFile, kind: str) -> Iterator[pa.RecordBatch]:
    if kind == "parquet":
        file = pq.ParquetFile(stream, pre_buffer=False)
        yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
        return
    with _open_arrow(stream) as opened:
        batches = (
            (opened.get_batch(i) for i in range(opened.num_record_batches))
            if isinstance(opened, ipc.RecordBatchFileReader)
            else opened
        )
        for batch in batches:
            # A batch is mapped, not read: only the rows of the slice become Python objects.
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


def _open_arrow(stream: pa.NativeFile) -> ipc.RecordBatchFileReader | ipc.RecordBatchStreamReader:
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    return ipc.open_file(stream) if is_file else ipc.open_stream(stream)

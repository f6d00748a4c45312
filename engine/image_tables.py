"""Records of images from JSON lines, Parquet, Arrow and saved datasets: rows of any columns, a few in memory at a time.

The counterpart of `textfiles` and `tables` for rows that hold images. Knows nothing about what the columns mean.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from actstore.engine.filetypes import open_bytes
from actstore.engine.tables import arrow_faults, list_dataset_files
from actstore.engine.textfiles import reading
from actstore.engine.value_names import describe_value
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Record = dict[str, Any]

BATCH_ROWS: Final = 16
"""Rows in memory at a time: an image may take megabytes."""
_LINES: Final = (".jsonl", ".ndjson")
_PARQUET: Final = (".parquet", ".pq")
_ARROW: Final = (".arrow", ".feather", ".ipc")
TABLE_SUFFIXES: Final = (*_LINES, *_PARQUET, *_ARROW)


def read_rows(path: Path, source: str) -> Iterator[tuple[str, Record]]:
    """(place, record) of every row of a file, in order; places are `source:line` from 1 or `source:row` from 0.

    Raises `InvalidInputError`, naming the place, for what is not what its suffix says.
    """
    suffix = path.suffix.lower()
    if suffix in _LINES:
        yield from _read_lines(path, source)
        return
    if suffix not in TABLE_SUFFIXES:
        raise InvalidInputError(
            f"{source} is neither an image nor a table of images. Expected JSON lines ({', '.join(_LINES)}), Parquet or Arrow."
        )
    with reading(source), arrow_faults(source, "a table"), pa.memory_map(str(path)) as stream:
        row = 0
        for batch in _batches(stream, suffix):
            for record in batch.to_pylist():
                yield f"{source}:{row}", record
                row += 1


def read_columns(path: Path) -> tuple[str, ...]:
    """The columns of a table, or the keys of the first record of JSON lines; `InvalidInputError` where it is neither."""
    source = str(path)
    if path.suffix.lower() in _LINES:
        return tuple(next(_read_lines(path, source), (source, {}))[1])
    with reading(source), arrow_faults(source, "a table"), pa.memory_map(source) as stream:
        if path.suffix.lower() in _PARQUET:
            return tuple(pq.read_schema(stream).names)
        with _open_arrow(stream) as opened:
            return tuple(opened.schema.names)


def dataset_tables(folder: Path) -> Iterator[tuple[str | None, Path]]:
    """(split, Arrow file) of a folder made by `save_to_disk`, in its own order."""
    for file in list_dataset_files(folder):
        yield file.split, file.path


def _read_lines(path: Path, source: str) -> Iterator[tuple[str, Record]]:
    with reading(source), open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            place = f"{source}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}).") from None
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise InvalidInputError(
                    f"{place} is not valid JSON ({reason}): expected one object on each line."
                ) from None
            if not text.strip():
                continue
            if not isinstance(record, dict):
                raise InvalidInputError(f"{place} holds {describe_value(record)}: expected one object on each line.")
            yield place, record


def _batches(stream: pa.NativeFile, suffix: str) -> Iterator[pa.RecordBatch]:
    if suffix in _PARQUET:
        file = pq.ParquetFile(stream, pre_buffer=False)
        yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
        return
    with _open_arrow(stream) as opened:
        whole = (
            (opened.get_batch(i) for i in range(opened.num_record_batches))
            if isinstance(opened, ipc.RecordBatchFileReader)
            else opened
        )
        for batch in whole:
            # A batch is mapped, not read: only the rows at hand become Python's.
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


def _open_arrow(stream: pa.NativeFile) -> Any:
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    return ipc.open_file(stream) if is_file else ipc.open_stream(stream)

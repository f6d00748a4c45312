"""Documents from tables: Parquet, Arrow files and streams, and folders saved by Hugging Face `datasets`.

pyarrow reads them all, one small batch at a time and only the columns that are needed.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from actstore.engine.inputs.class_labels import Features, class_columns, features_in, name_classes
from actstore.engine.inputs.documents import CorpusOptions, Document
from actstore.engine.inputs.records import RecordReader
from actstore.engine.inputs.textfiles import reading
from actstore.engine.inputs.token_records import MODEL_INPUTS
from actstore.store.errors import InvalidInputError

BATCH_ROWS = 128
# With read-ahead (pre_buffer) or without this buffer, the column of a whole row group is in memory before its first row
# is read: 50 MB instead of 15, for 48 MB of text in pages of 12 MB.
_PARQUET_BUFFER_NBYTES = 1 << 20
_ARROW_FILE_MAGIC = b"ARROW1"
_DATASET_FILES = ("state.json", "dataset_info.json")
_DATASET_DICT_FILE = "dataset_dict.json"


@dataclass(frozen=True)
class DatasetFile:
    """One Arrow file of a saved dataset, and the split it belongs to, if the dataset has splits."""

    path: Path
    split: str | None
    features: Features | None
    """Those of its columns, as in dataset_info.json."""


def read_parquet(path: Path, source: str, records: RecordReader) -> Iterator[Document]:
    """A document for every row of a Parquet file; rows in sources count from 0."""
    with reading(source), arrow_faults(source, "Parquet"), pa.OSFile(os.fspath(path)) as stream:
        file = pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER_NBYTES, pre_buffer=False)
        columns = records.check_schema(source, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False)
        yield from read_batches(batches, columns, source, records, features_in(file.schema_arrow.metadata))


def read_arrow(
    path: Path, source: str, records: RecordReader, split: str | None = None, features: Features | None = None
) -> Iterator[Document]:
    """A document for every row of an Arrow file (Feather 2) or stream, told apart by their first bytes.

    `features` name the classes of label columns where the file itself does not.
    """
    with reading(source), arrow_faults(source, "Arrow"), pa.memory_map(os.fspath(path)) as stream:
        is_file = stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        stream.seek(0)
        with ipc.open_file(stream) if is_file else ipc.open_stream(stream) as opened:
            names = opened.schema.names
            features = features_in(opened.schema.metadata) or features
        columns = records.check_schema(source, names)
        options = ipc.IpcReadOptions(included_fields=[names.index(column) for column in columns], use_threads=False)
        stream.seek(0)
        if is_file:
            with ipc.open_file(stream, options=options) as file:
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
                yield from read_batches(batches, columns, source, records, features, split)
        else:
            with ipc.open_stream(stream, options=options) as batches:
                yield from read_batches(batches, columns, source, records, features, split)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` made the folder, with splits (a DatasetDict) or without (a Dataset)."""
    return (folder / _DATASET_DICT_FILE).is_file() or all((folder / name).is_file() for name in _DATASET_FILES)


def list_dataset_files(folder: Path) -> Iterator[DatasetFile]:
    """The Arrow files of a saved dataset in their own order, all splits one after another.

    A folder that is one split of a saved dataset gives the files of that split, which is still named.
    """
    if not (folder / _DATASET_DICT_FILE).is_file():
        in_splits = (folder.absolute().parent / _DATASET_DICT_FILE).is_file()
        yield from _list_split(folder, folder.absolute().name if in_splits else None)
        return
    splits = _load_json(folder / _DATASET_DICT_FILE).get("splits")
    if not isinstance(splits, list) or not all(_is_name(split) for split in splits):
        raise _bad_dataset(folder / _DATASET_DICT_FILE, "a list of split names under 'splits'")
    for split in splits:
        yield from _list_split(folder / split, split)


def _list_split(folder: Path, split: str | None) -> Iterator[DatasetFile]:
    state = _load_json(folder / "state.json")
    information = folder / "dataset_info.json"
    features = _load_json(information).get("features") if information.is_file() else None
    if state.get("_indices_data_files"):
        raise InvalidInputError(
            f"{folder} was saved by an early release of datasets, with its rows chosen by a list of indices: "
            "load it and save it again with a current one."
        )
    files = state.get("_data_files")
    names = (
        [file.get("filename") if isinstance(file, dict) else None for file in files]
        if isinstance(files, list)
        else [None]
    )
    for name in names:
        if not _is_name(name):
            raise _bad_dataset(folder / "state.json", "the names of its Arrow files under '_data_files'")
        yield DatasetFile(folder / str(name), split, features if isinstance(features, dict) else None)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _load_json(path: Path) -> dict[str, object]:
    with reading(str(path)):
        content = path.read_bytes()
    try:
        loaded = json.loads(content)
    except ValueError:
        loaded = None
    if not isinstance(loaded, dict):
        raise _bad_dataset(path, "one JSON object")
    return loaded


def _bad_dataset(path: Path, expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} of a saved dataset must hold {expected}: save the dataset again with save_to_disk."
    )


@contextmanager
def arrow_faults(source: str, kind: str) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into an `InvalidInputError` that names it and its format."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # from the file system, and explained elsewhere
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InvalidInputError(
            f"{source} is not readable as {kind} ({reason}): the file is damaged or cut short; write it again."
        ) from None


def read_batches(
    batches: Iterable[pa.RecordBatch],
    columns: tuple[str, ...],
    source: str,
    records: RecordReader,
    features: Features | None,
    split: str | None = None,
) -> Iterator[Document]:
    """A document for every row of the batches, of which `columns` are read; classes get the names that `features` have."""
    row = 0
    classes = class_columns({column: (features or {}).get(column) for column in records.options.label_columns})
    for batch in batches:
        arrays = [batch.column(batch.schema.names.index(column)) for column in columns]
        for index in range(batch.num_rows):
            source_row = f"{source}:{row}"
            values = {
                column: _python_value(array[index], source_row, column, records.options)
                for column, array in zip(columns, arrays, strict=True)
            }
            for column, feature in classes.items():
                values[column] = name_classes(values.get(column), feature, source_row, column)
            yield records.read(source_row, values, split)
            row += 1


def _python_value(scalar: pa.Scalar, source_row: str, column: str, options: CorpusOptions) -> object:
    """The value as a Python object, but integers per token as a numpy array: a Python list takes many times as long."""
    if column in (options.ids_column, *MODEL_INPUTS) and isinstance(scalar, pa.ListScalar) and scalar.is_valid:
        items = scalar.values
        if items.null_count == 0 and _is_number(items.type):
            return items.to_numpy(zero_copy_only=False)
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        # Arrow strings are UTF-8 by definition, which nothing has checked.
        if options.errors == "replace":
            return error.object.decode("utf-8", "replace")
        raise InvalidInputError(
            f"{source_row}: column {column!r} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start} "
            'of the value; convert it, or pass `errors="replace"` to read on with U+FFFD in its place.'
        ) from None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))

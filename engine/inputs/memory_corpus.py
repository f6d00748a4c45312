"""Corpora in memory: texts or records in a list, tables with an Arrow interface, and objects like a `datasets.Dataset`.

Each is read from its beginning every time, as a file is; an iterator, which can be read once, is refused. `datasets`, pandas
and polars are recognised by their interfaces and never imported.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from actstore.engine.inputs.class_labels import Features, class_columns, features_in, name_classes
from actstore.engine.inputs.tables import read_batches
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.engine.inputs.documents import Document
    from actstore.engine.inputs.records import RecordReader

BATCH_ROWS: Final = 128
"""Rows of a dataset that are Python objects at a time."""
_EXPECTED: Final = (
    "A corpus is a path, or in memory a list of texts or of records, a datasets.Dataset, or a table of pyarrow, pandas or "
    "polars"
)


class ArrowTable(Protocol):
    """The interface that tables of pyarrow, pandas and polars share."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Corpus = str | os.PathLike[str] | Iterable[str] | Iterable[Mapping[str, object]] | ArrowTable
"""What a corpus is given as: the location of files, or its documents in memory."""


class MemoryCorpus(ABC):
    """A corpus that is not in files; its `str` is its name in messages and in the plan, such as `<list of 3 texts>`."""

    def __init__(self, kind: str, contents: str = "") -> None:
        """Of a type called `kind`, which also begins the sources of its documents: `<list>:0`."""
        self.source = f"<{kind}>"
        self._name = f"<{kind}{f' of {contents}' if contents else ''}>"

    def __str__(self) -> str:
        return self._name

    @property
    def image_columns(self) -> tuple[str, ...]:
        """Its columns that are declared to hold images."""
        return ()

    @abstractmethod
    def read(self, records: RecordReader) -> Iterator[Document]:
        """Its documents in their order, from the first; `InvalidInputError` names an item that is no document."""


def as_corpus(corpus: object) -> str | MemoryCorpus:
    """The location that `corpus` names, or the corpus in memory that it is.

    Raises `InvalidInputError` for objects that can be read only once, have no order, or hold no documents.
    """
    if isinstance(corpus, str):
        return corpus
    if isinstance(corpus, os.PathLike):
        return os.fsdecode(corpus)
    if isinstance(corpus, Mapping):
        return _of_mapping(corpus)
    if _is_dataset(corpus):
        return _Dataset(corpus)
    table = _of_table(corpus)
    return table or _of_items(corpus)


def _of_mapping(corpus: Mapping[Any, Any]) -> MemoryCorpus:
    if corpus and all(map(_is_dataset, corpus.values())):
        return _Splits(corpus)
    raise InvalidInputError(
        f"{_EXPECTED}; found {_in_words(corpus)}. Put a single record into a list, or make a table of columns with "
        "pyarrow.table."
    )


def _of_table(corpus: object) -> MemoryCorpus | None:
    if isinstance(corpus, pa.RecordBatch):
        return _Table(corpus, pa.Table.from_batches([corpus]))
    is_frame = hasattr(type(corpus), "columns") or hasattr(type(corpus), "column_names")
    if hasattr(corpus, "__arrow_c_stream__") and not isinstance(corpus, Iterator):
        try:
            pa.RecordBatchReader.from_stream(corpus)
            return _Table(corpus, corpus)
        except (pa.ArrowException, TypeError, ValueError) as error:
            if is_frame:  # otherwise a single column, which is a list of texts
                reason = " ".join(str(error).split())[:200]
                raise InvalidInputError(
                    f"The corpus <{_type_name(corpus)}> cannot be read as a table ({reason}). Give each column one type."
                ) from None
    elif hasattr(corpus, "iloc") and is_frame:  # pandas before 2.2
        return _Table(corpus, pa.Table.from_pandas(corpus))
    elif is_frame:
        raise InvalidInputError(f"{_EXPECTED}; found {_in_words(corpus)}.")
    return None


def _of_items(corpus: object) -> MemoryCorpus:
    if isinstance(corpus, AbstractSet):
        raise InvalidInputError(f"A corpus has an order, and a {_type_name(corpus)} has none: pass a list.")
    is_sequence = hasattr(corpus, "__len__") and hasattr(corpus, "__getitem__")
    if isinstance(corpus, bytes | bytearray | memoryview) or not (isinstance(corpus, Iterable) or is_sequence):
        raise InvalidInputError(f"{_EXPECTED}; found {_in_words(corpus)}.")
    # An iterator, or an object that returns the same iterator each time.
    if isinstance(corpus, Iterable) and iter(corpus) is iter(corpus):
        raise InvalidInputError(
            f"A corpus is read more than once, and a {_type_name(corpus)} can be read only once: pass a list of its items, "
            "list(…), or write them to a file of JSON lines."
        )
    return _Items(corpus)


class _Items(MemoryCorpus):
    """Texts and records, one after another."""

    def __init__(self, items: Any) -> None:
        n = len(items) if hasattr(items, "__len__") else None
        kind = "document"
        if isinstance(items, list | tuple) and items:
            kind = next(
                (k for k, t in (("text", str), ("record", Mapping)) if all(isinstance(i, t) for i in items)), kind
            )
        super().__init__(_type_name(items), "" if n is None else _count(n, kind))
        self._items = items
        if kind == "text" and all(map(os.path.isfile, items)):
            raise InvalidInputError(
                f"The corpus {self} holds names of files, and their texts are expected: pass one path or a glob, or read the "
                "files first."
            )

    def read(self, records: RecordReader) -> Iterator[Document]:
        items = self._items
        iterable = items if isinstance(items, Iterable) else map(items.__getitem__, range(len(items)))
        for index, value in enumerate(iterable):
            item = value.as_py() if isinstance(value, pa.Scalar) else value
            source = f"{self.source}:{index}"
            if isinstance(item, str):
                yield records.read_text(source, item)
            elif isinstance(item, Mapping):
                yield records.read(source, item)
            else:
                raise InvalidInputError(
                    f"{self} holds {_in_words(item)} at index {index}: expected texts, or records such as "
                    f"{{{records.options.text_column!r}: '...'}}."
                )


class _Table(MemoryCorpus):
    """A table whose rows are read as Arrow batches."""

    def __init__(self, original: object, table: object) -> None:
        super().__init__(_type_name(original), _count(len(original), "row") if hasattr(original, "__len__") else "")
        self._table = table

    def read(self, records: RecordReader) -> Iterator[Document]:
        batches = pa.RecordBatchReader.from_stream(self._table)
        columns = records.check_schema(str(self), batches.schema.names)
        yield from read_batches(batches, columns, self.source, records, features_in(batches.schema.metadata))


class _Dataset(MemoryCorpus):
    """An object with features and rows, such as a `Dataset` or an `IterableDataset` of `datasets`."""

    def __init__(self, dataset: Any, split: str | None = None) -> None:
        super().__init__(_type_name(dataset), _count(len(dataset), "row") if hasattr(dataset, "__len__") else "")
        self._dataset, self._split = dataset, split
        features = dataset.features
        as_json = features.to_dict() if hasattr(features, "to_dict") else features
        self._features: Features = as_json if isinstance(as_json, dict) else {}

    @property
    def image_columns(self) -> tuple[str, ...]:
        return tuple(
            column for column, kind in self._features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"
        )

    def read(self, records: RecordReader) -> Iterator[Document]:
        rows, features = self._rows(records)
        classes = class_columns({column: features.get(column) for column in records.options.label_columns})
        for row, values in enumerate(rows):
            source = f"{self.source}:{row}"
            if not isinstance(values, Mapping):
                raise InvalidInputError(f"{source} is {_in_words(values)}: expected a record, values by column.")
            labels = {
                column: name_classes(values.get(column), kind, source, column) for column, kind in classes.items()
            }
            yield records.read(source, {**values, **labels}, self._split)

    def _rows(self, records: RecordReader) -> tuple[Iterable[Any], Features]:
        """Its rows, reduced to the columns that are read where columns are known, and the features of the columns."""
        dataset = self._dataset
        format_ = getattr(dataset, "format", None)
        output: dict[str, Any] = format_ if isinstance(format_, dict) else {}
        if output.get("type") == "custom":  # a function of the user makes the rows, and may add columns
            return dataset, {}
        names = getattr(dataset, "column_names", None)
        columns = names if output.get("output_all_columns") else output.get("columns", names)
        if columns is None:
            return dataset, self._features
        if not set(columns) & set(records.content_columns) and self.image_columns:
            raise InvalidInputError(
                f"{self} holds images, in its column {self.image_columns[0]!r}, and no text; images are read from files only: "
                "save it with save_to_disk, and give the folder."
            )
        selected = list(records.check_schema(str(self), columns))
        if output.get("type") is not None or columns != names:
            dataset = dataset.with_format(None)
        if hasattr(dataset, "select_columns"):  # images and audio are decoded where they are read
            dataset = dataset.select_columns(selected)
        return (_batched(dataset) if hasattr(dataset, "iter") else dataset), self._features


def _batched(dataset: Any) -> Iterator[dict[str, object]]:
    for batch in dataset.iter(batch_size=BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


class _Splits(MemoryCorpus):
    """Datasets by the name of their split, which becomes a label, as in a folder that `save_to_disk` made."""

    def __init__(self, splits: Mapping[str, Any]) -> None:
        super().__init__(_type_name(splits), _count(len(splits), "split"))
        self._splits = [_Dataset(dataset, str(name)) for name, dataset in splits.items()]
        for name, split in zip(splits, self._splits, strict=True):
            split.source = f"{self.source}/{name}"

    @property
    def image_columns(self) -> tuple[str, ...]:
        return tuple(column for split in self._splits for column in split.image_columns)

    def read(self, records: RecordReader) -> Iterator[Document]:
        for split in self._splits:
            yield from split.read(records)


def _is_dataset(value: object) -> bool:
    features = getattr(value, "features", _EXPECTED)
    return (features is None or isinstance(features, Mapping)) and hasattr(value, "__iter__")


def _in_words(value: object) -> str:
    """A value of the wrong type for a message, as Python writes it."""
    return repr(value) if value is None or isinstance(value, int | float) else _type_name(value)


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _type_name(value: object) -> str:
    """The name of a value's type, with the package: `list`, `datasets.Dataset`."""
    package = type(value).__module__.partition(".")[0]
    return type(value).__name__ if package in ("builtins", "__main__") else f"{package}.{type(value).__name__}"

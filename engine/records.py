"""Records (a JSON object, a row of a table) made into documents, with every value checked.

Knows columns and values; knows nothing about the files they were read from.
"""

import json
import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from actstore.engine.documents import CorpusOptions, Document
from actstore.store.errors import InvalidInputError

SPLIT = "split"  # the label that says which part of a saved dataset a document came from
_SURROGATES = re.compile("[\ud800-\udfff]")
_MAX_COLUMNS_NAMED = 12


class RecordReader:
    """Makes documents of one corpus's records by its options, and remembers which label columns it has met.

    `labels_found` and `columns` (those of the first record) serve the check that no label column was misspelt: a JSON
    record may leave a label out, so only the end of the corpus can tell.
    """

    def __init__(self, options: CorpusOptions) -> None:
        self.options = options
        self.labels_found: set[str] = set()
        self.columns: tuple[str, ...] = ()

    @property
    def content_columns(self) -> tuple[str, str]:
        """The text and the ids column, the preferred one first."""
        columns = (self.options.text_column, self.options.ids_column)
        return columns[::-1] if self.options.prefer_ids else columns

    def read(self, source: str, record: Mapping[str, object], split: str | None = None) -> Document:
        """The document in a record; `source` says where the record stands, in messages too.

        A null text is an empty document. `split` becomes a label, unless the record has a label column of that name.
        """
        self.columns = self.columns or tuple(record)
        column = self.content_column(source, record)
        labels = self.labels(source, record, split)
        if column != self.options.text_column:
            return Document(source, ids=_token_ids(source, column, record[column]), labels=labels)
        return Document(source, text=self._text(source, column, record[column]), labels=labels)

    def content_column(self, source: str, columns: Iterable[str]) -> str:
        """The one of the text and ids columns to read; InvalidInputError names the columns where neither is there."""
        columns = tuple(columns)
        for column in self.content_columns:
            if column in columns:
                return column
        raise InvalidInputError(
            f"{source} has no column {self.options.text_column!r} with text, nor {self.options.ids_column!r} with "
            f"token ids: its columns are {name_columns(columns)}; name one with --text-column, or of images with "
            "--image-column."
        )

    def check_schema(self, source: str, columns: Iterable[str]) -> tuple[str, ...]:
        """The columns to read from a table that has these; InvalidInputError where one asked for is missing."""
        columns = tuple(columns)
        self.columns = self.columns or columns
        content = self.content_column(source, columns)
        for label in self.options.label_columns:
            if label not in columns and label != SPLIT:
                raise missing_label(source, label, columns)
        return tuple(dict.fromkeys(column for column in (content, *self.options.label_columns) if column in columns))

    def labels(self, source: str, record: Mapping[str, object], split: str | None = None) -> dict[str, str]:
        """The labels of a record as strings: missing and null are "", other values than strings their JSON."""
        labels = {}
        for column in self.options.label_columns:
            if column in record:
                self.labels_found.add(column)
            labels[column] = self._clean(source, column, _label(record.get(column)))
        if split is not None and SPLIT not in record:
            self.labels_found.add(SPLIT)
            labels[SPLIT] = split
        return labels

    def _text(self, source: str, column: str, value: object) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InvalidInputError(
                f"{source}: column {column!r} must hold text, found {describe_value(value)}; "
                "name another with --text-column."
            )
        return self._clean(source, column, value)

    def _clean(self, source: str, column: str, value: str) -> str:
        """The text with no lone surrogates: JSON can spell them, UTF-8 cannot hold them."""
        if value.isascii():
            return value
        found = _SURROGATES.search(value)
        if found is None:
            return value
        if self.options.errors == "replace":
            return _SURROGATES.sub("\ufffd", value)
        raise InvalidInputError(
            f"{source}: column {column!r} has half a surrogate pair (\\u{ord(found[0]):04x}) at character "
            f"{found.start()}, which no UTF-8 text can hold; mend it, or pass --errors replace to read on with U+FFFD "
            "in its place."
        )


def missing_label(source: str, label: str, columns: Iterable[str]) -> InvalidInputError:
    """The error for a label column that is not there; plain texts have no columns at all."""
    columns = tuple(columns)
    if not columns:
        return InvalidInputError(
            f"{source} is plain text, which has no label column {label!r}: leave --label out, or read JSON lines or a "
            "table."
        )
    return InvalidInputError(
        f"{source} has no label column {label!r}: its columns are {name_columns(columns)}; name one of them with "
        "--label."
    )


def name_columns(columns: Iterable[str]) -> str:
    """The columns' names for a message: the first twelve, and how many more."""
    columns = tuple(columns)
    named = ", ".join(repr(column) for column in columns[:_MAX_COLUMNS_NAMED])
    more = len(columns) - _MAX_COLUMNS_NAMED
    return (f"{named} and {more} more" if more > 0 else named) or "none"


def _label(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _token_ids(source: str, column: str, value: object) -> npt.NDArray[np.int64]:
    def wrong(found: str) -> InvalidInputError:
        return InvalidInputError(
            f"{source}: column {column!r} must hold token ids (integers from 0), found {found}; "
            "mend the row, or name another with --ids-column."
        )

    if isinstance(value, list):
        for position, item in enumerate(value):
            if type(item) is not int:  # True is an int to isinstance
                raise wrong(f"{describe_value(item)} at position {position}")
        try:
            value = np.array(value, dtype=np.int64)
        except OverflowError:
            raise wrong("a number that needs more than 64 bits") from None
    if not isinstance(value, np.ndarray):
        raise wrong(describe_value(value))
    if value.dtype.kind not in "iu":
        raise wrong(f"a list of {value.dtype}")
    ids = value.astype(np.int64)  # a copy: the values may lie in a batch that is about to be released
    if ids.size and ids.min() < 0:
        position = int((ids < 0).argmax())
        raise wrong(f"{value[position]} at position {position}")
    return ids


def describe_value(value: object) -> str:
    """A value for a message: its kind in JSON's words, with the value where that is short."""
    if value is None:
        return "null"
    kinds = {
        bool: "a truth value",
        int: "an integer",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    kind = kinds.get(type(value), type(value).__name__)
    shown = json.dumps(value, default=str) if isinstance(value, bool | int | float | str) else ""
    return f"{kind} ({shown})" if 0 < len(shown) <= 24 else kind

"""Records (a JSON object, a row of a table) made into documents, with every value checked.

One rule for every source of records: which column is read, and how labels become strings.
"""

import json
import re
from collections.abc import Iterable, Mapping

from actstore.engine.inputs.documents import CorpusOptions, Document
from actstore.engine.inputs.token_records import MODEL_INPUTS, read_token_ids
from actstore.engine.inputs.value_names import describe_value, name_columns
from actstore.store.errors import InvalidInputError

SPLIT = "split"  # the label that says which part of a saved dataset a document came from
_SURROGATES = re.compile("[\ud800-\udfff]")


class RecordReader:
    """Makes documents of one corpus's records by its options, and keeps which label columns occurred.

    `labels_found` and `columns` (those of the first record) serve the check that no label column was misspelt: a JSON
    record may leave a label out, so only the end of the corpus shows it.
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
        """The document in a record; `source` is where the record is, for messages too.

        Null in place of text or ids is an empty document. `split` becomes a label, unless the record has a label column of
        that name.
        """
        self.columns = self.columns or tuple(record)
        column = self.content_column(source, record)
        labels = self.labels(source, record, split)
        if column != self.options.text_column:
            return Document(source, ids=read_token_ids(source, column, record), labels=labels)
        return Document(source, text=self._text(source, column, record[column]), labels=labels)

    def read_text(self, source: str, text: str) -> Document:
        """The document of a text without a record."""
        text = self._clean(source, self.options.text_column, text)
        return Document(source, text=str(text), labels=self.labels(source, {}))

    def content_column(self, source: str, columns: Iterable[str]) -> str:
        """The column to read, text or ids; `InvalidInputError` names the columns where there is neither."""
        columns = tuple(columns)
        for column in self.content_columns:
            if column in columns:
                return column
        raise InvalidInputError(
            f"{source} has no column {self.options.text_column!r} with text, nor {self.options.ids_column!r} with "
            f"token ids: its columns are {name_columns(columns)}; name one with `text_column`, or of images with "
            "`image_column`."
        )

    def check_schema(self, source: str, columns: Iterable[str]) -> tuple[str, ...]:
        """The columns to read from a table with these; `InvalidInputError` where one that the options name is missing."""
        columns = tuple(columns)
        self.columns = self.columns or columns
        content = self.content_column(source, columns)
        for label in self.options.label_columns:
            if label not in columns and label != SPLIT:
                raise missing_label(source, label, columns)
        inputs = MODEL_INPUTS if content != self.options.text_column else ()
        selected = (content, *inputs, *self.options.label_columns)
        return tuple(dict.fromkeys(column for column in selected if column in columns))

    def labels(self, source: str, record: Mapping[str, object], split: str | None = None) -> dict[str, str]:
        """The labels of a record as strings: "" where missing or null, JSON where the value is no string."""
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
                "name another with `text_column`."
            )
        return self._clean(source, column, value)

    def _clean(self, source: str, column: str, value: str) -> str:
        """The text without lone surrogates, which JSON can write and UTF-8 cannot."""
        if value.isascii():
            return value
        surrogate = _SURROGATES.search(value)
        if surrogate is None:
            return value
        if self.options.errors == "replace":
            return _SURROGATES.sub("\ufffd", value)
        raise InvalidInputError(
            f"{source}: column {column!r} has half a surrogate pair (\\u{ord(surrogate[0]):04x}) at character "
            f'{surrogate.start()}, which no UTF-8 text can hold; fix it, or pass `errors="replace"` to read on with U+FFFD '
            "in its place."
        )


def missing_label(source: str, label: str, columns: Iterable[str]) -> InvalidInputError:
    """The error for a label column that does not exist; plain texts have no columns at all."""
    columns = tuple(columns)
    if not columns:
        return InvalidInputError(
            f"{source} is plain text, which has no label column {label!r}: leave `label_columns` out, or read JSON lines or a "
            "table."
        )
    return InvalidInputError(
        f"{source} has no label column {label!r}: its columns are {name_columns(columns)}; name one of them with "
        "`label_columns`."
    )


def _label(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "tolist"):  # a scalar, array or tensor of a record in memory
        return _label(value.tolist())
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_json_ready)


def _json_ready(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)

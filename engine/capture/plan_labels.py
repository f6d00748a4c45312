"""The labels of a plan's documents: a number for each value of each label column."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.inputs.documents import Document

logger = logging.getLogger("actstore")

MAX_LABELS_PER_COLUMN: Final = 1024
"""Statistics are kept for every label; a column with more distinct values is no label but data."""
RESERVED_COLUMNS: Final = ("document", "source", "sha256", "n_tokens")


class Labels:
    """Ids of the (column, value) pairs in the order they are met."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        """Of these columns; `InvalidInputError` for a name that is taken."""
        for column in columns:
            if column in RESERVED_COLUMNS:
                raise InvalidInputError(
                    f"A label column cannot be called {column!r}: taken are {', '.join(RESERVED_COLUMNS)}."
                )
        self.columns = columns
        self.ids: dict[tuple[str, str], int] = {}
        self._counts = dict.fromkeys(columns, 0)

    def observe(self, document: Document, ids: NDArray[Any]) -> None:
        """Number the labels of one more document; `InvalidInputError` where a column has too many values."""
        self.of(document.labels)

    def conclude(self, corpus: str, n_documents: int) -> tuple[str, ...]:
        """As `check`."""
        self.check(corpus, n_documents)
        return ()

    def of(self, labels: dict[str, str]) -> tuple[int, ...]:
        """The ids of a document's labels, one per column; `InvalidInputError` where a column has too many values."""
        return tuple(self._id(column, labels.get(column, "")) for column in self.columns)

    def check(self, corpus: str, n_documents: int) -> None:
        """Raise `InvalidInputError` for a column of which no planned document has a value.

        Reading to the end refuses a misspelt column; planning may stop long before. Then warns as `warn_of_single_values`.
        """
        for column in self.columns:
            if not self._values(column):
                raise InvalidInputError(
                    f"None of the {n_documents:,} documents planned from {corpus} has a value in the label column {column!r}. "
                    "Check `label_columns`, or plan more documents."
                )
        self.warn_of_single_values(corpus)

    def warn_of_single_values(self, corpus: str) -> None:
        """Warn, through the logger, of columns that have one value only: nothing can be compared by them."""
        for column in self.columns:
            if len(values := self._values(column)) == 1:
                logger.warning(
                    "Every labelled document of %s has the value %r in the label column %r: statistics per label cannot tell "
                    "labels apart.",
                    corpus,
                    *values,
                    column,
                )

    def _values(self, column: str) -> list[str]:
        """The values of a column; the empty one stands for none."""
        return [value for named, value in self.ids if named == column and value]

    def _id(self, column: str, value: str) -> int:
        if (column, value) not in self.ids:
            self._counts[column] += 1
            if self._counts[column] > MAX_LABELS_PER_COLUMN:
                raise InvalidInputError(
                    f"A label column has at most {MAX_LABELS_PER_COLUMN} distinct values, and {column!r} has more. "
                    "Statistics are kept for each; name a coarser column."
                )
            self.ids[column, value] = len(self.ids)
        return self.ids[column, value]

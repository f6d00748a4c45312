"""The table of tokens beside exported activations: text, document, position and labels of each."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actstore.store.reader import Capture

SUFFIX: Final = ".tokens.parquet"
"""Of the table beside a file of bare numbers: `layer.npy` goes with `layer.tokens.parquet`."""
ROWS: Final = 65_536
"""Rows given texts and labels at once."""


class TokenTable:
    """One row per committed token, in the order of `capture.activations`.

    Columns: those of `capture.tokens()`, text (of the token; bytes that are no whole character show as U+FFFD), source (the
    document's), and each label's value. A label named like another column is called `label_NAME`.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._tokens = capture.tokens().to_arrow()

    def __len__(self) -> int:
        return len(self._tokens)

    @cached_property
    def column_names(self) -> list[str]:
        """In their order."""
        return [*self._tokens.column_names, "text", "source", *self._labels]

    @cached_property
    def _labels(self) -> dict[str, pa.Array]:
        """Column → the label of each document."""
        taken = {*self._tokens.column_names, "text", "source"}
        labels: dict[str, pa.Array] = {}
        for label in self._capture.record.plan.label_columns:
            name = label
            while name in taken or _is_neuron(name):
                name = f"label_{name}"
            taken.add(name)
            labels[name] = self._documents[label].combine_chunks()
        return labels

    @cached_property
    def _documents(self) -> pa.Table:
        return self._capture.documents().to_arrow()

    def rows(self, first: int, n: int) -> pa.Table:
        """The `n` rows from the row `first` on."""
        tokens = self._tokens.slice(first, n)
        ids, place = np.unique(tokens["id"].to_numpy(), return_inverse=True)
        texts = pa.array([self._capture.store.token_text(token) for token in ids.tolist()], pa.string())
        documents = pa.array(tokens["document"].to_numpy())
        columns: list[Any] = [*tokens.columns, texts.take(pa.array(place)), self._documents["source"].take(documents)]
        columns += [values.take(documents) for values in self._labels.values()]
        return pa.Table.from_arrays(columns, self.column_names)

    def write(self, path: Path) -> None:
        """Write all rows as Parquet."""
        with pq.ParquetWriter(path, self.rows(0, 0).schema) as writer:
            for part in self._parts():
                writer.write_table(part)

    def _parts(self) -> Iterator[pa.Table]:
        return (self.rows(first, ROWS) for first in range(0, len(self), ROWS))


def companion_of(path: Path) -> Path:
    """Where the table of tokens beside a file of numbers lies."""
    return path.with_name(path.stem + SUFFIX)


def _is_neuron(name: str) -> bool:
    layer, _, index = name.partition(".N")
    return layer[:1] == "L" and layer[1:].isdigit() and index.isdigit()

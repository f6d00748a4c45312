"""A table of coactivations as a Parquet file outside the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_file
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def check_output(output: str | Path | None) -> Path | None:
    """The path of the file to write; `InvalidInputError` unless it ends in .parquet and lies in a folder that exists."""
    if output is None:
        return None
    path = output_file(output)
    if path.suffix != ".parquet":
        raise InvalidInputError(
            f"The table is written as Parquet: expected `output` to end in .parquet, found {path.name!r}."
        )
    return path


def write_coactivation(path: Path, table: pa.Table) -> None:
    """Write a table to `path`, which appears whole or not at all."""
    with replacing(path) as partial:
        pq.write_table(table, partial)

"""The tables that a store answers with: Arrow tables to programs, tables to people."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import actstore
from actstore.store.table import Table

if TYPE_CHECKING:
    from pathlib import Path

ARROW = pa.table(
    {"layer": pa.array([0, 0, 1], pa.int32()), "name": ["a", None, "c"], "mean": [0.5, 1.5, np.nan]},
    metadata={"k": "v"},
)


@pytest.fixture
def table() -> Table:
    return Table(ARROW)


def test_arrow_and_numpy_take_it_as_a_table(table: Table) -> None:
    assert table.to_arrow() is ARROW
    taken = pa.table(table)
    assert isinstance(taken, pa.Table)
    assert taken.drop_columns("mean").equals(ARROW.drop_columns("mean"))  # NaN equals nothing
    assert taken["mean"].to_pylist()[:2] == [0.5, 1.5]
    assert pa.RecordBatchReader.from_stream(table).read_all().column_names == ["layer", "name", "mean"]
    assert np.asarray(table.select(["layer"])).tolist() == [[0], [0], [1]]


def test_duckdb_takes_it_as_a_table(table: Table) -> None:
    neurons = table  # noqa: F841  # DuckDB finds it by its name
    assert duckdb.sql("select layer, count(name) as n from neurons group by layer order by layer").fetchall() == [
        (0, 1),
        (1, 1),
    ]
    with duckdb.connect() as connection:
        connection.register("registered", table)
        assert connection.sql("select sum(layer) from registered").fetchall() == [(1,)]


def test_data_frames_take_it(table: Table) -> None:
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["layer"].tolist() == [0, 0, 1]


def test_its_size_and_its_columns(table: Table) -> None:
    assert (len(table), table.num_rows, table.num_columns, table.shape) == (3, 3, 3, (3, 3))
    assert table.column_names == table.schema.names == ["layer", "name", "mean"]
    assert table["layer"].to_pylist() == table[0].to_pylist() == table.column("layer").to_pylist() == [0, 0, 1]
    assert isinstance(table["layer"], pa.ChunkedArray)
    assert table.to_pylist()[1] == {"layer": 0, "name": None, "mean": 1.5}
    with pytest.raises(KeyError, match="colour"):
        table["colour"]
    with pytest.raises(AttributeError, match="colour"):
        table.colour  # noqa: B018


def test_rows_and_columns_of_it_are_tables(table: Table) -> None:
    for part in (table[1:], table.slice(1), table.filter(pa.array([False, True, True]))):
        assert isinstance(part, Table)
        assert part["name"].to_pylist() == [None, "c"]
    assert table[-1:]["layer"].to_pylist() == [1]
    for part in (table[["mean", "layer"]], table.select(["mean", "layer"])):
        assert isinstance(part, Table)
        assert part.column_names == ["mean", "layer"]
    assert isinstance(table.sort_by([("layer", "descending")]), Table)
    joined = table.join(Table(pa.table({"layer": pa.array([1], pa.int32()), "n": [7]})), "layer", join_type="inner")
    assert joined.select(["name", "n"]).to_pylist() == [{"name": "c", "n": 7}]


def test_tables_compare_by_their_values(table: Table) -> None:
    first = table[:2]
    same = Table(pa.table({"layer": pa.array([0, 0], pa.int32()), "name": ["a", None], "mean": [0.5, 1.5]}))
    assert first == same
    assert first == same.to_arrow()
    assert same.to_arrow() == first
    assert first.equals(same)
    assert first != table
    assert first != [1, 2]
    with pytest.raises(TypeError, match="unhashable"):
        hash(table)


def test_it_is_copied_and_pickled(table: Table) -> None:
    for other in (pickle.loads(pickle.dumps(table)), copy.copy(table), copy.deepcopy(table)):
        assert isinstance(other, Table)
        assert other.to_arrow()[:2] == ARROW[:2]
        assert other.schema.metadata == {b"k": b"v"}


def test_what_it_can_is_completed(table: Table) -> None:
    assert {"to_pandas", "column_names", "sort_by", "group_by"} <= set(dir(table))


def test_everything_that_a_store_answers_is_such_a_table(planted_path: tuple[Path, object]) -> None:
    store = actstore.open(planted_path[0])
    capture, neuron = store.capture(), store.neuron(1, 3)
    for found in (
        store.neurons(),
        store.sql("select 1 as one"),
        capture.neurons(),
        capture.tokens(),
        capture.documents(),
        capture.windows(),
        neuron.exemplars(2),
    ):
        assert isinstance(found, actstore.Table)
        assert pa.table(found).num_rows == len(found) > 0
        assert str(found) == repr(found)
        assert "×" in str(found)

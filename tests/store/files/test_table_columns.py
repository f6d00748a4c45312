"""Tables read by column and row group: what is read, that it is checked, and tables of earlier versions."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counted_storage import counting

from actstore.store.errors import FormatError
from actstore.store.files.parquet import read_table, write_table
from actstore.store.files.shards import checksum
from actstore.store.files.table_checksums import chunk_places
from actstore.store.files.table_columns import ColumnReader, group_rows, table_checksum
from actstore.store.storage.folder import Folder

KEY = "captures/corpus/neurons.parquet"
N = 6000
GROUPS = [1000] * 6


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "site": pa.array(["mlp.post"] * N).dictionary_encode(),
            "neuron": pa.array(np.arange(N, dtype=np.int32)),
            "mean": rng.standard_normal(N),
            "tokens": pa.array(np.arange(3 * N).reshape(N, 3).tolist(), pa.list_(pa.int64())),
            "shares": pa.array([[("a", 0.5)]] * N, pa.map_(pa.string(), pa.float64())),
            "many": pa.array(rng.bytes(32) for _ in range(N)),
        }
    )


@pytest.fixture
def path(tmp_path, rows):
    write_table(Folder(tmp_path, read_only=False), KEY, rows, GROUPS)
    return tmp_path


def counted(path) -> Folder:
    return Folder(f"counted://{path}")


def test_rows_of_some_columns(path, rows):
    with counting():
        for folder in (Folder(path), counted(path)):
            table = ColumnReader(folder, KEY)
            assert table.names == rows.column_names
            assert table.n_rows == N
            assert table.rows(999, 1001).equals(rows.slice(999, 2))
            assert table.rows(5999, 6000, ["mean", "tokens"]).equals(rows.slice(5999, 1).select(["mean", "tokens"]))
            assert table.read(["neuron"]).equals(rows.select(["neuron"]))
            assert table.read(None, [4, 1]).equals(pa.concat_tables([rows.slice(4000, 1000), rows.slice(1000, 1000)]))


def test_no_more_is_read_than_is_asked_for(path):
    nbytes = (path / KEY).stat().st_size
    with counting() as requests:
        table = ColumnReader(counted(path), KEY)
        opening = requests.nbytes[KEY]
        assert (requests.n, opening) == (2, 1 << 15)
        table.rows(2500, 2501, ["mean"])
        assert requests.n == 3
        assert requests.nbytes[KEY] - opening < 10_000 < nbytes / 20
        table.rows(2501, 2502, ["mean"])
        assert requests.n == 3, "the second neuron of a group is not fetched again"


def test_sql_reads_the_columns_and_groups_that_it_names(path, rows):
    with counting() as requests, duckdb.connect() as connection:
        table = ColumnReader(counted(path), KEY)
        opening = requests.nbytes[KEY]
        connection.register("t", table.dataset())
        found = connection.sql("select mean from t where neuron = 4321").fetchall()
        assert found == [(rows["mean"][4321].as_py(),)]
        assert requests.nbytes[KEY] - opening < 20_000
        assert connection.sql("select site, tokens, shares from t limit 1 offset 5998").fetchall()[0][1] == [
            17994,
            17995,
            17996,
        ]
        in_order = connection.sql("select neuron from t").fetchnumpy()["neuron"]
        np.testing.assert_array_equal(in_order, np.arange(N))


def test_a_changed_byte_is_an_error_wherever_it_is_read(path, rows):
    """Every column chunk in turn, at a byte of its own; what is not read is not checked."""
    file = path / KEY
    whole = file.read_bytes()
    places = chunk_places(pq.ParquetFile(file).metadata)
    n_columns = len(places) // len(GROUPS)
    for chunk in (0, 2, 7, n_columns + 1, len(places) - 1):
        start, stop = places[chunk].tolist()
        damaged = bytearray(whole)
        damaged[(start + stop) // 2] ^= 1
        file.write_bytes(damaged)
        table = ColumnReader(Folder(path), KEY)
        group = chunk // n_columns
        other = (group + 1) % len(GROUPS) * 1000
        assert table.rows(other, other + 5).equals(rows.slice(other, 5))
        with pytest.raises(FormatError, match=r"neurons\.parquet is damaged: checksum mismatch"):
            ColumnReader(Folder(path), KEY).rows(group * 1000, group * 1000 + 1)
        with pytest.raises(FormatError, match="checksum mismatch"):
            read_table(Folder(path), KEY)


def test_a_chunk_in_anothers_place_is_an_error(path):
    file = path / KEY
    data = bytearray(file.read_bytes())
    places = chunk_places(pq.ParquetFile(file).metadata)
    n_columns = len(places) // len(GROUPS)
    (a, b), (c, d) = (places[group * n_columns + 2].tolist() for group in (0, 1))
    assert b - a == d - c
    data[a:b], data[c:d] = data[c:d], data[a:b]
    file.write_bytes(data)
    with pytest.raises(FormatError, match="checksum mismatch"):
        ColumnReader(Folder(path), KEY).rows(0, 1, ["mean"])


@pytest.mark.parametrize("back", [3, 20, 300])
def test_a_changed_footer_or_table_of_checksums_is_an_error(path, back):
    file = path / KEY
    data = bytearray(file.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[-(footer + back) if back < 100 else -back] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        ColumnReader(Folder(path), KEY).rows(0, 1)


def test_checksums_of_another_table_do_not_fit(path, rows):
    """The table of one capture in the place of one with the same rows under another key."""
    write_table(Folder(path, read_only=False), "model.parquet", rows, GROUPS)
    (path / KEY).write_bytes((path / "model.parquet").read_bytes())
    with pytest.raises(FormatError, match="checksum mismatch"):
        ColumnReader(Folder(path), KEY)


def test_a_table_without_checksums_of_its_chunks_is_checked_whole(path, rows):
    pq.write_table(rows, path / KEY)
    with counting() as requests:
        table = ColumnReader(counted(path), KEY)
        assert table.rows(7, 9, ["mean"]).equals(rows.slice(7, 2).select(["mean"]))
        assert requests.nbytes[KEY] > (path / KEY).stat().st_size
        assert duckdb.from_arrow(table.dataset()).aggregate("count(*)").fetchall() == [(N,)]


def test_the_checksum_of_a_whole_table_from_its_end(path):
    with counting() as requests:
        assert table_checksum(counted(path), KEY) == checksum((path / KEY).read_bytes())
    assert requests.nbytes[KEY] == 1 << 15


def test_groups_do_not_straddle_layers_and_grow_with_the_model():
    assert group_rows([100, 70]) == [64, 36, 64, 6]
    assert group_rows([512] * 8) == [256] * 16
    large = group_rows([11008] * 32)
    assert (large[:3], sum(large)) == ([4096, 4096, 2816], 11008 * 32)


def test_an_empty_table(tmp_path):
    write_table(Folder(tmp_path, read_only=False), "t.parquet", pa.table({"a": pa.array([], pa.int32())}))
    assert ColumnReader(Folder(tmp_path), "t.parquet").read().num_rows == 0

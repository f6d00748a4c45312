"""What a query may reach: the store's tables, and nothing else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sandbox")


@pytest.fixture(scope="module")
def store(folder, planting):
    planting(folder / "run[ab]?*.actstore", "corpus", seed=1)
    for seed, sibling in enumerate(("runa.actstore", "runb0.actstore", "runax-.actstore"), 2):
        planting(folder / sibling, "corpus", seed=seed)
    return Store(folder / "run[ab]?*.actstore")


@pytest.fixture
def files(folder):
    """What lies beside the store."""

    def listed():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = listed()
    yield folder
    assert listed() == before


def test_a_path_is_no_pattern(store, folder):
    means = store.capture().statistics().sites["mlp.post", 1].mean
    found = store.sql("select mean from neurons where layer = 1 order by neuron")["mean"].to_numpy()
    np.testing.assert_array_equal(found, means)
    assert store.sql("select count(*) from model").column(0).to_pylist() == [45]
    assert store.neurons().num_rows == 45
    siblings = [
        Store(folder / name).sql("select max(max) from neurons").column(0)[0].as_py() for name in ("runa.actstore",)
    ]
    assert store.sql("select max(max) from neurons").column(0)[0].as_py() not in siblings


WRITING = [
    "copy (select 42) to '{folder}/written.csv'",
    "explain analyze copy (select 42) to '{folder}/written.csv'",
    "EXPLAIN (ANALYZE, FORMAT json) COPY neurons TO '{neurons}'",
    "explain /* select 1 */ analyze copy (select 42) to '{folder}/written.parquet' (format parquet)",
    "select 1; copy (select 42) to '{folder}/written.csv'",
    "attach '{folder}/written.db'",
    "export database '{folder}/written'",
    "create table t as select 1",
    "explain analyze create table t as select 1",
    "install httpfs",
    "load httpfs",
    "set memory_limit = '99GB'",
    "pragma enable_profiling = 'json'",
    "set profile_output = '{folder}/written.json'",
    "explain analyze set threads = 1",
    "checkpoint",
    "call pragma_version()",
    "insert into neurons values (1)",
    "drop view neurons",
]


@pytest.mark.parametrize("query", WRITING)
def test_nothing_is_written(query, store, files):
    neurons = store.folder.local_path("captures/corpus/neurons.parquet")
    with pytest.raises(InvalidInputError) as caught:
        store.sql(query.format(folder=files, neurons=neurons) + "; select * from neurons")
    assert "\n" not in str(caught.value)


READING = [
    "select * from read_text('/etc/hostname')",
    "select * from read_blob('/etc/hostname')",
    "select * from read_csv('/etc/hostname')",
    "select * from sniff_csv('/etc/hostname')",
    "select * from read_json('/etc/hostname')",
    "select * from '/etc/hostname'",
    "select * from glob('/etc/*')",
    "select * from read_parquet('{folder}/other.parquet')",
    "select * from '{folder}/other.parquet'",
    "select * from parquet_metadata('{folder}/other.parquet')",
    "select * from read_parquet('{folder}/runa.actstore/neurons.parquet')",
    "select * from read_parquet('{folder}/run*/neurons.parquet')",
    "select * from read_parquet('https://example.org/x.parquet')",
    "select * from read_text('s3://bucket/key')",
    "select * from duckdb_secrets()",
    "select getenv('HOME')",
]


@pytest.mark.parametrize("query", READING)
def test_no_other_file_is_read(query, store, folder):
    pq.write_table(pa.table({"secret": [1]}), folder / "other.parquet")
    with pytest.raises(InvalidInputError) as caught:
        store.sql(query.format(folder=folder) + ", neurons" * (" from " in query))
    assert "\n" not in str(caught.value)


def test_variables_of_the_caller_are_no_tables(store):
    secret = pa.table({"secret": [1]})
    with pytest.raises(InvalidInputError, match="Table with name secret"):
        store.sql("select * from secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize("query", ["explain select * from neurons", "explain analyze select count(*) from tokens"])
def test_a_reading_query_is_explained(query, store):
    assert store.sql(query).num_rows


def test_of_two_queries_none_is_dropped(store):
    with pytest.raises(InvalidInputError, match="One query gives one table, found 2 statements"):
        store.sql("select 1; select 2")
    assert store.sql("select 1;").num_rows == 1


def test_a_pivot_and_a_common_table_expression(store):
    assert store.sql("pivot (select layer, site, mean from neurons) on site using avg(mean)").num_rows == 2
    assert store.sql("with t as (from neurons) select count(*) from t").column(0).to_pylist() == [45]


def test_a_name_that_is_put_together_is_checked_too(store, folder):
    path = store.folder.local_path("captures/corpus/neurons.parquet")
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    try:
        for query in ("select * from query_table('neu' || 'rons')", "select * from query('from neu' || 'rons')"):
            with pytest.raises(Exception, match="damaged"):
                store.sql(query)
    finally:
        path.write_bytes(data)
    assert store.sql("select * from query_table('neu' || 'rons')").num_rows == 45


def test_a_query_takes_the_time_that_it_may(store):
    endless = "select count(*) from range(1000000000) a, range(1000) b where a.range * b.range % 7 = 3"
    with pytest.raises(InvalidInputError, match=r"ran for 0\.2 seconds and was stopped"):
        store.sql(endless, timeout_s=0.2)
    assert store.sql("select 1", timeout_s=5).num_rows == 1


def test_a_query_takes_the_memory_that_it_may(store):
    large = "select list(range) from range(100000000)"
    with pytest.raises(InvalidInputError, match="needs more memory"):
        store.sql(large, memory=50_000_000)


@pytest.mark.parametrize(
    "limit", [{"memory": 0}, {"memory": -1}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"timeout_s": 1e300}]
)
def test_limits_are_above_nothing(limit, store):
    with pytest.raises(InvalidInputError, match=r"above 0|seconds"):
        store.sql("select 1", **limit)


def test_the_command_has_the_limits(store, cli):
    path = store.folder.location
    assert cli("sql", path, "select 1", "--memory", "1GB", "--timeout", "9").status == 0
    result = cli("sql", path, "explain analyze copy (select 42) to '/nowhere/x.csv'")
    assert result.status == 2

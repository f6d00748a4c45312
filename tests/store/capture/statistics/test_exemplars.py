"""`exemplars.parquet`: what `top` reads of it is what it reads of plan, documents and statistics."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from counted_storage import counting

from actstore.store.errors import FormatError
from actstore.store.layout import table_key
from actstore.store.reader import Store
from actstore.store.verify import verify_capture

TABLE = table_key("corpus", "exemplars")


@pytest.fixture
def path(tmp_path, planting):
    planting(tmp_path / "store", precision="int8")
    return tmp_path / "store"


def everything(path, k, context):
    """Exemplars and histograms of some neurons."""
    store = Store(path)
    neurons = [store.neuron(layer, index) for layer, index in ((0, 0), (0, 4), (1, 0), (1, 39))]
    return [(neuron.exemplars(k, context=context).to_arrow(), neuron.histogram()[0].tolist()) for neuron in neurons]


@pytest.mark.parametrize(("k", "context"), [(3, 24), (2, 0), (3, 5), (9, 24), (3, 60)])
def test_it_is_a_short_way_to_the_same(path, k, context):
    found = everything(path, k, context)
    (path / TABLE).unlink()
    assert found == everything(path, k, context)
    assert found[0][0].num_rows == min(k, 6)


@pytest.mark.parametrize("precision", ["exact", "none"])
def test_positions_that_are_not_kept_have_no_activation(tmp_path, planting, precision):
    """Windows of which every third position has a slot; without values there is nothing around."""
    planting(tmp_path / "store", kept=lambda n: np.arange(0, n, 3, dtype=np.int32), precision=precision)
    found = everything(tmp_path / "store", 3, 24)
    (tmp_path / "store" / TABLE).unlink()
    assert found == everything(tmp_path / "store", 3, 24)
    around = found[0][0]["activations"][0].as_py()
    assert around is None if precision == "none" else {None} < {*around}


def test_few_requests(path):
    with counting() as requests:
        neuron = Store(f"counted://{path}").neuron(1, 7)
        neuron.exemplars(3)
        neuron.histogram()
        neuron.statistics()
    read = {key for key in requests.reads if not key.startswith("captures/corpus/values")}
    assert read == {
        "zarr.json", "captures/corpus/zarr.json", "captures/corpus/committed.json", TABLE, table_key("corpus", "neurons"),
        "tokenizer/vocabulary.parquet",
    }  # fmt: skip
    # The index twice: whether it is there still, once the values are read.
    assert sum(requests.reads[key] for key in read) <= 12
    assert requests.others == []
    with counting() as first:
        store = Store(f"counted://{path}")
        store.neuron(1, 7).exemplars(1)
    with counting() as second:
        store.neuron(1, 8).exemplars(1)
    assert second.nbytes[TABLE] == 0 < first.nbytes[TABLE]
    assert second.n < first.n


def test_it_is_optional_and_bound_to_its_capture(path, tmp_path, planting):
    assert verify_capture(Store(path).capture()) == []
    planting(tmp_path / "other", precision="int8", seed=4)
    (path / TABLE).write_bytes((tmp_path / "other" / TABLE).read_bytes())
    with pytest.raises(FormatError, match="is not the table that was written there"):
        Store(path).neuron(0, 0).exemplars(1)
    assert [one.key for one in verify_capture(Store(path).capture())] == ["exemplars.parquet"]
    (path / TABLE).unlink()
    assert verify_capture(Store(path).capture()) == []
    assert Store(path).neuron(0, 0).exemplars(1).to_arrow().num_rows == 1


def test_verify_finds_rows_that_are_not_what_the_statistics_say(path):
    from actstore.store.files.parquet import write_table
    from actstore.store.storage.folder import Folder

    rows = pq.read_table(path / TABLE)
    at = rows.schema.get_field_index("tokens")
    changed = rows.set_column(at, rows.schema.field(at), rows["tokens"].combine_chunks().take(np.arange(45)[::-1]))
    write_table(Folder(path, read_only=False), TABLE, changed, [5, 32, 8])
    (damage,) = verify_capture(Store(path).capture())
    assert (damage.key, damage.what) == ("exemplars.parquet", "not what the statistics and the plan say")

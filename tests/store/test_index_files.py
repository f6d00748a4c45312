"""What a reader finds without listing: index files, and what they are worth when the store has changed behind them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from counted_storage import counting

from actstore.store.capture.committed import complete_index
from actstore.store.errors import FormatError, NotFoundError, UnlistableError
from actstore.store.files.names import indexed_names, stored_names, write_names
from actstore.store.files.records import with_checksum
from actstore.store.layout import committed_key, names_key
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture, verify_root


@pytest.fixture
def path(planted_path, planted_bytes, tmp_path):
    """A planted store of one finished capture, `corpus`, to be changed."""
    for file, data in planted_bytes.items():
        target = tmp_path / "store" / file.relative_to(planted_path[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return tmp_path / "store"


def test_a_host_that_answers_reads_alone_serves_a_store(path, planting, planted_path):
    planting(path, "other", seed=3)
    local = Store(path)
    with counting() as requests:
        store = Store(f"static://{path}")
        assert store.captures == ("corpus", "other")
        np.testing.assert_array_equal(store.neuron(1, 7).activations("corpus"), planted_path[1][1][7])
        for name in store.captures:
            assert store.capture(name).is_finished
            assert store.capture(name).tokens().to_arrow() == local.capture(name).tokens().to_arrow()
        exemplars = store.neuron(1, 7).exemplars(3, "other").to_arrow()
        assert exemplars == local.neuron(1, 7).exemplars(3, "other").to_arrow()
        query = "select mean from other.neurons where layer = 1 union all select token from vocabulary"
        assert store.sql(query, "other").to_arrow() == local.sql(query, "other").to_arrow()
        assert verify_root(store.folder) == verify_capture(store.capture("other")) == []
        with pytest.raises(NotFoundError, match=r"no capture 'third'.* corpus, other"):
            store.capture("third")
        with pytest.raises(UnlistableError):
            store.folder.names("")
    assert requests.others == []


def test_an_index_spares_listing_and_the_commit_records(path):
    with counting() as requests:
        capture = Store(f"counted://{path}").capture("corpus")
        assert (capture.blocks, capture.is_finished, sum(capture.used_slots)) == ((0, 1, 2), True, 135)
    assert {*requests.reads} == {"zarr.json", "captures/corpus/zarr.json", "captures/corpus/committed.json"}
    assert requests.n == 3


def test_a_store_without_indexes_is_listed(path):
    (path / "captures.json").unlink()
    (path / committed_key("corpus")).unlink()
    with counting() as requests:
        store = Store(f"counted://{path}")
        assert (store.captures, store.capture().blocks) == (("corpus",), (0, 1, 2))
        assert "list captures" in requests.others
        static = Store(f"static://{path}")
        with pytest.raises(
            NotFoundError, match=r"cannot be listed, and it has no captures\.json .* an earlier version"
        ):
            Store(f"static://{path}").captures  # noqa: B018
        with pytest.raises(FormatError, match=r"blocks of capture 'corpus' .* no committed\.json"):
            static.capture("corpus")
    assert verify_root(store.folder) == verify_capture(store.capture()) == []
    folder = Folder(path, read_only=False)
    complete_index(folder, store.capture().record)
    with counting():
        assert Store(f"static://{path}").capture().blocks == (0, 1, 2)


def test_an_unfinished_capture_has_no_index(path, planting):
    planting(path, "begun", blocks=[1], finish=False)
    with counting():
        assert Store(f"counted://{path}").capture("begun").blocks == (1,)
        static = Store(f"static://{path}")
        assert static.captures == ("begun", "corpus")
        with pytest.raises(FormatError, match="it is unfinished"):
            static.capture("begun")


def test_a_capture_that_an_earlier_version_added_is_listed_and_put_into_the_index_by_the_next_writer(path, planting):
    planting(path, "other", seed=3)
    (path / "captures.json").write_text(json.dumps(with_checksum({"names": ["corpus"]})))
    with counting():
        assert Store(f"counted://{path}").captures == ("corpus", "other")
        assert Store(f"static://{path}").capture("other").blocks == (0, 1, 2)
    (damage,) = verify_root(Folder(path))
    assert (damage.key, "'other'" in damage.what) == ("captures.json", True)
    write_names(Folder(path, read_only=False), "captures")
    assert verify_root(Folder(path)) == []


def test_an_index_may_name_what_is_not_there(path):
    """As after a kill between the index and the record."""
    write_names(Folder(path, read_only=False), "captures", "killed")
    with counting():
        for scheme in ("counted", "static"):
            assert Store(f"{scheme}://{path}").captures == ("corpus",)
    assert verify_root(Folder(path)) == []


def test_two_writers_at_once_lose_no_name(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def add(name: str) -> None:
        folder = Folder(tmp_path, read_only=False)
        folder.write(f"graphs/{name}/graph.json", b"{}")
        write_names(folder, "graphs", name)

    names = [f"g{i:02}" for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, names))
    assert indexed_names(Folder(tmp_path), "graphs") == names


def test_a_damaged_index_of_names_is_found_and_not_needed_where_keys_are_listed(path):
    file = path / names_key("captures")
    file.write_text(file.read_text().replace("corpus", "korpus"))
    (damage,) = verify_root(Folder(path))
    assert "checksum mismatch" in damage.what
    with counting():
        assert Store(f"counted://{path}").captures == ("corpus",)
        with pytest.raises(FormatError, match="checksum mismatch"):
            stored_names(Folder(f"static://{path}"), "captures")


def test_a_damaged_index_of_blocks_is_not_believed(path):
    file = path / committed_key("corpus")
    file.write_text(file.read_text().replace("7\n", "8\n"))
    with counting():
        assert Store(f"counted://{path}").capture().blocks == (0, 1, 2)
        with pytest.raises(FormatError, match="checksum mismatch"):
            Store(f"static://{path}").capture()
    (damage,) = verify_capture(Store(path).capture())
    assert damage.key == "committed.json"


@pytest.mark.parametrize("field", ["capture", "identity", "plan"])
def test_the_index_of_another_capture_is_not_believed(path, field):
    file = path / committed_key("corpus")
    file.write_text(json.dumps(with_checksum(json.loads(file.read_text()) | {field: "other"})))
    with counting(), pytest.raises(FormatError, match="of another"):
        Store(f"static://{path}").capture()


def test_a_block_that_was_lost_after_the_capture_was_finished(path):
    """Without the shard a reader is told; without the commit record alone, the values are there, and checked."""
    (path / "captures/corpus/blocks/1.json").unlink()
    with counting():
        capture = Store(f"counted://{path}").capture()
        assert capture.blocks == (0, 1, 2)
        assert len(capture.activations(1, 7)) == 135
        (path / "captures/corpus/values/mlp.post/1/c/0/1").unlink()
        with pytest.raises(NotFoundError, match=r"values/mlp\.post/1/c/0/1"):
            Store(f"counted://{path}").capture().activations(1, 7)
        assert 1 in {one.block for one in verify_capture(Store(f"counted://{path}").capture())}
    assert Store(path).capture().blocks == (0, 2)


def test_a_capture_whose_record_is_lost_is_told_without_listing(path):
    (path / "captures/corpus/zarr.json").unlink()
    with counting(), pytest.raises(FormatError, match="record of capture 'corpus' is lost"):
        Store(f"static://{path}").capture("corpus")


def test_a_root_that_is_lost_is_told_without_listing(path):
    (path / "zarr.json").unlink()
    with counting():
        with pytest.raises(FormatError, match="the store's root is lost"):
            Store(f"static://{path}")
        shutil.rmtree(path)
        Path(path).mkdir()
        with pytest.raises(NotFoundError, match="There is no store at"):
            Store(f"static://{path}")

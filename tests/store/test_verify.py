import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from elsewhere import Elsewhere

from actstore.engine.workers.scan import Scan
from actstore.store.capture.commits import read_commit
from actstore.store.capture.statistics.capture_statistics import read_block_statistics
from actstore.store.errors import FormatError
from actstore.store.files.groups import damaged_groups
from actstore.store.files.shards import checksum
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture, verify_root


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x10
    path.write_bytes(data)


def verify(path, name="corpus"):
    return verify_capture(Store(path).capture(name))


@pytest.fixture
def path(planted):
    """A whole store, to be damaged: three blocks of two layers."""
    store, _ = planted
    assert verify(store.folder.local_path()) == []
    return store.folder.local_path()


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize(("array", "site"), [("values/mlp.post/{}", "mlp.post"), ("gate_sign/{}", "gate_sign")])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_flipped_byte_names_capture_layer_and_block(path, array, site, layer, block):
    key = f"{array.format(layer)}/c/0/{block}"
    file = path / "captures/corpus" / key
    for at in (3, -1):
        flip(file, at)
        (damage,) = verify(path)
        flip(file, at)
        assert (damage.capture, damage.site, damage.layer, damage.block, damage.key) == (
            "corpus",
            site,
            layer,
            block,
            key,
        )
        assert str(damage).startswith(f"capture 'corpus', layer {layer} ({site}), block {block}: {key}: checksum ")
    assert verify(path) == []


def test_a_capture_that_was_only_begun_is_not_missed_in_the_index(captured, tmp_path):
    """On a full disk, Zarr's group above the first array may be all there is of it."""
    folder = Folder(shutil.copytree(captured.folder.local_path(), tmp_path / "store"))
    begun = tmp_path / "store/captures/second/zarr.json"
    begun.parent.mkdir()
    begun.write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    assert verify_root(folder) == []
    shutil.copy(tmp_path / "store/captures/corpus/zarr.json", begun)
    assert ["does not list 'second'" in one.what for one in verify_root(folder)] == [True]


@pytest.mark.parametrize("axis", [0, 1])
def test_metadata_of_other_chunks_than_the_shards_have(path, axis):
    file = path / "captures/corpus/values/mlp.post/1/zarr.json"
    described = json.loads(file.read_text())
    described["codecs"][0]["configuration"]["chunk_shape"][axis] = 1
    file.write_text(json.dumps(described))
    (damage,) = verify(path)
    assert damage.key == "values/mlp.post/1/zarr.json"
    assert damage.what.startswith("describes chunks of ")


def test_any_byte_of_a_shard(path):
    file = path / "captures/corpus/values/mlp.post/0/c/0/1"
    size = file.stat().st_size
    for at in np.random.default_rng(0).integers(0, size, 8).tolist():
        flip(file, at)
        assert [(d.layer, d.block) for d in verify(path)] == [(0, 1)]
        flip(file, at)


def test_parameters_of_other_precisions(tmp_path, planting):
    planting(tmp_path / "int8", precision="int8")
    flip(tmp_path / "int8/captures/corpus/scale/mlp.post/1/c/0/2")
    planting(tmp_path / "sparse", precision="sparse")
    flip(tmp_path / "sparse/captures/corpus/dropped/mlp.post/0/c/0/1")
    for name, layer, block in (("int8", 1, 2), ("sparse", 0, 1)):
        (damage,) = verify(tmp_path / name)
        assert (damage.site, damage.layer, damage.block) == ("mlp.post", layer, block)


def test_a_deleted_shard(path):
    (path / "captures/corpus/values/mlp.post/1/c/0/1").unlink()
    (damage,) = verify(path)
    assert (damage.layer, damage.block, damage.what) == (1, 1, "missing")


def test_a_truncated_shard(path):
    file = path / "captures/corpus/values/mlp.post/1/c/0/1"
    data = file.read_bytes()
    for length in (0, 1, len(data) - 1):
        file.write_bytes(data[:length])
        (damage,) = verify(path)
        assert (damage.layer, damage.block, damage.what) == (1, 1, f"{length} bytes, expected {len(data)}")


def test_a_blocks_statistics(path):
    flip(path / "captures/corpus/blocks/1.statistics.safetensors.zst")
    (damage,) = verify(path)
    assert (damage.block, damage.layer, damage.key) == (1, None, "blocks/1.statistics.safetensors.zst")


def test_a_commit_record(path):
    file = path / "captures/corpus/blocks/1.json"
    text = file.read_bytes()
    for at in [i for i, byte in enumerate(text) if byte not in b" \n"][::31]:
        flip(file, at)
        damage = verify(path)
        assert {d.block for d in damage} == {1}, f"byte {at}: {text[at : at + 1]!r}"
        assert {d.key for d in damage} == {"blocks/1.json"}
        flip(file, at)


def test_a_commit_record_that_went_missing(path):
    (path / "captures/corpus/blocks/1.json").unlink()
    damage = verify(path)
    assert [(d.block, d.key, d.what) for d in damage] == [(1, "blocks/1.json", "missing")]


@pytest.mark.parametrize("array", ["inputs/ids", "tokens/ids", "tokens/position", "tokens/window", "tokens/modality"])
def test_a_plan_array(path, array):
    (chunk,) = (path / "captures/corpus" / array / "c").iterdir()
    whole, found = Store(path).capture().plan.array(array), 0
    for at in [*range(0, 40, 13), *np.random.default_rng(0).integers(0, chunk.stat().st_size, 5).tolist()]:
        flip(chunk, at)
        damage = verify(path)
        if damage:
            found += 1
            assert [(d.block, d.layer, d.key) for d in damage] == [(None, None, "plan")]
            assert str(damage[0]).startswith("capture 'corpus', the capture as a whole: plan: ")
        else:  # the chunk is larger than the array, and nobody reads what is beyond
            np.testing.assert_array_equal(Store(path).capture().plan.array(array), whole, f"byte {at}")
        flip(chunk, at)
    assert found
    chunk.unlink()  # a missing chunk would read as token 0
    assert [d.key for d in verify(path)] == ["plan"]


@pytest.mark.parametrize("table", ["windows", "documents"])
def test_a_plan_table(path, table):
    """Wherever the byte lies, verify neither passes over a changed number nor falls over a broken file."""
    file = path / f"captures/corpus/{table}.parquet"
    whole = Store(path).capture().plan.table(table)
    for at in np.random.default_rng(1).integers(0, file.stat().st_size, 10).tolist():
        flip(file, at)
        damage = verify(path)
        if not damage:  # a byte that no reader looks at
            assert Store(path).capture().plan.table(table).equals(whole), f"byte {at}"
        assert {d.key for d in damage} <= {"plan"}
        flip(file, at)
    file.unlink()
    assert [d.key for d in verify(path)] == ["plan"]


@pytest.mark.parametrize("name", ["count", "mean", "histogram", "positives", "exemplar_values", "exemplar_tokens"])
def test_a_finished_statistic(path, name):
    """A number changed in place decompresses as well as any: the blocks' own statistics tell."""
    folder = path / f"captures/corpus/statistics/mlp.post/{name}"
    (chunk,) = [p for p in (folder / "c").rglob("*") if p.is_file()]
    flip(chunk, -1)
    assert [d.key for d in verify(path)] == ["statistics"]
    flip(chunk, -1)
    shutil.rmtree(folder / "c")  # a missing chunk reads as zeros
    assert [d.key for d in verify(path)] == ["statistics"]


def test_the_finished_table(path):
    file = path / "captures/corpus/neurons.parquet"
    whole = Store(path).neurons()
    for at in np.random.default_rng(2).integers(0, file.stat().st_size, 10).tolist():
        flip(file, at)
        damage = verify(path)
        if not damage:
            assert Store(path).neurons().equals(whole), f"byte {at}"
        assert all(d.block is None for d in damage)
        flip(file, at)


@pytest.mark.parametrize("old", ['"float32"', '"shape"', "sharding_indexed", "lz4", "5"])
def test_an_arrays_metadata(path, old):
    """Whoever reads without actstore has nothing but the metadata to go by."""
    file = path / "captures/corpus/values/mlp.post/0/zarr.json"
    text = file.read_text()
    new = {'"float32"': '"float16"', '"shape"': '"shabe"', "5": "6"}.get(old, "unheard-of")
    file.write_text(text.replace(old, new, 1))
    damage = verify(path)
    assert [(d.layer, d.site, d.block, d.key) for d in damage] == [(0, "mlp.post", None, "values/mlp.post/0/zarr.json")]


def test_every_bit_of_a_groups_metadata(path):
    """Whoever reads without actstore opens the groups above an array."""
    captures = path / "captures"
    groups = [file for file in captures.rglob("zarr.json") if json.loads(file.read_text())["node_type"] == "group"]
    groups.remove(captures / "corpus/zarr.json")  # the record
    assert {captures / "zarr.json", captures / "corpus/tokens/zarr.json", captures / "corpus/statistics/zarr.json"} < {
        *groups
    }
    capture, folder, bits = Store(path).capture(), Folder(path), np.random.default_rng(0)
    for file in groups:
        whole = file.read_bytes()
        for at in bits.integers(0, len(whole), 20).tolist():
            flip(file, at)
            if file == captures / "zarr.json":
                found = [damage.key for damage in verify_root(folder)]
            else:
                found = [f"captures/corpus/{key}" for key, _ in damaged_groups(folder, capture.record)]
            flip(file, at)
            blank = whole[at : at + 1].isspace() and bytes([whole[at] ^ 0x10]).isspace()
            assert found == ([] if blank else [str(file.relative_to(path))]), (file, at)
    file = captures / "corpus/tokens/zarr.json"
    file.write_text(file.read_text().replace("group", "graup"))
    assert [damage.key for damage in verify(path)] == ["tokens/zarr.json"]


def test_every_damage_is_found_in_one_go(path):
    flip(path / "captures/corpus/values/mlp.post/0/c/0/0")
    flip(path / "captures/corpus/gate_sign/1/c/0/2")
    (path / "captures/corpus/values/mlp.post/1/c/0/2").unlink()
    (path / "captures/corpus/inputs/ids/c/0").unlink()
    found = {(d.block, d.layer, d.site) for d in verify(path)}
    assert found == {(0, 0, "mlp.post"), (2, 1, "gate_sign"), (2, 1, "mlp.post"), (None, None, None)}


def test_only_the_damaged_capture_is_damaged(captured):
    path = captured.folder.local_path()
    assert verify(path, "corpus") == verify(path, "in-int8") == []
    shard = path / "captures/in-int8/values/mlp.post/1/c/0/0"
    flip(shard)
    others, (damage,) = verify(path, "corpus"), verify(path, "in-int8")
    flip(shard)
    assert others == []
    assert (damage.capture, damage.layer, damage.block) == ("in-int8", 1, 0)


def test_an_unfinished_capture_is_no_damage(somewhere, planting):
    planting(somewhere, blocks=(0, 2), finish=False)
    assert verify(somewhere) == []


def test_progress_is_told_by_block(path):
    seen = []
    verify_capture(Store(path).capture(), seen.append)
    assert seen == [0, 1, 2]


def test_workers_find_the_damage_that_one_process_does(path):
    for key in ("values/mlp.post/0/c/0/1", "gate_sign/1/c/0/2", "neurons.parquet"):
        flip(path / "captures/corpus" / key)
    (path / "captures/corpus/values/mlp.post/1/c/0/0").unlink()
    seen, workers = [], Elsewhere()
    found = verify_capture(Store(path).capture(), seen.append, Scan(workers))
    assert found == verify(path)
    assert {one.block for one in found} == {0, 1, 2, None}
    assert seen == [0, 1, 2]
    assert len(workers.items) == len(seen)


@pytest.mark.parametrize(
    "key",
    [
        "values/mlp.post/0/zarr.json",
        "statistics/mlp.post/mean/c/0",
        "tokens/ids/c/0",
        "blocks/1.json",
        "blocks/1.statistics.safetensors.zst",
        "neurons.parquet",
        "committed.json",
    ],
)
@pytest.mark.parametrize("change", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_what_lists_damage_does_not_advise_to_list_it_or_to_repair_it(path, key, change):
    """Readers do: what they found and what they advise are apart."""
    change(path / "captures/corpus" / key)
    found = [str(one) for one in [*verify(path), *verify_root(Folder(path))]]
    assert found or (key, change) == ("committed.json", Path.unlink), "an index that a folder needs not have"
    for sentence in found:
        for advice in ("store.verify", "store.repair", "Run ", "Restore ", "restore "):
            assert advice not in sentence
        assert not sentence.endswith(".")


def test_statistics_that_another_program_wrote_are_listed_without_advice(path):
    """With checksums that fit, so that the reader of tensors is the first to see it."""
    folder, key = Folder(path, read_only=False), "captures/corpus/blocks/1.statistics.safetensors.zst"
    data = folder.read(key)[::-1]
    folder.write(key, data)
    commit = read_commit(folder, Store(path).capture().record, 1)
    shards = commit.shards | {key.removeprefix("captures/corpus/"): (len(data), checksum(data))}
    commit = dataclasses.replace(commit, shards=shards).with_checksum()
    folder.write_json("captures/corpus/blocks/1.json", commit.to_json())
    with pytest.raises(FormatError, match=r"are damaged \(.*\)\. Run `store\.verify\(\)`") as error:
        read_block_statistics(folder, Store(path).capture().record, 1)
    assert error.value.advice.startswith("Run ")
    (damage,) = verify(path)
    assert str(damage).endswith(f"{error.value.found.rstrip('.')}")
    assert "Run" not in str(damage)


def test_an_error_keeps_its_parts_between_processes():
    error = pickle.loads(pickle.dumps(FormatError("x is damaged.", "Run it.")))
    assert (str(error), error.found, error.advice) == ("x is damaged. Run it.", "x is damaged.", "Run it.")
    assert (str(FormatError("x.")), FormatError("x.").advice) == ("x.", "")

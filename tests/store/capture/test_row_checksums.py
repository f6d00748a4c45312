"""A capture's shards in each other's places, or changed: no reader of one neuron or of a layer takes them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest

from actstore.store import layout
from actstore.store.capture.commits import read_commit
from actstore.store.capture.record import read_capture
from actstore.store.errors import FormatError
from actstore.store.files.shards import checksum
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.reader import Capture

PRECISIONS = ("exact", "half", "int8", "sparse")
VALUES = "captures/corpus/values/mlp.post"


@pytest.fixture(autouse=True)
def same_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of one shape: a shard of the other layer fits."""
    monkeypatch.setattr(planted_stores, "WIDTHS", (40, 40))


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """In memory; on disk, where bytes are read through a map of the file, for tests that ask for both."""
    return str(tmp_path / "store") if getattr(request, "param", "") == "local" else f"memory://{uuid.uuid4()}/store"


both = pytest.mark.parametrize("location", ["memory", "local"], indirect=True)


def plant(location: str, name: str = "corpus", **what: Any) -> Folder:
    planted_stores.plant(location, name, replace(planted_stores.Planted(), **what))
    return Folder(location, read_only=False)


def swap(folder: Folder, one: str, other: str) -> None:
    data = folder.read(one)
    folder.write(one, folder.read(other))
    folder.write(other, data)


def values_of(layer: int, block: int, capture: str = "corpus") -> str:
    return layout.shard_key(layout.values_key(capture, "mlp.post", layer), block)


READERS: dict[str, Callable[[Capture, int, int], Any]] = {
    "activations": lambda capture, layer, block: capture.activations(layer, 17),
    "block_row": lambda capture, layer, block: capture.block_row(layer, 17, block),
    "block_values": lambda capture, layer, block: capture.block_values(layer, block),
    "raw_block": lambda capture, layer, block: capture.raw_block(layer, block),
}


def assert_noticed(folder: Folder, layer: int, block: int, name: str = "corpus") -> None:
    """Every reader of the block says which it is, what is wrong and what to do; the other blocks read on."""
    for read in READERS.values():
        with pytest.raises(FormatError) as failed:
            read(Store(folder.location).capture(name), layer, block)
        message = str(failed.value)
        assert message.startswith(f"capture {name!r}, layer {layer} (mlp.post), block {block}, neuron"), message
        assert "checksum mismatch" in message
        assert "Run `store.verify()`" in message
    capture = Store(folder.location).capture(name)
    for other in set(capture.blocks) - {block}:
        capture.block_values(layer, other)


@both
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_read(location: str, precision: str) -> None:
    values = planted_stores.plant(location, "corpus", replace(planted_stores.Planted(), precision=precision))
    capture = Store(location).capture()
    assert verify_capture(capture) == []
    if precision == "exact":
        for layer, known in values.items():
            assert np.stack([capture.activations(layer, i) for i in range(40)]).tobytes() == known.tobytes()
    for layer in (0, 1):
        for block in capture.blocks:
            rows = [capture.block_row(layer, i, block) for i in range(40)]
            np.testing.assert_array_equal(np.stack(rows), capture.block_values(layer, block))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_shards_of_two_layers(location: str, precision: str) -> None:
    folder = plant(location, precision=precision)
    swap(folder, values_of(0, 1), values_of(1, 1))
    assert_noticed(folder, 0, 1)
    assert_noticed(folder, 1, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_shards_of_two_blocks(location: str, precision: str) -> None:
    folder = plant(location, precision=precision)
    folder.write(values_of(0, 1), folder.read(values_of(0, 0)))
    assert_noticed(folder, 0, 1)


def test_shards_of_two_captures(location: str) -> None:
    folder = plant(location)
    plant(location, "other", seed=5)
    swap(folder, values_of(0, 1), values_of(0, 1, "other"))
    assert_noticed(folder, 0, 1)
    assert_noticed(folder, 0, 1, "other")


def test_a_shard_of_the_same_capture_under_another_name(location: str) -> None:
    """Value for value the same: what differs is whose it is."""
    folder = plant(location)
    plant(location, "twin")
    one, other = (Store(location).capture(name).raw_block(0, 1) for name in ("corpus", "twin"))
    assert one.tobytes() == other.tobytes()
    assert folder.read(values_of(0, 1)) != folder.read(values_of(0, 1, "twin"))
    folder.write(values_of(0, 1), folder.read(values_of(0, 1, "twin")))
    assert_noticed(folder, 0, 1)


def test_two_runs_of_a_capture_have_the_same_shards(location: str, tmp_path: Path) -> None:
    one, other = plant(location), plant(str(tmp_path / "again"))
    for key in (values_of(0, 1), "captures/corpus/gate_sign/1/c/0/2"):
        assert one.read(key) == other.read(key)


@both
def test_gate_signs(location: str) -> None:
    folder = plant(location)
    swap(folder, "captures/corpus/gate_sign/0/c/0/1", "captures/corpus/gate_sign/1/c/0/1")
    for layer in (0, 1):
        with pytest.raises(
            FormatError, match=rf"capture 'corpus', layer {layer} \(gate_sign\), block 1, neurons 0 to 19: ch"
        ):
            Store(location).capture().gate_signs(layer, 1)
        Store(location).capture().gate_signs(layer, 0)


@both
@pytest.mark.parametrize(
    ("precision", "parameter"), [("int8", "scale"), ("sparse", "threshold"), ("sparse", "dropped")]
)
def test_parameters(location: str, precision: str, parameter: str) -> None:
    folder = plant(location, precision=precision)
    swap(folder, *(f"captures/corpus/{parameter}/mlp.post/{layer}/c/0/1" for layer in (0, 1)))
    for layer in (0, 1):
        with pytest.raises(
            FormatError, match=rf"layer {layer} \(mlp.post\), block 1, neurons 0 to 19: checksum mismatch"
        ):
            Store(location).capture().block_parameter(parameter, layer, 1)
    if parameter == "scale":
        folder.delete("captures/corpus/exemplars.parquet")  # which has a copy of the scales, for readers of one neuron
        for reader in ("activations", "block_row", "block_values"):
            with pytest.raises(FormatError, match=r"layer 0 \(mlp.post\), block 1, neurons 0 to 19: checksum mismatch"):
                READERS[reader](Store(location).capture(), 0, 1)


@both
def test_a_flipped_bit_is_noticed_by_whoever_reads_that_row_and_by_nobody_else(location: str) -> None:
    folder = plant(location)
    right = Store(location).capture().raw_block(0, 1)
    data = bytearray(folder.read(values_of(0, 1)))
    data[4 * 20 + 16 + 17 * 256 + 3] ^= 4  # the table, the header of a chunk stored as it is, 17 rows of 64 float32
    folder.write(values_of(0, 1), bytes(data))
    assert_noticed(folder, 0, 1)
    capture = Store(location).capture()
    for neuron in (0, 16, 18, 39):
        assert capture.block_row(0, neuron, 1).tobytes() == right[neuron].tobytes()
    with pytest.raises(FormatError, match="block 1, neuron 17: "):
        capture.raw_block(0, 1)


def test_verify_finds_a_shard_that_came_with_its_commit_record(location: str) -> None:
    """The whole file is what the record says, and still it is another layer's."""
    folder = plant(location)
    folder.write(values_of(0, 1), folder.read(values_of(1, 1)))
    commit = read_commit(folder, read_capture(folder, "corpus"), 1)
    data = folder.read(values_of(0, 1))
    shards = commit.shards | {"values/mlp.post/0/c/0/1": (len(data), checksum(data))}
    record = replace(commit, shards=shards).with_checksum()
    folder.write_json(layout.commit_key("corpus", 1), record.to_json())
    (damage,) = verify_capture(Store(location).capture())
    assert (damage.layer, damage.block, damage.key) == (0, 1, "values/mlp.post/0/c/0/1")
    assert "checksum mismatch" in damage.what


def test_one_neuron_of_an_int8_capture_reads_one_chunk_of_scales(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(location, precision="int8")
    capture = Store(location).capture()
    expected = capture.block_values(0, 1)[17]
    monkeypatch.setattr("actstore.store.files.shards.Shard.rows", None)
    np.testing.assert_array_equal(capture.block_row(0, 17, 1), expected)

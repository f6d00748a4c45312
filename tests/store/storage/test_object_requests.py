"""What reading a store on a real S3 server costs: requests and bytes, as a proxy between counts them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
import planted_stores
import pytest
from planted_stores import Planted, plant

import actstore
from actstore.store.files.bundles.reader import FIRST_TAIL_NBYTES
from actstore.store.files.plain_arrays import write_array
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from pathlib import Path

    from counting_proxy import CountingProxy
    from numpy.typing import NDArray

N_BLOCKS, SLOTS = 16, 840


@pytest.fixture(scope="module")
def blocks_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store on disk with a capture of 16 blocks at precision int8, whose shards are too large to be fetched whole."""
    path = tmp_path_factory.mktemp("blocks") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted_stores, "BLOCK_SLOTS", SLOTS)
        lengths = (SLOTS,) * N_BLOCKS
        plant(path, what=Planted(lengths, lambda n: np.arange(n, dtype=np.int32), precision="int8", gate_sign=True))
    return path


@pytest.fixture
def stored(blocks_path: Path, s3: CountingProxy) -> Store:
    """The same store on the server."""
    location = f"s3://bucket/{uuid.uuid4()}/store"
    disk, bucket = Folder(blocks_path), Folder(location, read_only=False)
    list(bucket.map(lambda key: bucket.write(key, disk.read(key)), [key for key, _ in disk.sizes()]))
    return Store(location)


def test_one_neuron_takes_three_requests_per_block_and_the_next_one_or_two(
    stored: Store, s3: CountingProxy, blocks_path: Path
) -> None:
    """Index, head of the chunk and values of each shard; then the values alone. All scales come with the exemplars."""
    disk = Store(blocks_path)
    capture = stored.capture()
    assert capture.used_slots.sum() == N_BLOCKS * SLOTS
    expected: NDArray[np.float32] = disk.neuron("L1.N33").activations()
    s3.clear()
    values = stored.neuron("L1.N33").activations()
    of_values = [request for request in s3.requests if "/c/0/" in request.path]
    assert len(of_values) == 3 * N_BLOCKS
    assert len(s3.requests) - len(of_values) <= 8  # metadata of the array, table of exemplars
    assert {request.method for request in s3.requests} == {"GET"}
    n_values = N_BLOCKS * SLOTS
    # As good as incompressible, and a shard has 40 rows of them.
    assert sum(request.nbytes for request in of_values) < 1.2 * n_values + 16 * 1200
    assert s3.nbytes < 1.2 * n_values + 16 * 1200 + (1 << 15)  # with the end of the table of exemplars
    np.testing.assert_array_equal(values, expected)
    s3.clear()
    np.testing.assert_array_equal(stored.neuron("L1.N34").activations(), disk.neuron("L1.N34").activations())
    assert len(s3.requests) == N_BLOCKS
    assert s3.nbytes < 1.1 * n_values
    s3.clear()
    np.testing.assert_array_equal(stored.neuron("L1.N3").activations(), disk.neuron("L1.N3").activations())
    assert len(s3.requests) == 2 * N_BLOCKS


def test_verify_downloads_nothing_twice(stored: Store, s3: CountingProxy, blocks_path: Path) -> None:
    location = str(stored.folder)
    nbytes = sum(path.stat().st_size for path in blocks_path.rglob("*") if path.is_file())
    s3.clear()
    assert actstore.open(location).verify() == []
    # Twice come the root, the scales, of which the table of exemplars has a copy, and the end of a table; also pages that say
    # what is not there.
    assert nbytes - 1000 < s3.nbytes < 1.04 * nbytes
    assert len(s3.requests) < len([*blocks_path.rglob("*")])


@pytest.fixture(scope="module")
def bundles_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same capture, bundled."""
    path = tmp_path_factory.mktemp("bundles") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted_stores, "BLOCK_SLOTS", 8 * SLOTS)
        what = Planted((8 * SLOTS,) * 3, lambda n: np.arange(n, dtype=np.int32), precision="int8", bundled=True)
        plant(path, what=what)
    return path


def test_the_first_neuron_of_a_bundle_takes_three_requests_per_block_and_that_of_another_layer_two(
    bundles_path: Path, s3: CountingProxy
) -> None:
    """The end of the bundle, which says where the rows of every layer are; head of the chunk and values of each shard."""
    location = f"s3://bucket/{uuid.uuid4()}/store"
    disk, bucket = Folder(bundles_path), Folder(location, read_only=False)
    list(bucket.map(lambda key: bucket.write(key, disk.read(key)), [key for key, _ in disk.sizes()]))
    assert disk.source("captures/corpus/bundles/0").nbytes > 2 * FIRST_TAIL_NBYTES
    stored, local = Store(location), Store(bundles_path)
    for neuron, n_requests in (("L1.N33", 3), ("L1.N34", 1), ("L1.N3", 2), ("L0.N2", 2), ("L0.N3", 1)):
        s3.clear()
        np.testing.assert_array_equal(stored.neuron(neuron).activations(), local.neuron(neuron).activations())
        of_values = [request for request in s3.requests if "/bundles/" in request.path]
        assert len(of_values) == n_requests * 3, neuron
        assert len(s3.requests) - len(of_values) <= 8
    s3.clear()
    np.testing.assert_array_equal(stored.capture().block_values(1, 2), local.capture().block_values(1, 2))
    # The scales lie in the end of the bundle that was fetched first.
    assert len([request for request in s3.requests if "/bundles/" in request.path]) <= 2


def test_a_bundle_is_written_in_one_upload(s3: CountingProxy) -> None:
    location = f"s3://bucket/{uuid.uuid4()}/store"
    plant(location, what=Planted(bundled=True, finish=False))
    written = [request.path for request in s3.requests if request.method == "PUT" and "/corpus/b" in request.path]
    assert sorted(path.partition("/corpus/")[2] for path in written) == sorted(
        f"{kind}{block}{end}" for block in range(3) for kind, end in (("bundles/", ""), ("blocks/", ".json"))
    )
    assert verify_capture(Store(location).peek()) == []


def test_a_scan_takes_one_request_per_shard(stored: Store, s3: CountingProxy, blocks_path: Path) -> None:
    capture, disk = stored.capture(), Store(blocks_path).capture()
    capture.block_values(1, 0)
    capture.gate_bits(1, 0)
    s3.clear()
    for block in range(1, 4):
        np.testing.assert_array_equal(capture.block_values(1, block), disk.block_values(1, block))
        np.testing.assert_array_equal(capture.gate_bits(1, block), disk.gate_bits(1, block))
    assert [request.method for request in s3.requests] == ["GET"] * 9
    assert [request.range for request in s3.requests] == [""] * 9


def test_an_array_takes_a_request_per_object(s3: CountingProxy) -> None:
    folder = Folder(f"s3://bucket/{uuid.uuid4()}/store", read_only=False)
    write_array(folder, "a/b/first", np.arange(10), ("x",))
    s3.clear()
    write_array(folder, "a/b/second", np.arange(10), ("x",))
    assert [request.method for request in s3.requests] == ["PUT", "PUT"]
    folder.delete("a")
    write_array(folder, "a/b/third", np.arange(10), ("x",))
    assert {key for key, _ in folder.sizes()} == {
        "a/zarr.json", "a/b/zarr.json", "a/b/third/zarr.json", "a/b/third/c/0"
    }  # fmt: skip

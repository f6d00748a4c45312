"""Bundles: the files of a block in one object, found under the keys that they have without."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from planted_stores import Planted, plant

from actstore.store.capture.commits import read_commit
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.writer import CaptureWriter
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.bundles.index import FOOTER, Part, chunks_of, pack_index, read_index
from actstore.store.files.bundles.reader import FIRST_TAIL_NBYTES, open_bundle
from actstore.store.files.bundles.writer import BundleWriter, write_bundle
from actstore.store.files.parquet import read_table
from actstore.store.layout import block_answers_key, bundle_key, shard_key, values_key
from actstore.store.model.remains import part_of_lost_capture
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.storage.pieces import MemorySource
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PRECISIONS = ("exact", "int8")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """The same captures, of two precisions, in files of their own and bundled."""
    stores = []
    for name in ("files", "bundles"):
        path = tmp_path_factory.mktemp(name) / "store"
        for precision in PRECISIONS:
            plant(path, precision, Planted(precision=precision, bundled=name == "bundles"))
        stores.append(Store(path))
    return stores[0], stores[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two bundled captures of other values."""
    path = tmp_path_factory.mktemp("two") / "store"
    for name, seed in (("corpus", 0), ("other", 5)):
        plant(path, name, Planted(bundled=True, precision="int8", seed=seed))
    return path


@pytest.fixture
def bundled(two: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(two, tmp_path / "store")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_everything_is_read_as_without_bundles(both: tuple[Store, Store], precision: str) -> None:
    files, bundles = (store.capture(precision) for store in both)
    assert (files.record.bundled, bundles.record.bundled) == (False, True)
    for layer, width in enumerate(planted_stores.WIDTHS):
        for neuron in range(width):
            expected = files.activations(layer, neuron)
            np.testing.assert_array_equal(bundles.activations(layer, neuron), expected)
        for block in range(3):
            np.testing.assert_array_equal(bundles.raw_block(layer, block), files.raw_block(layer, block))
            np.testing.assert_array_equal(bundles.gate_bits(layer, block), files.gate_bits(layer, block))
    assert bundles.neurons().to_arrow().equals(files.neurons().to_arrow())
    assert verify_capture(bundles) == []


def test_a_bundle_is_the_files_one_behind_another(both: tuple[Store, Store]) -> None:
    """The same bytes under the same keys, with the same checksums: what a bundle adds is an index."""
    files, bundles = (store.capture("int8") for store in both)
    for block in range(3):
        written, expected = (
            read_commit(bundles.folder, bundles.record, block),
            read_commit(files.folder, files.record, block),
        )
        assert written.shards == expected.shards
        keys = [f"captures/int8/{key}" for key in written.shards]
        data = b"".join(files.folder.read(key) for key in keys)
        bundle = bundles.folder.read(bundle_key("int8", block))
        assert bundle.startswith(data)
        assert len(bundle) < len(data) + 600
        for key in keys:
            expected_bytes = files.folder.read(key)
            assert bundles.folder.read(key) == bytes(bundles.folder.view(key)) == expected_bytes
            assert bundles.folder.read(key, 3, 10) == expected_bytes[3:10]
            assert bundles.folder.exists(key)
        assert not bundles.folder.exists(keys[0].replace("/0/c", "/7/c"))
    names = {key.split("/")[2] for key, _ in bundles.folder.sizes("captures/int8") if key.split("/")[-1].isdigit()}
    assert names == {"bundles", "inputs", "tokens", "statistics"}


def test_other_programs_refuse_an_array_whose_shards_are_elsewhere(both: tuple[Store, Store]) -> None:
    """They would take every block for empty."""
    path = both[1].folder.location
    with pytest.raises(ValueError, match="storage transformers"):
        zarr.open_array(path, path=values_key("exact", "mlp.post", 0), mode="r")
    assert zarr.open_array(path, path="captures/exact/tokens/ids", mode="r").shape == (192,)


def test_the_index_of_a_shard_follows_from_the_lengths_of_its_chunks(both: tuple[Store, Store]) -> None:
    folder, record = both[1].folder, both[1].capture("int8").record
    n_shards = 0
    for spec in block_arrays(record):
        source = folder.source(shard_key(spec.key, 1), tail=4096)
        n_tail = 16 * spec.grid.grid[0] * spec.grid.grid[1] + 4
        whole = both[0].folder.read(shard_key(spec.key, 1))
        assert bytes(source.read(source.nbytes - n_tail, source.nbytes)) == whole[-n_tail:]
        assert bytes(source.read(2, source.nbytes)) == whole[2:], "across the border"
        with pytest.raises(EOFError):
            source.read(0, source.nbytes + 1)
        gap, chunks = chunks_of(whole[-n_tail:])
        assert Part(0, 0, gap, chunks).tail == whole[-n_tail:]
        n_shards += 1
    assert n_shards == 6
    odd = np.array([8, 4, 0, 8], "<u8").tobytes() + b"sum!"
    assert len(chunks_of(odd)[1]) == 0, "chunks in another order, which must then be looked up"


@pytest.mark.parametrize("order", [(3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0), (3, 0, 2, 1, 1, 2, 0, 3, 0, 1, 2, 3)])
def test_bytes_do_not_depend_on_which_thread_is_faster(tmp_path: Path, order: tuple[int, ...]) -> None:
    """`order`: the files, numbered, of which a thread each gives the next of three parts."""
    folder, seen = Folder(tmp_path, read_only=False), []
    for name, numbers in (("even", sorted(order)), ("odd", order)):
        writer, turn, to_come = BundleWriter(folder, name), threading.Condition(), list(numbers)

        def parts(number: int, turn: threading.Condition = turn, to_come: list[int] = to_come) -> Iterator[bytes]:
            for _ in range(3):
                with turn:
                    assert turn.wait_for(lambda: to_come[0] == number, 60)
                yield bytes([number]) * 5
                with turn:  # asked for the next part, the writer has taken this one
                    to_come.pop(0)
                    turn.notify_all()

        def add(number: int, writer: BundleWriter = writer, parts: Callable[[int], Iterator[bytes]] = parts) -> None:
            writer.add(number, f"key-{number}", parts(number))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert to_come == []
        writer.close()
        seen.append(folder.read(name))
    assert seen[0] == seen[1]
    assert seen[0].startswith(bytes([0] * 15 + [1] * 15 + [2] * 15 + [3] * 15))


def test_a_file_that_cannot_be_encoded_ends_the_others(tmp_path: Path) -> None:
    """They wait for their turn, which never comes; all of them tell the same reason, and nothing is left."""
    folder, errors = Folder(tmp_path, read_only=False), []
    writer = BundleWriter(folder, "bundle")

    def parts(number: int) -> Any:
        yield b"some"
        if number == 1:
            raise ZeroDivisionError("of the first")

    def add(number: int) -> None:
        try:
            writer.add(number, f"{number}", parts(number))
        except ZeroDivisionError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=add, args=(number,)) for number in (2, 3, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == ["of the first"] * 3
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def damages(data: bytes) -> dict[str, bytes]:
    """A bundle with one thing changed, by what it is."""
    index = len(data) - FOOTER.size - FOOTER.unpack(data[-FOOTER.size :])[0]
    flip = {"a file": 500, "the index": index + 9, "the footer": len(data) - 13, "the mark": len(data) - 2}
    changed = {name: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for name, at in flip.items()}
    return changed | {"cut": data[:-1], "longer": data + b"x", "empty": b"", "its index alone": data[index:]}


def test_a_damaged_bundle_is_found_and_named(bundled: Path) -> None:
    path = bundled / bundle_key("corpus", 1)
    data = path.read_bytes()
    expected = Store(bundled).capture("corpus").activations(1, 3)
    for name, changed in damages(data).items():
        path.write_bytes(changed)
        damage = verify_capture(Store(bundled).peek("corpus"))
        blocks = {one.block for one in damage if one.block is not None}
        assert blocks == {1}, (name, damage)
        (first, *_) = damage
        if name == "a file":
            assert (first.layer, first.site, first.key) == (1, "mlp.post", "values/mlp.post/1/c/0/1")
        else:
            assert first.key == "bundles/1"
            with pytest.raises(FormatError, match=r"bundles/1 is damaged: .*store\.repair"):
                Store(bundled).capture("corpus").activations(1, 3)
    path.unlink()
    first = verify_capture(Store(bundled).peek("corpus"))[0]
    assert (first.block, first.key, first.what) == (1, "bundles/1", "missing")
    with pytest.raises(NotFoundError, match=r"has no captures/corpus/values/mlp\.post/1/c/0/1"):
        Store(bundled).capture("corpus").activations(1, 3)
    path.write_bytes(data)
    np.testing.assert_array_equal(Store(bundled).capture("corpus").activations(1, 3), expected)


@pytest.mark.parametrize("other", [bundle_key("corpus", 0), bundle_key("other", 1)])
def test_the_bundle_of_another_block_or_capture_is_refused(bundled: Path, other: str) -> None:
    path = bundled / bundle_key("corpus", 1)
    path.write_bytes((bundled / other).read_bytes())
    with pytest.raises((FormatError, NotFoundError)):
        Store(bundled).capture("corpus").activations(1, 3)
    assert {one.block for one in verify_capture(Store(bundled).peek("corpus"))} >= {1}


def test_answers_are_read_out_of_a_bundle(bundled: Path) -> None:
    """Libraries that read files in place are not told a path where no file is."""
    folder, key = Folder(bundled, read_only=False), block_answers_key("corpus", 0)
    record = Store(folder).capture("corpus").record
    table, sink = pa.table({"document": [1, 2, 3]}), pa.BufferOutputStream()
    pq.write_table(table, sink)
    arrays = {spec.key: np.zeros((spec.rows, spec.columns), spec.dtype) for spec in block_arrays(record)}
    with CaptureWriter(folder, record, n_threads=2, overlap=False) as writer:
        writer.submit(0, arrays, CaptureStatistics.empty(record), 0.0, {key: sink.getvalue().to_pybytes()})
    assert [*read_commit(folder, record, 0).shards][-1] == "blocks/0.answers.parquet"
    assert not (bundled / key).exists()
    assert read_table(folder, key).equals(table)
    assert folder.local_path(key) is None
    assert folder.local_path(bundle_key("corpus", 0)) == bundled / "captures/corpus/bundles/0"


def test_a_copy_has_the_same_bytes_or_is_not_made(bundled: Path, tmp_path: Path) -> None:
    folder, target = Folder(bundled), Folder(tmp_path / "copy", read_only=False)
    record = Store(folder).capture("corpus").record
    files, bundle = read_commit(folder, record, 2).shards, open_bundle(folder, record, 2)
    write_bundle(target, record, 2, ((key, bundle) for key in files), files)
    assert target.read(bundle_key("corpus", 2)) == folder.read(bundle_key("corpus", 2))
    wrong = files | {"scale/mlp.post/1/c/0/2": (files["scale/mlp.post/1/c/0/2"][0], "0" * 8)}
    with pytest.raises(
        FormatError, match=r"^scale/mlp.post/1/c/0/2 of captures/corpus/bundles/2 is damaged: \d+ bytes of"
    ):
        write_bundle(Folder(tmp_path / "none", read_only=False), record, 2, ((key, bundle) for key in files), wrong)
    assert not [path for path in (tmp_path / "none").rglob("*") if path.is_file()]


def test_a_bundle_proves_that_there_was_a_record(tmp_path: Path) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write(bundle_key("corpus", 3), b"bundle")
    assert part_of_lost_capture(folder, "corpus") == "captures/corpus/bundles/3"


def test_an_index_that_cannot_be_is_refused() -> None:
    empty = np.empty(0, "<u4")
    good = [("a", 4, 0, empty), ("b", 2, 12, np.array([1, 1], "<u4"))]
    n, parts = read_index(MemorySource(b"aaaabb" + pack_index(good)))
    assert (parts["b"].at, parts["b"].nbytes, parts["b"].gap, n) == (4, 2, 12, len(pack_index(good)))
    for bad in (b"aaaab" + pack_index(good), b"aaaabb" + pack_index([("a", -4, 0, empty), ("b", 10, 0, empty)])):
        with pytest.raises(ValueError, match="its "):
            read_index(MemorySource(bad))


def test_a_reader_sees_a_bundle_that_took_the_place_of_another(bundled: Path) -> None:
    """Its index is kept, and is another's once the file is."""
    capture = Store(bundled).capture("corpus")
    before = capture.block_values(1, 0)
    folder = Folder(bundled, read_only=False)
    with CaptureWriter(folder, capture.record, n_threads=2, overlap=False) as writer:
        arrays = {spec.key: np.zeros((spec.rows, spec.columns), spec.dtype) for spec in block_arrays(capture.record)}
        writer.submit(0, arrays, CaptureStatistics.empty(capture.record), began=0.0)
    assert open_bundle(capture.folder, capture.record, 0).keys == open_bundle(folder, capture.record, 0).keys
    assert before.any()
    assert not Store(capture.folder).capture("corpus").block_values(1, 0).any()


def test_the_end_that_is_fetched_first_holds_the_index_of_a_small_model(both: tuple[Store, Store]) -> None:
    assert both[1].folder.source(bundle_key("int8", 0)).nbytes < FIRST_TAIL_NBYTES

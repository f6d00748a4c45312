"""A store on a static web server: read by name, neither listed nor written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from planted_stores import Planted, plant
from static_server import StaticServer

import actstore
from actstore.store.errors import NotFoundError, StorageError
from actstore.store.storage.folder import Folder
from actstore.store.storage.objects.storage import HttpStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("with_range", [True, False])
def test_keys_are_read(tmp_path: Path, with_range: bool) -> None:
    """With ranges, and whole from a server that has none."""
    data = bytes(range(256)) * 100
    disk = Folder(tmp_path / "a store", read_only=False)
    disk.write("a b/é%20.bin", data)
    disk.write("empty", b"")
    server = StaticServer(tmp_path, with_range=with_range)
    folder = Folder(f"{server.url}/a store")
    assert type(folder.storage) is HttpStorage
    assert (folder.exists("a b/é%20.bin"), folder.exists("a b"), folder.exists("none")) == (True, False, False)
    assert bytes(folder.view("a b/é%20.bin")) == folder.read("a b/é%20.bin") == data
    assert folder.read("a b/é%20.bin", 10, 20) == data[10:20]
    assert folder.read("a b/é%20.bin", 25_590, 99_999) == data[-10:]
    assert (folder.read("empty"), folder.source("empty").nbytes) == (b"", 0)
    source = folder.source("a b/é%20.bin", tail=100)
    assert (source.nbytes, bytes(source.read(10, 300))) == (25_600, data[10:300])
    with pytest.raises(NotFoundError) as caught:
        folder.read("none")
    assert str(caught.value) == f"{server.url}/a store has no none."
    server.close()


def test_nothing_is_listed_or_written(tmp_path: Path) -> None:
    folder = Folder("http://127.0.0.1:1/store", read_only=False)
    calls: dict[str, list[Callable[[], object]]] = {
        "listed: a web server lists nothing": [lambda: folder.names(""), lambda: folder.sizes("")],
        "written: it is read over HTTP": [
            lambda: folder.write("key", b"x"),
            lambda: folder.create("key", b"x"),
            lambda: folder.swap("key", b"x", b"y"),
            lambda: folder.writer("key"),
            lambda: folder.delete("key"),
        ],
    }
    for reason, each in calls.items():
        for call in each:
            with pytest.raises(StorageError) as caught:
                call()
            assert str(caught.value) == (
                f"{folder} cannot be {reason}. Use the store by a path, or at an s3://, gs:// or az:// location."
            )


def test_a_store_is_opened(tmp_path: Path) -> None:
    plant(tmp_path / "store")
    server = StaticServer(tmp_path)
    store = actstore.open(f"{server.url}/store")
    assert store.model.name == "planted"
    assert store.token_text(17) == " w17"
    server.close()


@pytest.mark.parametrize("with_range", [True, False])
def test_a_store_is_read_whole_as_on_disk(tmp_path: Path, with_range: bool) -> None:
    """Captures, blocks, tables and exemplars, none of which is found by listing."""
    plant(tmp_path / "store")
    plant(tmp_path / "store", "other", Planted(seed=3, precision="int8"))
    server, disk = StaticServer(tmp_path, with_range=with_range), actstore.open(tmp_path / "store")
    store = actstore.open(f"{server.url}/store")
    assert store.captures == ("corpus", "other")
    for name in store.captures:
        ours, theirs = store.capture(name), disk.capture(name)
        assert (ours.is_finished, ours.blocks) == (True, theirs.blocks)
        assert ours.tokens().to_arrow() == theirs.tokens().to_arrow()
        assert ours.neurons().to_arrow() == theirs.neurons().to_arrow()
        for layer, neuron in ((0, 0), (1, 7)):
            assert np.array_equal(ours.activations(layer, neuron), theirs.activations(layer, neuron), equal_nan=True)
            one, other = (of.neuron(layer, neuron).exemplars(3, name).to_arrow() for of in (store, disk))
            assert one == other
    query = "select layer, neuron, mean from other.neurons order by all"
    assert store.sql(query, "other").to_arrow() == disk.sql(query, "other").to_arrow()
    server.close()

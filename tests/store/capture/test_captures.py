"""Captures by name: one that is damaged hides no other, and nothing is read more often than it must be."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import planted_stores
import pytest

from actstore.display.reports import describe_store
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.model.remains import part_of_lost_capture
from actstore.store.reader import Store, read_capture
from actstore.store.storage.folder import Folder
from actstore.store.verify import open_captures

if TYPE_CHECKING:
    from pathlib import Path

FEW = planted_stores.Planted(lengths=(8,), gate_sign=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    planted_stores.plant(tmp_path / "store", "corpus", FEW)
    planted_stores.plant(tmp_path / "store", "second", FEW)
    return tmp_path / "store"


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "gone", "no record"])
def test_a_damaged_record_is_named_and_hides_no_other(
    path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = path / "captures/second/zarr.json"
    data = file.read_bytes()
    damaged = {
        "empty": b"", "cut": data[:200], "flipped": data.replace(b'"exact"', b'"half"'), "no record": b'{"attributes": {}}'
    }  # fmt: skip
    file.unlink() if damage == "gone" else file.write_bytes(damaged[damage])
    store = Store(path)
    with caplog.at_level(logging.WARNING, "actstore"):
        assert (store.captures, store.captures) == (("corpus",), ("corpus",))
    (message,) = caplog.messages
    assert message.startswith("Capture 'second' is left out, as it cannot be read: ")
    assert store.capture().record.name == "corpus"
    with pytest.raises(FormatError) as caught:
        store.capture("second")
    assert describe_store(store)["damaged"] == {"second": str(caught.value)}
    captures, damages = open_captures(store)
    assert [one.record.name for one in captures] == ["corpus"]
    assert [(one.capture, one.key, one.what) for one in damages] == [
        ("second", "zarr.json", caught.value.found.rstrip("."))
    ]
    assert open_captures(store, "second") == ([], damages)


def test_the_capture_that_is_meant_is_not_guessed_beside_a_damaged_one(path: Path) -> None:
    (path / "captures/corpus").rename(path / "captures/first")
    shutil.rmtree(path / "captures/first")
    (path / "captures/second/zarr.json").write_bytes(b"")
    planted_stores.plant(path, "third", FEW)
    with pytest.raises(NotFoundError, match="has no capture 'corpus'"):
        Store(path).capture()


@pytest.mark.parametrize("left", ["blocks/0.json", "values/mlp.post/1/c/0/0", "statistics/mlp.post/mean/zarr.json"])
def test_whatever_comes_after_a_record_proves_that_there_was_one(path: Path, left: str) -> None:
    data = (path / "captures/second" / left).read_bytes()
    shutil.rmtree(path / "captures/second")
    (path / "captures/second" / left).parent.mkdir(parents=True)
    (path / "captures/second" / left).write_bytes(data)
    with pytest.raises(
        FormatError, match=r"the record of capture 'second' is lost. Restore it from a copy, or delete "
    ):
        Store(path).capture("second")


def test_a_record_that_is_written_while_it_is_looked_for_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = path / "captures/second/zarr.json"
    data = file.read_bytes()
    file.unlink()

    def write_first(folder: Folder, name: str) -> str | None:
        file.write_bytes(data)
        return part_of_lost_capture(folder, name)

    monkeypatch.setattr("actstore.store.capture.record.part_of_lost_capture", write_first)
    record = read_capture(Folder(path), "second")
    assert record is not None
    assert record.name == "second"


def test_a_plan_that_was_not_finished_is_no_lost_capture(path: Path) -> None:
    for part in ("blocks", "statistics"):
        shutil.rmtree(path / "captures/second" / part)
    for file in (path / "captures/second").glob("*/**/c"):
        shutil.rmtree(file)
    (path / "captures/second/neurons.parquet").unlink()
    (path / "captures/second/zarr.json").unlink()
    assert [file.name for file in (path / "captures/second/values/mlp.post/1").iterdir()] == ["zarr.json"]
    with pytest.raises(NotFoundError, match=r"has no capture 'second'. Its captures are: corpus."):
        Store(path).capture("second")


@pytest.mark.parametrize(
    "name", ["../store/captures/corpus", "", ".", "..", "zarr.json", "a/b", "x" * 300, "a\0b", "\ud800"]
)
def test_a_name_that_is_none_is_not_found(path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="has no capture"):
        Store(path).capture(name)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each record of a capture, or list of captures, is read from now on."""
    counts: Counter[str] = Counter()
    for method in ("read", "names"):
        original = getattr(Folder, method)

        def counted(self: Folder, key: str, *rest: Any, _original: Any = original) -> Any:
            if key == "captures" or (
                key.startswith("captures/") and key.endswith("/zarr.json") and key.count("/") == 2
            ):
                counts[key] += 1
            return _original(self, key, *rest)

        monkeypatch.setattr(Folder, method, counted)
    return counts


def test_reading_many_captures_is_linear_in_them(path: Path, reads: Counter[str]) -> None:
    names = ["corpus", "second"]
    for number in range(6):
        names.append(f"more-{number}")
        planted_stores.plant(path, names[-1], FEW)
    reads.clear()
    store = Store(path)
    describe_store(store)
    assert reads == {"captures": 1} | {f"captures/{name}/zarr.json": 1 for name in names}
    reads.clear()
    for name in names:
        store.capture(name)
    assert not reads
    store = Store(path)
    store.capture("more-3")
    assert reads == {"captures/corpus/zarr.json": 1, "captures/more-3/zarr.json": 1}  # the first says whose the root is
    reads.clear()
    neuron = store.neuron(1, 3)
    for _ in range(5):
        neuron.activations()
        neuron.activations("more-3")
    assert not reads

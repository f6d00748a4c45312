"""What came from elsewhere is refused: captures of another store, model or name, blocks of another capture."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import planted_stores
import pytest

from actstore.store.capture.commits import read_commit
from actstore.store.errors import FormatError
from actstore.store.files.records import with_checksum
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import open_captures, verify_capture

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    planted_stores.plant(tmp_path / "store")
    return tmp_path / "store"


def change_record(path: Path, **changes: Any) -> None:
    """Write the record of the capture `corpus` with other values; None takes one out, as earlier versions had it."""
    file = path / "captures/corpus/zarr.json"
    group = json.loads(file.read_text())
    values = group["attributes"]["actstore_capture"] | changes
    values = {key: value for key, value in values.items() if value is not None or key not in changes}
    group["attributes"]["actstore_capture"] = with_checksum(values)
    file.write_text(json.dumps(group))


def test_a_capture_of_another_store_is_refused(path: Path, tmp_path: Path) -> None:
    planted_stores.plant(tmp_path / "other", "copied", planted_stores.Planted(seed=7))
    shutil.copytree(tmp_path / "other/captures/copied", path / "captures/copied")
    ours, theirs = (root.read_root_id(Folder(where)) for where in (path, tmp_path / "other"))
    with pytest.raises(FormatError) as caught:
        Store(path).capture("copied")
    assert str(caught.value) == (
        f"{path}/captures/copied was captured into another store (root {theirs[:12]}…) than the one it lies in (root "
        f"{ours[:12]}…). Restore the capture, or the store's zarr.json, from a copy."
    )
    assert Store(path).capture("corpus").is_finished
    captures, damage = open_captures(Store(path))
    assert [one.record.name for one in captures] == ["corpus"]
    assert [(one.capture, one.key, one.what) for one in damage] == [
        ("copied", "zarr.json", caught.value.found.rstrip("."))
    ]


def test_the_root_of_another_store_is_refused_at_opening(path: Path, tmp_path: Path) -> None:
    planted_stores.plant(tmp_path / "other")
    shutil.copy(tmp_path / "other/zarr.json", path / "zarr.json")
    with pytest.raises(FormatError, match="was captured into another store"):
        Store(path)


def test_one_capture_of_its_own_settles_that_a_root_is_not_another_stores(path: Path, tmp_path: Path) -> None:
    planted_stores.plant(tmp_path / "other")
    shutil.copytree(path / "captures/corpus", path / "captures/copied")
    (path / "captures/copied/zarr.json").write_text("damaged")
    shutil.rmtree(path / "captures/corpus")
    shutil.copytree(tmp_path / "other/captures/corpus", path / "captures/corpus")
    with pytest.raises(FormatError, match="was captured into another store"):
        Store(path)  # no readable capture is the root's
    change_record(path, root=root.read_root_id(Folder(path)))
    assert Store(path).capture("corpus").is_finished


def test_a_capture_of_another_model_is_refused_in_stores_of_any_version(path: Path) -> None:
    folder = Folder(path, read_only=False)
    model = dataclasses.replace(planted_stores.model_record(), fingerprint="e" * 64)
    planted_stores.change_root(folder, model=model.to_json(), id=None, files=None)
    change_record(path, root=None, identity=None)
    with pytest.raises(
        FormatError, match=r"is a capture of another model \(fingerprint ffffffffffff…\) than that of the store"
    ):
        Store(path)


def test_a_capture_under_another_name_is_refused(path: Path) -> None:
    (path / "captures/corpus").rename(path / "captures/renamed")
    with pytest.raises(FormatError, match="the record of a capture 'corpus', which lies in the folder of 'renamed'"):
        Store(path).capture("renamed")


@pytest.mark.parametrize("what", [{"seed": 1}, {"precision": "half"}, {"n_exemplars": 2}])
def test_a_block_of_another_capture_is_refused(path: Path, tmp_path: Path, what: dict[str, Any]) -> None:
    planted_stores.plant(tmp_path / "other", "corpus", dataclasses.replace(planted_stores.Planted(), **what))
    for file in (tmp_path / "other/captures/corpus/blocks").glob("1.*"):
        shutil.copy(file, path / "captures/corpus/blocks" / file.name)
    shutil.rmtree(path / "captures/corpus/statistics")
    (path / "captures/corpus/neurons.parquet").unlink()
    name = "plan" if "seed" in what else "identity"
    capture = Store(path).capture("corpus")
    with pytest.raises(
        FormatError, match=f"blocks/1.json belongs to another capture: its {name} is [0-9a-f]{{12}}, expected"
    ):
        capture.statistics()
    assert "blocks/1.json" in [damage.key for damage in verify_capture(capture)]


def test_a_block_that_does_not_say_whose_it_is_is_refused_by_a_capture_that_does(path: Path) -> None:
    record = Store(path).capture("corpus").record
    commit = dataclasses.replace(read_commit(Folder(path), record, 1), identity="", capture="").with_checksum()
    (path / "captures/corpus/blocks/1.json").write_text(json.dumps(commit.to_json()))
    with pytest.raises(FormatError, match="belongs to another capture: its capture is not said, expected corpus"):
        read_commit(Folder(path), record, 1)

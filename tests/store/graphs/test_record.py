"""Graphs of another model, or of another capture under the same name, are refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import planted_stores
import pytest
from planted_graphs import plant_graphs

from actstore.store.errors import FormatError
from actstore.store.files.records import with_checksum
from actstore.store.graphs.reader import Graphs
from actstore.store.reader import Store
from actstore.store.verify import verify_graphs

if TYPE_CHECKING:
    from pathlib import Path

LINES = {(0, 1): [((7,), 0.5, 4, 2)], (1, 3): [((8,), 0.9, 3, 3)]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return plant(tmp_path / "store")


def plant(path: Path, **what: Any) -> Path:
    planted_stores.plant(path, "corpus", planted_stores.Planted(**what))
    store = Store(path)
    plant_graphs(store, LINES, capture_identity=store.capture("corpus").record.identity)
    return path


def check_refused(path: Path, what: str) -> None:
    with pytest.raises(FormatError, match=rf"^Graphs 'graphs' of .* are of another {what}.*Build them again"):
        Graphs(Store(path))
    with pytest.raises(FormatError, match="are of another"):
        Store(path).graph(0, 1)
    names, damage = verify_graphs(Store(path).folder)
    assert names == ["graphs"]
    assert [(one.graphs, one.key) for one in damage] == [("graphs", "graphs/graphs/graph.json")]


def change_record(path: Path, **changes: Any) -> None:
    file = path / "graphs/graphs/graph.json"
    file.write_text(json.dumps(with_checksum(json.loads(file.read_text()) | changes)))


def test_graphs_of_their_own_capture_are_read(path: Path) -> None:
    assert len(Graphs(Store(path))) == 2
    assert verify_graphs(Store(path).folder) == (["graphs"], [])


@pytest.mark.parametrize(("what", "differs"), [({"seed": 3}, "plan"), ({"precision": "half"}, "fingerprint")])
def test_graphs_of_another_store_are_refused(path: Path, tmp_path: Path, what: dict[str, Any], differs: str) -> None:
    shutil.rmtree(path / "graphs")
    shutil.copytree(plant(tmp_path / "other", **what) / "graphs", path / "graphs")
    check_refused(path, f"capture 'corpus'.*{differs}")


def test_graphs_of_another_model_are_refused(path: Path) -> None:
    change_record(path, model_fingerprint="e" * 64)
    check_refused(path, "model: fingerprint eeeeeeeeeeee…, expected ffffffffffff…")


def test_graphs_of_an_earlier_version_are_compared_by_their_plan(path: Path) -> None:
    change_record(path, capture_identity="")
    assert len(Graphs(Store(path))) == 2


def test_graphs_outlive_their_capture(path: Path) -> None:
    shutil.rmtree(path / "captures/corpus")
    assert len(Graphs(Store(path))) == 2


def test_graphs_under_another_name_are_refused(path: Path) -> None:
    shutil.copytree(path / "graphs/graphs", path / "graphs/others")
    with pytest.raises(FormatError, match="is the record of other graphs, 'graphs'"):
        Graphs(Store(path), "others")
    names, damage = verify_graphs(Store(path).folder)
    assert (set(names), [one.graphs for one in damage]) == ({"graphs", "others"}, ["others"])

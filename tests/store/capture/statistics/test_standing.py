"""How far a capture is, by what of its last step is there."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from counted_storage import counting

from actstore.store.capture.statistics.standing import standing
from actstore.store.reader import Store
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(planted: Any) -> Path:
    """A finished capture of three blocks."""
    found: Path = planted[0].folder.local_path()
    return found


def remove(path: Path, *keys: str) -> None:
    for key in keys:
        target = path / "captures/corpus" / key
        shutil.rmtree(target) if target.is_dir() else target.unlink()


def test_a_finished_capture(path: Path) -> None:
    found = standing(Store(path).capture())
    assert (found.is_filled, found.is_finished, found.is_unfinished, found.lost) == (True, True, False, ())


@pytest.mark.parametrize("scheme", ["", "counted://", "static://"])
def test_a_table_that_was_there_is_lost_wherever_the_store_lies(path: Path, scheme: str) -> None:
    remove(path, "neurons.parquet")
    with counting():
        capture = Store(f"{scheme}{path}").peek("corpus")
        found = standing(capture)
        assert verify_capture(capture) == [*found.lost]
    assert (found.is_filled, found.is_finished, found.is_unfinished) == (True, False, False)
    assert [str(one) for one in found.lost] == [
        "capture 'corpus', the capture as a whole: neurons.parquet: missing, and committed.json, which is written after it, "
        "is there"
    ]


@pytest.mark.parametrize(
    "gone",
    [
        ("committed.json", "neurons.parquet", "statistics"),
        ("committed.json", "neurons.parquet"),
        ("committed.json",),
        ("committed.json", "neurons.parquet", "statistics", "blocks/1.json"),
    ],
)
def test_a_capture_that_was_not_finished_lacks_nothing(path: Path, gone: tuple[str, ...]) -> None:
    """The last step may have been interrupted anywhere."""
    remove(path, *gone)
    capture = Store(path).peek("corpus")
    found = standing(capture)
    assert (found.is_filled, found.is_unfinished, found.lost) == ("blocks/1.json" not in gone, True, ())
    assert verify_capture(capture) == []


@pytest.mark.parametrize("left", ["committed.json", "neurons.parquet", "statistics"])
def test_whatever_is_written_after_the_last_block_says_that_a_block_is_lost(path: Path, left: str) -> None:
    remove(path, *({"committed.json", "neurons.parquet", "statistics"} - {left}), "blocks/1.json")
    found = standing(Store(path).peek("corpus"))
    assert [(one.block, one.key) for one in found.lost] == [(1, "blocks/1.json")]


def test_a_capture_of_an_earlier_version_has_no_index(path: Path) -> None:
    remove(path, "committed.json")
    capture = Store(path).peek("corpus")
    assert standing(capture).is_unfinished
    capture.record = dataclasses.replace(capture.record, identity="")
    assert standing(capture).is_finished

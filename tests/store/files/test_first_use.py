"""A file that is read in part is checked when it is first used, and again whenever it may be another."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from actstore.store.files import first_use
from actstore.store.files.first_use import check_at_first_use
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

OLD_NS = time.time_ns() - 10**12


@pytest.fixture
def checks() -> list[str]:
    """What was checked, one entry per time."""
    return []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder with an old file `a`; what was written a moment ago counts as old."""
    monkeypatch.setattr(first_use, "_TOO_RECENT_NS", -(10**12))
    (tmp_path / "a").write_bytes(b"abc")
    os.utime(tmp_path / "a", ns=(OLD_NS, OLD_NS))
    return Folder(tmp_path)


def test_the_same_file_is_checked_once(folder: Folder, checks: list[str]) -> None:
    for _ in range(3):
        check_at_first_use(folder, "a", lambda: checks.append("a"))
    assert checks == ["a"]


@pytest.mark.parametrize("change", ["written in place", "replaced", "replaced, with its old times", "longer"])
def test_a_file_that_changed_is_checked_again(folder: Folder, tmp_path: Path, checks: list[str], change: str) -> None:
    check_at_first_use(folder, "a", lambda: checks.append("first"))
    if change == "written in place":
        (tmp_path / "a").write_bytes(b"abd")
    elif change == "longer":
        (tmp_path / "a").write_bytes(b"abcd")
        os.utime(tmp_path / "a", ns=(OLD_NS, OLD_NS))
    else:
        (tmp_path / "b").write_bytes(b"abd")
        if "times" in change:
            os.utime(tmp_path / "b", ns=(OLD_NS, OLD_NS))
        (tmp_path / "b").replace(tmp_path / "a")
    check_at_first_use(folder, "a", lambda: checks.append("again"))
    assert checks == ["first", "again"]


def test_a_damaged_file_is_checked_each_time(folder: Folder, checks: list[str]) -> None:
    def refuse() -> None:
        checks.append("a")
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            check_at_first_use(folder, "a", refuse)
    assert checks == ["a", "a"]


def test_a_file_that_changes_while_it_is_checked_is_not_remembered(
    folder: Folder, tmp_path: Path, checks: list[str]
) -> None:
    def change() -> None:
        checks.append("a")
        (tmp_path / "a").write_bytes(b"x" * len(checks))

    for _ in range(2):
        check_at_first_use(folder, "a", change)
    assert checks == ["a", "a"]


def test_what_was_written_a_moment_ago_is_not_remembered(tmp_path: Path, checks: list[str]) -> None:
    """It may be written once more within the same tick of the disk's clock."""
    (tmp_path / "a").write_bytes(b"abc")
    for _ in range(2):
        check_at_first_use(Folder(tmp_path), "a", lambda: checks.append("a"))
    assert checks == ["a", "a"]


def test_elsewhere_than_on_disk_it_is_checked_each_time(checks: list[str]) -> None:
    folder = Folder("memory://first-use", read_only=False)
    folder.write("a", b"abc")
    for _ in range(2):
        check_at_first_use(folder, "a", lambda: checks.append("a"))
    assert checks == ["a", "a"]

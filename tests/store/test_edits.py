"""An edit lies in a store of the model that it is of."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import planted_stores
import pytest

from actstore.store.edits import Edit, EditRecord, delete_edit, edit_names, read_edit, read_record, write_edit
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.records import with_checksum
from actstore.store.model import root
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_root

if TYPE_CHECKING:
    from pathlib import Path


def an_edit(fingerprint: str, name: str = "louder") -> Edit:
    specification = {"neurons": {"0": [1]}, "factor": 2.0}
    record = EditRecord(
        name, "intervention", "boost", "actstore 0", "2026-01-01", "planted", fingerprint, "float32", {},
        specification=specification,
    )  # fmt: skip
    return Edit(record, {})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "store", read_only=False)
    root.write_neurons(folder, planted_stores.model_record(), None)
    root.write_root(folder, planted_stores.model_record())
    return folder


def test_an_edit_of_another_model_is_refused_wherever_it_is_read(folder: Folder, tmp_path: Path) -> None:
    write_edit(folder, an_edit("f" * 64))
    elsewhere = Folder(tmp_path / "elsewhere", read_only=False)
    write_edit(elsewhere, an_edit("e" * 64, "copied"))
    shutil.copytree(tmp_path / "elsewhere/edits/copied", tmp_path / "store/edits/copied")
    assert read_edit(folder, "louder").name == "louder"
    for read in (read_record, read_edit):
        with pytest.raises(FormatError) as caught:
            read(folder, "copied")
        assert str(caught.value) == (
            f"{folder}/edits/copied/edit.json is an edit of another model, planted (fingerprint eeeeeeeeeeee…), than the "
            "store's, planted (fingerprint ffffffffffff…). Make the edit again, or restore it from a copy."
        )
    # Nobody has told the index of it: a reader of a location that cannot be listed would not see it.
    index, damage = verify_root(folder)
    assert (damage.key, damage.what) == ("edits/copied/edit.json", caught.value.found.rstrip("."))
    assert (index.key, "does not list 'copied'" in index.what) == ("edits.json", True)
    # In a folder of its own it is an edit as any other.
    assert read_edit(Folder(tmp_path / "store/edits/copied")).name == "copied"
    delete_edit(folder, "copied")
    assert edit_names(folder) == ("louder",)


def test_what_a_killed_removal_left_is_removed_by_the_next(folder: Folder, tmp_path: Path) -> None:
    write_edit(folder, an_edit("f" * 64))
    path = tmp_path / "store/edits/louder"
    (path / "edit.json").unlink()
    (path / "delta.safetensors").write_bytes(b"of an edit with weights")
    delete_edit(folder, "louder")
    assert not path.exists()
    write_edit(folder, an_edit("f" * 64, "other"))
    for name in ("louder", "../edits", "..", "."):
        with pytest.raises(NotFoundError, match="there is none"):
            delete_edit(folder, name)
    assert edit_names(folder) == ("other",)
    assert not path.exists()


def test_a_removal_that_was_killed_before_the_index_was_written_is_completed_by_the_next(
    folder: Folder, tmp_path: Path
) -> None:
    write_edit(folder, an_edit("f" * 64))
    shutil.rmtree(tmp_path / "store/edits/louder")
    begun = tmp_path / "store/.edits.json.4194999-0123456789abcdef.partial"
    begun.write_bytes(b"{")
    folder.write_json("edits.json", with_checksum({"names": ["..", "louder"]}))
    with pytest.raises(NotFoundError, match="there is none"):
        delete_edit(folder, "..")
    delete_edit(folder, "louder")
    assert not begun.exists()
    assert folder.read_json("edits.json")["names"] == []
    with pytest.raises(NotFoundError, match="there is none"):
        delete_edit(folder, "louder")


def test_an_edit_of_another_model_is_not_written(folder: Folder) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^This is an edit of another model, .* Keep it in a store of that model"
    ):
        write_edit(folder, an_edit("e" * 64))
    assert edit_names(folder) == ()


def test_records_of_two_edits_that_changed_places_are_refused(folder: Folder, tmp_path: Path) -> None:
    for name in ("louder", "softer"):
        write_edit(folder, an_edit("f" * 64, name))
    one, other = (tmp_path / f"store/edits/{name}/edit.json" for name in ("louder", "softer"))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    for name, found in (("louder", "softer"), ("softer", "louder")):
        with pytest.raises(FormatError, match=rf"edits/{name}/edit\.json is the record of another edit, '{found}'"):
            read_record(folder, name)
    assert {damage.key for damage in verify_root(folder)} == {"edits/louder/edit.json", "edits/softer/edit.json"}

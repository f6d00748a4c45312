"""Edits written into model folders by a process that is killed: at every step, the folder is one model or the other."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tiny import scatter_weights, tiny_config
from transformers import AutoModelForCausalLM

from actstore.engine.edit.files.journal import own_folder
from actstore.engine.edit.folders import FolderRequest, apply_to_folder, revert_in_folder
from actstore.engine.edit.rows import make_edit, scaled_rows
from actstore.engine.edit.weights import rows_of
from actstore.engine.models.checkpoints import JOURNAL, refuse_interrupted_edit
from actstore.engine.models.fingerprint import fingerprint_of, model_record
from actstore.engine.models.load import load_model
from actstore.store.errors import ActstoreError, CaptureError, FormatError, InvalidInputError, ModelError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.edits import Edit

NEURONS = {0: [1, 4], 1: [3]}
STEPS = (
    (os, "replace"),
    (os, "rename"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "rmdir"),
    (os, "chmod"),
    (shutil, "copyfile"),
)


class Killed(BaseException):
    """The process ends here."""


class Process:
    """A process whose `n`th change of the disk does not happen, nor any after it: cleaning up is not for the dead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
        self.n_left, self.monkeypatch = n, monkeypatch

    def __enter__(self) -> Process:
        for module, name in STEPS:
            self.monkeypatch.setattr(module, name, self._counting(getattr(module, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.monkeypatch.undo()

    def _counting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.n_left -= 1
            if self.n_left < 0:
                raise Killed
            return step(*arguments, **named)

        return counted


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file, and the same in several; of the links of a Hub cache too."""
    folder = tmp_path_factory.mktemp("models")
    model = scatter_weights(AutoModelForCausalLM.from_config(tiny_config("llama")))
    model.save_pretrained(folder / "single")
    model.save_pretrained(folder / "sharded", max_shard_size="30KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def edit(originals: Path) -> Edit:
    model = load_model(originals / "single")
    record = model_record(model, fingerprint_of(model))
    return make_edit("scaled", "boost", record, scaled_rows(NEURONS, rows_of(model, NEURONS), -1.5), settings={})


def copy_of(originals: Path, form: str, folder: Path) -> Path:
    if form != "linked":
        return shutil.copytree(originals / form, folder)
    blobs = shutil.copytree(originals / "sharded", folder.with_name("blobs"))
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("form", ["single", pytest.param("linked", marks=pytest.mark.slow)])
def test_killed_at_any_step_in_place_the_next_command_finishes_or_undoes_it(
    originals: Path,
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    form: str,
) -> None:
    folder = copy_of(originals, form, tmp_path / "model")
    before = files_of(folder)
    apply_to_folder(FolderRequest(folder, [edit]))
    after = files_of(folder)
    n_changed = sum(before[name] != after[name] for name in before)
    assert (n_changed > 1) == (form != "single")
    states, n_mixed, n = set(), 0, 0
    for done, undone, run in ((before, after, revert_in_folder), (after, before, apply_to_folder)):
        for n in range(200):
            try:
                with Process(monkeypatch, n):
                    run(FolderRequest(folder, [edit]))
                break
            except Killed:
                found = files_of(folder)
                n_mixed += len({found[name] == done[name] for name in done if done[name] != undone[name]}) > 1
                if (folder / JOURNAL).exists():  # whatever reads the model is refused
                    with pytest.raises(ModelError, match="half changed"):
                        refuse_interrupted_edit(str(folder))
                caplog.clear()
                other = apply_to_folder if run is revert_in_folder else revert_in_folder
                # Undone, the other command has nothing to do and refuses; finished, it changes everything back.
                try:
                    other(FolderRequest(folder, [edit]))
                    assert not caplog.messages or "finished" in caplog.text
                    states.add("finished")
                except InvalidInputError:
                    assert not caplog.messages or "undone" in caplog.text
                    states.add("undone")
                assert files_of(folder) == undone
        assert files_of(folder) == done
        assert n > 10
    assert states == {"finished", "undone"}
    assert (n_mixed > 0) == (form != "single")


def test_the_same_command_again_goes_on_where_it_was_stopped_however_often(
    originals: Path, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, half = half_changed(originals, edit, tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="half changed"):
        load_model(folder)
    after = files_of(apply_to_folder(FolderRequest(originals / "sharded", [edit], tmp_path / "out")))
    refusals = {True}
    for n in range(200):
        shutil.rmtree(folder)
        shutil.copytree(half, folder)
        caplog.clear()
        try:
            with Process(monkeypatch, n):
                apply_to_folder(FolderRequest(folder, [edit]))
            break
        except Killed:
            pass
        try:
            apply_to_folder(FolderRequest(folder, [edit]))
        except InvalidInputError as error:  # killed when all was done
            refusals.add("already applied" in str(error))
        assert files_of(folder) == after
    assert n > 3
    assert refusals == {True}
    assert files_of(folder) == after
    assert "was finished: its files are now as with scaled applied" in caplog.text


def half_changed(originals: Path, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of which one file was replaced when the process was killed, and the same again as a copy."""
    folder, before = tmp_path / "model", files_of(originals / "sharded")
    for n in range(10, 200):
        copy_of(originals, "sharded", folder)
        with pytest.raises(Killed), Process(monkeypatch, n):
            apply_to_folder(FolderRequest(folder, [edit]))
        if any(before[name] != content for name, content in files_of(folder).items() if name in before):
            return folder, shutil.copytree(folder, tmp_path / "half")
        shutil.rmtree(folder)
    raise AssertionError("no step in between")


def test_a_disk_that_is_full_changes_nothing_and_one_that_fails_late_is_finished_later(
    originals: Path, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(originals, "sharded", tmp_path / "model")
    before = files_of(folder)
    fsync, n_left = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    outcomes = []
    for n in range(1, 20):
        n_left = n
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            try:
                apply_to_folder(FolderRequest(folder, [edit]))
                outcomes.append("applied")
            except CaptureError as error:
                outcomes.append("late" if "Run the same command again" in str(error) else str(error))
            except OSError:
                assert files_of(folder) == before
                outcomes.append("early")
                continue
        apply_to_folder(FolderRequest(folder, [edit])) if outcomes[-1] == "late" else None
        revert_in_folder(FolderRequest(folder, [edit]))
        assert files_of(folder) == before
    assert set(outcomes) == {"early", "late", "applied"}


def test_a_folder_with_a_journal_that_cannot_be_followed_is_refused_in_a_sentence(
    originals: Path, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, half = half_changed(originals, edit, tmp_path, monkeypatch)

    def interrupted(damage: Callable[[Path], None]) -> str:
        folder = shutil.copytree(half, tmp_path / damage.__name__)
        damage(folder)
        files = files_of(folder)
        with pytest.raises(FormatError) as caught:
            apply_to_folder(FolderRequest(folder, [edit]))
        assert files_of(folder) == files
        return str(caught.value)

    def lost_copy(folder: Path) -> None:
        next(folder.glob(".*.safetensors.actstore-edit")).unlink()

    def changed_file(folder: Path) -> None:
        name = next(folder.glob(".*.safetensors.actstore-edit")).name[1 : -len(".actstore-edit")]
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def damaged_journal(folder: Path) -> None:
        text = (folder / JOURNAL).read_text()
        (folder / JOURNAL).write_text(text.replace("applied", "reversed"))

    assert "neither finished nor undone" in interrupted(lost_copy)
    assert "changed by something else" in interrupted(changed_file)
    assert "is damaged" in interrupted(damaged_journal)


def test_two_processes_do_not_change_one_folder(originals: Path, edit: Edit, tmp_path: Path) -> None:
    folder = copy_of(originals, "single", tmp_path / "model")
    with own_folder(folder), pytest.raises(ReadOnlyError, match="Wait for it"):
        apply_to_folder(FolderRequest(folder, [edit]))
    with own_folder(folder, shared=True):
        apply_to_folder(FolderRequest(folder, [edit], tmp_path / "out"))


@pytest.mark.parametrize("force", [False, True])
def test_killed_at_any_step_a_copy_is_whole_or_absent(
    originals: Path, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    whole = files_of(apply_to_folder(FolderRequest(originals / "single", [edit], tmp_path / "expected")))
    out = tmp_path / "out [1]*"
    there = files_of(originals / "sharded")
    n_away = 0
    for n in range(300):
        if force:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(originals / "sharded", out)
        try:
            with Process(monkeypatch, n):
                apply_to_folder(FolderRequest(originals / "single", [edit], out, force=force))
            break
        except Killed:
            if out.exists():
                assert files_of(out) in (([there] if force else []) + [whole])
            else:
                n_away += force
        with pytest.raises(ActstoreError):  # refused for another reason: but what the dead have left is cleared away
            apply_to_folder(FolderRequest(originals / "single", [edit, edit], out, force=force))
        if force:
            assert files_of(out) in (there, whole)
        elif out.exists():
            assert files_of(out) == whole
            shutil.rmtree(out)
        assert sorted(path.name for path in tmp_path.iterdir() if path != out) == ["expected"]
    assert files_of(out) == whole
    assert (n_away > 0) == force
    assert n > 10

"""The demo's files: in an empty folder, in one that has some of them, and where they cannot be."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import actstore
from actstore.engine.inputs import embedded
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture(autouse=True)
def small_library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of two modules and a test, in place of the running Python's."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "test").mkdir()
    for name in ("bisect.py", "shlex.py", "test/test_bisect.py"):
        (folder / name).write_text(f"# {name}\n", encoding="utf-8")
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(folder))
    return folder


def same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and not any(
        filecmp.cmpfiles(one, other, names, False)[1:]
    )


def test_an_empty_folder_gets_every_model_and_the_corpus(tmp_path: Path) -> None:
    folder = actstore.write_demo(tmp_path / "new")
    models = [path for path in embedded.MODELS.iterdir() if path.is_dir()]
    assert len(models) > 3
    assert all(same(path, folder / "demo" / "models" / path.name) for path in models)
    found = sorted((folder / "build" / "demo" / "stdlib").rglob("*.py"))
    assert sorted(path.name for path in found) == ["bisect.py", "shlex.py"]


def test_what_is_there_stays_and_what_a_kill_left_is_made_anew(tmp_path: Path) -> None:
    actstore.write_demo(tmp_path)
    models = tmp_path / "demo" / "models"
    (models / "fact-llama" / "config.json").write_text("mine", encoding="utf-8")
    shutil.rmtree(models / "stdlib-llama")
    (models / "stdlib-llama.partial").mkdir()  # of a process that was killed while it copied
    (models / "stdlib-llama.partial" / "config.json").write_text("half", encoding="utf-8")
    actstore.write_demo(tmp_path)
    assert (models / "fact-llama" / "config.json").read_text(encoding="utf-8") == "mine"
    assert same(models / "stdlib-llama", embedded.MODELS / "stdlib-llama")
    assert not list(models.glob("*.partial"))


def test_a_full_disk_is_said_and_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InvalidInputError, match=r"fact-llama takes [\d.]+ MB, and its disk has 0\.0 MB free"):
            actstore.write_demo(tmp_path)
    copy, n_left = shutil.copyfile, 20

    def fill(source: Path, target: Path) -> None:
        nonlocal n_left
        n_left -= 1
        copy(source, target)
        if n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        actstore.write_demo(tmp_path)
    models = tmp_path / "demo" / "models"
    assert (Path(caught.value.filename).parent, caught.value.filename2) == (models, None)
    assert len(list(models.iterdir())) > 0
    assert all(same(path, embedded.MODELS / path.name) for path in models.iterdir())


def test_a_file_in_the_place_of_the_folder_and_an_installation_without_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"Expected a folder to write into, found the file"):
        actstore.write_demo(tmp_path / "file")
    monkeypatch.setattr(embedded, "MODELS", tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match=r"no models to put there .*nowhere is missing"):
        actstore.write_demo(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_says_where_they_are(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = cli("demo")
    assert shown.status == 0
    assert "fact-llama, language-llama, protein-esm, shapes-llava, stdlib-llama" in shown.out
    assert "actstore capture demo/models/stdlib-llama build/demo/stdlib stdlib.actstore" in shown.out
    assert cli("demo", "--json").json["corpus"] == "build/demo/stdlib"

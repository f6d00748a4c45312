"""The small models that come with actstore, and a corpus that every Python has: what the tutorials begin with, anywhere."""

from __future__ import annotations

import hashlib
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.store.calls import checked
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_folder
from actstore.store.storage.atomic import check_room

if TYPE_CHECKING:
    from collections.abc import Mapping

MODELS: Final = Path(__file__).parents[2] / "demo" / "models"
"""Where they lie in an installation, as in a checkout."""
EXCLUDED: Final = {
    "site-packages", "test", "tests", "idlelib", "lib2to3", "idle_test", "__pycache__", "pydoc_data",
}  # fmt: skip
"""Folders of the standard library whose text says little of how Python is written."""


@checked
def write_demo(folder: str | Path = ".") -> Path:
    """Puts the small models that come with actstore, and a corpus, into a folder, where the tutorials look for them; it.

    - `demo/models/NAME`: each model, with its tokenizer, and the questions or texts that belong to it.
    - `build/demo/stdlib`: the source of the running Python's standard library, as a corpus of text.

    What is there stays as it is. Nothing is fetched. `InvalidInputError` where the folder is a file, where this
    installation has no models, and where the disk has no room for them.

    >>> actstore.write_demo("try")
    """
    target = output_folder(folder)
    models = sorted(MODELS.glob("*/config.json"))
    if not models:
        raise InvalidInputError(
            f"This installation has no models to put there ({MODELS} is missing): install a wheel of the project, or use a "
            "checkout."
        )
    for configuration in models:
        _copy_folder(configuration.parent, target / "demo" / "models" / configuration.parent.name)
    copy_standard_library(target / "build" / "demo" / "stdlib")
    return target


def _copy_folder(source: Path, target: Path) -> None:
    """Whole or not at all; a folder that is there, the source itself included, stays."""
    if target.exists():
        return
    files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    _copy({path.relative_to(source): path for path in files}, target)


def copy_standard_library(target: Path) -> None:
    """Copy the interpreter's modules into a folder of text, without tests and third-party packages, unless it is there."""
    if target.exists():
        return
    root = Path(sysconfig.get_path("stdlib"))
    copies = {}
    for name in (path.relative_to(root) for path in sorted(root.rglob("*.py"))):
        if not EXCLUDED & set(name.parts):
            # A prefix from the name's hash mixes small and large modules, so that the first tokens are a fair sample.
            copies[Path(hashlib.sha256(name.as_posix().encode()).hexdigest()[:3], name)] = root / name
    _copy(copies, target)


def _copy(files: Mapping[Path, Path], target: Path) -> None:
    """Make a folder of files, name in it → file to copy; what a kill left of an earlier one goes.

    `InvalidInputError` where the disk has no room; an `OSError` names `target`, and nothing of it stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target, sum(file.stat().st_size for file in files.values()), "name another folder")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, file in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / name)
        partial.rename(target)
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)

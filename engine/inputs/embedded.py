"""The small models that come with actstore, and a corpus that every Python has: what the tutorials begin with, anywhere."""

from __future__ import annotations

import hashlib
import shutil
import sysconfig
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.store.calls import checked
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    What is there stays as it is. Nothing is fetched. `InvalidInputError` where the folder is a file, or where this
    installation has no models.

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
    with _whole(target) as partial:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("__pycache__"))


def copy_standard_library(target: Path) -> None:
    """Copy the interpreter's modules into a folder of text, without tests and third-party packages, unless it is there."""
    if target.exists():
        return
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    with _whole(target) as partial:
        for name in names:
            if EXCLUDED & set(name.parts):
                continue
            # A prefix from the name's hash mixes small and large modules, so that the first tokens are a fair sample.
            prefix = hashlib.sha256(name.as_posix().encode()).hexdigest()[:3]
            copy = partial / prefix / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to be made and filled, which becomes `target` when it is whole; what a kill left of an earlier one goes."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    partial.rename(target)

"""A changed copy of a model's folder, which appears whole or not at all, whatever stops the process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError
from actstore.store.storage.atomic import check_room, sync_tree
from actstore.store.storage.disk import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LEFT_OUT: Final = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".pkl")
"""Files that may hold the same weights in another format, unedited."""
_REPLACED: Final = "replaced"
"""Where the folder that a copy replaces is, until the copy is in its place."""


def write_copy(folder: Path, target: Path, write: Callable[[Mapping[str, Path]], None]) -> None:
    """Copy a model's folder to `target`, with its files as `write` leaves them, which is given name → path of each.

    `InvalidInputError` where the disk is full. What a killed process has left of the same copy is cleared away first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_copies(target)
    copied = [file for file in folder.rglob("*") if not _left_out("", list(file.relative_to(folder).parts))]
    check_room(target, sum(file.stat().st_size for file in copied if file.is_file()), "write elsewhere")
    with _scratch(target) as scratch:
        copy = scratch / target.name
        try:
            shutil.copytree(folder, copy, ignore=_left_out)  # follows links, as the Hub's cache has them
        except shutil.Error as error:
            (*_, reason), *_ = error.args[0]
            raise InvalidInputError(f"{target} cannot be written: {reason}. Nothing of it is kept.") from None
        for file in copy.rglob("*"):
            file.chmod(file.stat().st_mode | 0o200)
        write({file.name: file for file in copy.iterdir()})
        sync_tree(copy)
        if target.exists():
            target.rename(scratch / _REPLACED)
        copy.rename(target)
        sync_folder(target.parent)


def clear_copies(target: Path) -> None:
    """Remove what killed processes have left of copies to `target`; a folder that one was about to replace comes back."""
    folders = list(target.parent.iterdir()) if target.parent.is_dir() else []
    for scratch in (folder for folder in folders if folder.name.startswith(_prefix(target)) and folder.is_dir()):
        with suppress(FileNotFoundError, BlockingIOError), _locked(scratch):  # else one that another process is writing
            _clear(scratch, target)


def _clear(scratch: Path, target: Path) -> None:
    if (scratch / _REPLACED).exists() and not target.exists():
        (scratch / _REPLACED).rename(target)
        sync_folder(target.parent)
    shutil.rmtree(scratch, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.edit-"


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write in, which is locked while it is used."""
    while True:
        path = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target)))
        with _locked(path):
            if not path.exists():  # cleared by another process before it was locked
                continue
            try:
                yield path
            finally:
                _clear(path, target)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; `BlockingIOError` where another does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _left_out(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith((*LEFT_OUT, ".index.json.lock")) or name in (".git", ".cache")
            or name == "pytorch_model.bin.index.json"}  # fmt: skip

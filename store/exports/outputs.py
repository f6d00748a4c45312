"""Where results are written that are no part of a store: files and folders of this machine, checked before the work begins."""

from __future__ import annotations

from pathlib import Path

from actstore.store.errors import InvalidInputError
from actstore.store.storage.schemes import url_of


def output_path(given: str | Path) -> Path:
    """The path of what is to be written in a folder that is there; `InvalidInputError` for a URL, and where there is none."""
    path = _of_this_machine(given)
    if not path.parent.is_dir():
        raise InvalidInputError(f"The folder of {path} does not exist. Make it first, or write elsewhere.")
    return path


def output_file(given: str | Path) -> Path:
    """As `output_path`, of a file; `InvalidInputError` for a folder, too."""
    path = output_path(given)
    if path.is_dir():
        raise InvalidInputError(f"Expected a file to write, found the folder {path}. Name a file in it.")
    return path


def output_folder(given: str | Path) -> Path:
    """The path of a folder that is there, or is made with those above it; `InvalidInputError` for a URL or a file."""
    path = _of_this_machine(given)
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"Expected a folder to write into, found the file {path}. Name another.")
    return path


def _of_this_machine(given: str | Path) -> Path:
    if url := url_of(str(given)):
        raise InvalidInputError(
            f"Expected a path on this machine to write to, found {url}. Name a path, and copy it there afterwards: only stores "
            "are written to a URL."
        )
    return Path(given)

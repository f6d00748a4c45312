"""One writer at a time: an advisory lock on a file that dies with its process, whatever kills it.

Storages without local files have no such lock: there the operator must see to it that one process writes.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from actstore.store.errors import ReadOnlyError
from actstore.store.layout import LOCK_NAME, capture_key, edits_key, graphs_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actstore.store.storage.folder import Folder


@contextmanager
def own(folder: Folder, capture: str) -> Iterator[None]:
    """Own `capture` for writing while the context lasts; `ReadOnlyError` naming the owner where another process does."""
    what = f"Capture {capture!r} of {folder} is"
    with _own(folder, f"{capture_key(capture)}/{LOCK_NAME}", what, "name another capture"):
        yield


def check_unowned(folder: Folder, capture: str) -> None:
    """Raise as `own` where another process owns `capture` for writing; creates nothing."""
    path = folder.local_path(f"{capture_key(capture)}/{LOCK_NAME}")
    if path is not None and path.is_file():
        what = f"Capture {capture!r} of {folder} is"
        with _own(folder, f"{capture_key(capture)}/{LOCK_NAME}", what, "name another capture", mark=False):
            pass


def is_unlocked(folder: Folder, capture: str) -> bool:
    """Whether no process owns `capture` for writing."""
    try:
        check_unowned(folder, capture)
    except ReadOnlyError:
        return False
    return True


@contextmanager
def own_graphs(folder: Folder, name: str) -> Iterator[None]:
    """Own the graphs called `name` for writing while the context lasts; `ReadOnlyError` as with `own`."""
    with _own(folder, graphs_key(name, LOCK_NAME), f"Graphs {name!r} of {folder} are", "name other graphs"):
        yield


@contextmanager
def own_edit(folder: Folder, name: str) -> Iterator[None]:
    """Own the edit called `name` for writing while the context lasts; `ReadOnlyError` as with `own`."""
    with _own(folder, edits_key(name, LOCK_NAME), f"Edit {name!r} of {folder} is", "name another edit"):
        yield


@contextmanager
def _own(folder: Folder, key: str, what: str, instead: str, *, mark: bool = True) -> Iterator[None]:
    path = folder.local_path(key)
    if path is None:
        yield
        return
    with _locked(path, what, instead, create=mark) as descriptor:
        if not mark:
            yield
            return
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            folder.remove_leftovers(key.rpartition("/")[0])
            yield
        finally:
            os.truncate(descriptor, 0)  # a finished store need not tell on which machine it was written


@contextmanager
def _locked(path: Path, what: str, instead: str, *, create: bool) -> Iterator[int]:
    while True:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
                raise ReadOnlyError(f"{what} being written by {owner}. Wait for it, or {instead}.") from None
            if not create or _is_at(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: an owner that gives up removes it, and then a lock on it keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

"""One writer at a time, or several that fill one capture: an advisory lock on a file that dies with its process.

Storages without local files have no such lock: there the operator must see to it that one process writes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from actstore.store.errors import ReadOnlyError
from actstore.store.layout import LOCK_NAME, capture_key, edits_key, explanations_key, graphs_key
from actstore.store.storage.disk import has_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actstore.store.storage.folder import Folder

ROOT_TIMEOUT_S: Final = 1800.0
"""How long to wait for another process that writes a store's root: the weights of a large model take minutes."""

SHARE_TIMEOUT_S: Final = 60.0
"""How long a worker waits for the owner of a capture that it is to fill."""

_ANOTHER: Final = "name another capture"
_WORKERS: Final = "workers that fill it"

_GRACE_S: Final = 0.2
"""How long a lock that is taken is tried again: whoever asks whether a capture is owned has it for a moment."""

logger = logging.getLogger("actstore")


@contextmanager
def own(folder: Folder, capture: str) -> Iterator[None]:
    """Own `capture` for writing while the context lasts; `ReadOnlyError` naming the owner where another process does."""
    what = f"Capture {capture!r} of {folder} is"
    with _own(folder, f"{capture_key(capture)}/{LOCK_NAME}", what, _ANOTHER):
        # What a killed writer left at the root, such as Zarr's groups, lies in no capture's folder.
        with suppress(ReadOnlyError), own_root(folder, timeout_s=0):
            pass
        yield


@contextmanager
def share(folder: Folder, capture: str) -> Iterator[None]:
    """Fill `capture` beside others that do, all of whom keep its owner out; `ReadOnlyError` where it stays owned.

    Waits for an owner, who may be planning it. Whoever comes first removes what killed writers have left.
    """
    key, what = f"{capture_key(capture)}/{LOCK_NAME}", f"Capture {capture!r} of {folder} is"
    path = folder.local_path(key)
    if path is None:
        yield
        return
    with suppress(ReadOnlyError), _own(folder, key, what, _ANOTHER, timeout_s=0):
        pass
    descriptor = _lock(path, mark=True, timeout_s=SHARE_TIMEOUT_S, what=what, instead=_ANOTHER, shared=True)
    try:
        # The same words from all: nobody need take them away, until its next owner does.
        _mark(descriptor, _WORKERS)
        yield
    finally:
        os.close(descriptor)


def check_unowned(folder: Folder, capture: str) -> None:
    """Raise as `own` where another process owns `capture` for writing; creates nothing."""
    path = folder.local_path(f"{capture_key(capture)}/{LOCK_NAME}")
    if path is not None and path.is_file():
        what = f"Capture {capture!r} of {folder} is"
        with (
            suppress(FileNotFoundError),  # its owner has removed it
            _own(folder, f"{capture_key(capture)}/{LOCK_NAME}", what, _ANOTHER, mark=False),
        ):
            pass


def is_unlocked(folder: Folder, capture: str) -> bool:
    """Whether no process owns `capture` for writing."""
    try:
        check_unowned(folder, capture)
    except ReadOnlyError:
        return False
    return True


@contextmanager
def own_root(folder: Folder, *, timeout_s: float = ROOT_TIMEOUT_S) -> Iterator[None]:
    """Own the root of a store for writing: tokenizer, weights, table of neurons and the root's record.

    Waits while another process has it, and logs that it does; `ReadOnlyError` where that takes longer than `timeout_s`.
    """
    with _own(folder, LOCK_NAME, f"The root of {folder} is", "name another store", timeout_s=timeout_s):
        yield


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
def own_explanations(folder: Folder, name: str) -> Iterator[None]:
    """Own the explanations called `name` for writing while the context lasts; `ReadOnlyError` as with `own`."""
    what = f"Explanations {name!r} of {folder} are"
    with _own(folder, explanations_key(name, LOCK_NAME), what, "name other explanations"):
        yield


@contextmanager
def _own(
    folder: Folder, key: str, what: str, instead: str, *, mark: bool = True, timeout_s: float = _GRACE_S
) -> Iterator[None]:
    path = folder.local_path(key)
    if path is None:
        yield
        return
    descriptor = _lock(path, mark=mark, timeout_s=timeout_s, what=what, instead=instead)
    try:
        if not mark:
            yield
            return
        _mark(descriptor, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            folder.remove_leftovers(key.rpartition("/")[0])
            yield
        finally:
            _mark(descriptor, "")  # a finished store need not tell on which machine it was written
    finally:
        os.close(descriptor)


def _mark(descriptor: int, owner: str) -> None:
    """Say in a locked file who owns it; on a full disk it is locked without."""
    with suppress(OSError):
        os.truncate(descriptor, 0)
        os.write(descriptor, owner.encode())


def _lock(path: Path, *, mark: bool, timeout_s: float, what: str, instead: str, shared: bool = False) -> int:
    """The descriptor of the locked file at `path`, which is made where it is missing, if it is to be marked."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline, is_announced = time.monotonic() + timeout_s, timeout_s <= _GRACE_S
    while True:
        try:
            if mark:
                path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT if mark else os.O_RDONLY, 0o644)
        except FileNotFoundError:  # whoever had it has just removed the folder
            if mark and time.monotonic() < deadline:
                time.sleep(0.001)
                continue
            raise
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            # Whoever had the lock before may have removed the file: this is then the lock of nothing.
            if not mark or has_name(path, descriptor):
                return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise ReadOnlyError(f"{what} being written by {owner}. Wait for it, or {instead}.") from None
            if not is_announced:
                logger.warning("%s being written by %s: waiting for it.", what, owner)
                is_announced = True
            time.sleep(0.02)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)

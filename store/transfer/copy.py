"""A store copied from any location to any other: what can be compared is compared before anything is written.

First comes what belongs to the store as a whole, then its captures, graphs and edits, each with its record last, then
explanations.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from actstore.store.capture.captures import Captures
from actstore.store.errors import CaptureError, FormatError, InvalidInputError
from actstore.store.transfer.captures import CaptureCopy, check_capture_of
from actstore.store.transfer.explanations import check_explanations_of, copy_explanations, read_explanations
from actstore.store.transfer.named import check_named_of, copy_named, read_named
from actstore.store.transfer.root import check_root_of, copy_root
from actstore.store.transfer.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actstore.store.capture.reader import Capture
    from actstore.store.storage.folder import Folder


@dataclass(frozen=True)
class CopyReport:
    """What `actstore.copy` has copied."""

    captures: tuple[str, ...]
    """The names of the captures that are now at the target as they are at the source."""
    graphs: tuple[str, ...]
    edits: tuple[str, ...]
    n_blocks: int
    """Blocks of these captures."""
    n_copied: int
    """Those of them that were not there already."""
    n_files: int
    """Files that were written."""
    nbytes: int
    explanations: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.n_copied:,} of {self.n_blocks:,} blocks of {len(self.captures)} captures copied; {self.n_files:,} files "
            f"written, {self.nbytes:,} bytes"
        )


def copy_store(
    source: Folder,
    target: Folder,
    captures: Sequence[str] | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> CopyReport:
    """Copy a store, or complete its copy: all captures or some, the graphs and explanations of these, and all edits.

    `on_block` is told how many blocks are at the target, of how many, now and after each. Errors are as of `actstore.copy`.
    """
    _check_places(source, target)
    store = Captures(source)
    root = store.root_record
    opened = _opened(store, captures)
    named = read_named(source, root, None if captures is None else set(captures))
    explained = read_explanations(source, root, None if captures is None else set(captures))
    check_root_of(source, target, root)
    for name in opened:
        check_capture_of(source, target, name)
    for one in named:
        check_named_of(source, target, one)
    for explanations in explained:
        check_explanations_of(source, target, explanations)
    count = _Count(on_block, sum(len(one.blocks) for one in opened.values()))
    copies: list[CaptureCopy] = []
    with _stopping(target), Transfer(source, target) as transfer:
        copy_root(transfer, root)
        for capture in opened.values():
            copies.append(CaptureCopy(transfer, capture, count))
            copies[-1].run()
        for one in named:
            copy_named(transfer, one)
        for explanations in explained:
            copy_explanations(transfer, explanations)
    return CopyReport(
        tuple(opened),
        tuple(one.name for one in named if one.kind == "graphs"),
        tuple(one.name for one in named if one.kind == "edits"),
        count.total,
        sum(one.n_blocks for one in copies),
        transfer.n_files,
        transfer.nbytes,
        tuple(explanations.name for explanations in explained),
    )


def _check_places(source: Folder, target: Folder) -> None:
    paths = [Path(folder.local_path() or "").resolve() for folder in (source, target)]
    is_local = None not in (source.local_path(), target.local_path())
    if paths[0] == paths[1] if is_local else source.location.rstrip("/") == target.location.rstrip("/"):
        raise InvalidInputError(f"A store cannot be copied onto itself: `src` and `dst` are both {target}.")


def _opened(store: Captures, names: Sequence[str] | None) -> dict[str, Capture]:
    """The captures to be copied by name; `FormatError` where one of them cannot be read."""
    if names is not None:
        return {name: store.peek(name) for name in names}
    captures, errors = store.read_captures()
    for name, error in errors.items():
        raise FormatError(error.found, f"{error.advice} Or leave capture {name!r} out, by naming the other `captures`.")
    return captures


class _Count:
    """Counts blocks, in whatever thread one is done."""

    def __init__(self, on_block: Callable[[int, int], None], total: int) -> None:
        self._on_block, self.total, self._done, self._lock = on_block, total, 0, Lock()
        on_block(0, total)

    def __call__(self) -> None:
        with self._lock:
            self._done += 1
            self._on_block(self._done, self.total)


@contextmanager
def _stopping(target: Folder) -> Iterator[None]:
    """What stops a copy from outside is a `CaptureError` that says how to go on."""
    go_on = "What was copied stays: run the same copy again, and it goes on."
    try:
        yield
    except KeyboardInterrupt:
        raise CaptureError(f"The copy to {target} was interrupted. {go_on}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CaptureError(f"The disk of {target} is full. {go_on.replace('run', 'make room, run', 1)}") from None

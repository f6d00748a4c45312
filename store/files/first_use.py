"""Files of which readers take a part: checked whole when a process first uses them, and again when they have changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.storage.folder import Folder

MAX_FILES: Final = 65536
"""Number of files that are remembered; beyond it, all are forgotten."""
_TOO_RECENT_NS: Final = 2_000_000_000
"""A file that changed so little ago may change once more without another time: it is checked, and not remembered."""

# One entry is read or replaced at a time, which needs no lock: two threads may check the same file, and both are right.
_checked: Final[dict[str, tuple[int, ...]]] = {}


def check_at_first_use(folder: Folder, key: str, check: Callable[[], object]) -> None:
    """Call `check`, which raises where the file is damaged, unless this process found the same file whole before.

    A file is the same by its size, inode and times. Where it is not on a local disk, it is checked each time.
    """
    path = folder.local_path(key)
    if path is None:
        check()
        return
    before = _state(path)
    name = str(path.absolute())
    if _checked.get(name) == before:
        return
    check()
    newest = max(before[-2:])
    if _state(path) == before and newest < time.time_ns() - _TOO_RECENT_NS:
        if len(_checked) >= MAX_FILES:
            _checked.clear()
        _checked[name] = before


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

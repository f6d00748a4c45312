"""Two folders of a disk that take each other's place, so that each name has a whole folder at every moment."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_CANNOT: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What systems answer that do not know the call, and file systems that cannot exchange, as NFS."""


def exchange(one: Path, other: Path) -> bool:
    """Have two folders of one file system take each other's place in one step; False where that cannot be done, and was not."""
    # Python has no name for it; the C library of Linux has one since 2018.
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one))


def replace_folder(here: Path, there: Path, aside: Path) -> None:
    """Put the folder `there` in the place of `here`, which ends up at `there`, or `aside`, where nothing is.

    Where the file system cannot exchange two folders, `here` is moved aside first: a kill between the steps leaves it there.
    """
    if exchange(here, there):
        return
    here.rename(aside)
    try:
        there.rename(here)
    except BaseException:
        aside.rename(here)
        raise

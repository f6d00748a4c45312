"""The paths that a glob matches, each once.

`glob` follows links to folders below `**`: one that leads to a folder above itself gives the same file forty times, two of
them never end.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

RECURSIVE = "**"


def matching_paths(pattern: str) -> list[Path]:
    """The paths that match a glob, sorted; `**` stands for any number of folders, links to folders left out."""
    return sorted(map(Path, _matches(os.path.expanduser(pattern))))


def _matches(pattern: str) -> set[str]:
    parts = pattern.split(os.sep)
    if RECURSIVE not in parts:
        return set(glob.iglob(pattern))
    at = parts.index(RECURSIVE)
    head, tail = os.sep.join(parts[:at]), [part for part in parts[at + 1 :] if part]
    if parts[-1] == "":  # "folder/**/" matches folders, which hold no text themselves
        return set()
    bases = [os.sep] if at == 1 and not head else glob.glob(head) if head else [""]
    matches: set[str] = set()
    for base in bases:
        for folder, below, _ in os.walk(base or os.curdir):
            below[:] = [name for name in below if not name.startswith(".")]
            inside = glob.escape(os.path.normpath(folder) if base else os.path.relpath(folder))
            inside = "" if inside == os.curdir else inside
            matches |= _matches(os.path.join(inside, *(tail or ["*"])))
    return matches

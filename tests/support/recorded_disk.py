"""What a process asks of the disk, in order: syncs of files and folders, renames, links, removals.

From it follows what is safe from a power cut at every moment: a file, once it was synced before it got its name and its folder
was synced after that.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class RecordedDisk:
    """Notes every `os.fsync`, `os.mkdir`, `os.replace`, `os.rename` and `os.link`, and looks at those below a folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._lock = root, Lock()
        self.calls: list[tuple[str, Path, Path]] = []
        """("sync" or "folder", path, path) or ("name", from, to), as they succeeded."""
        fsync, replace, link, mkdir = os.fsync, os.replace, os.link, os.mkdir

        def noted_fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)
            self._note("sync", path, path)

        def noted_replace(source: str | Path, target: str | Path) -> None:
            replace(source, target)
            self._note("name", Path(source), Path(target))

        def noted_link(source: str | Path, target: str | Path) -> None:
            link(source, target)
            self._note("name", Path(source), Path(target))

        def noted_mkdir(path: str | Path, mode: int = 0o777) -> None:
            mkdir(path, mode)
            self._note("folder", Path(path), Path(path))

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "mkdir", noted_mkdir)
        monkeypatch.setattr(os, "replace", noted_replace)
        monkeypatch.setattr(os, "rename", noted_replace)
        monkeypatch.setattr(os, "link", noted_link)

    def _note(self, kind: str, source: Path, target: Path) -> None:
        with self._lock:
            self.calls.append((kind, source.absolute(), target.absolute()))

    @property
    def renamed(self) -> list[Path]:
        """The files that got their names, in order."""
        return [target for kind, _, target in self.calls if kind == "name" and target.is_relative_to(self._root)]

    def safe_before(self, record: Path) -> set[Path]:
        """Files and folders that outlast a power cut just before `record` last got its name."""
        end = max(i for i, (kind, _, target) in enumerate(self.calls) if kind == "name" and target == record)
        return self._safe(end)

    def _safe(self, end: int) -> set[Path]:
        synced: dict[Path, int] = {}
        named: dict[Path, int] = {}
        made: dict[Path, int] = {}
        for i, (kind, source, target) in enumerate(self.calls[:end]):
            if kind == "sync":
                synced[target] = i
            elif kind == "folder":
                made[target] = i
            elif source in synced:
                named[target] = i
            else:
                named.pop(target, None)
        files = {path for path, at in named.items() if synced.get(path.parent, -1) > at}
        folders = {folder for file in files for folder in file.parents}
        return files | {folder for folder in folders if synced.get(folder.parent, -1) >= made.get(folder, -1)}

    def check(self) -> None:
        """Every file was synced before it got its name, and its folder after that; every folder on the way too."""
        assert self.renamed
        safe = self._safe(len(self.calls))
        for path in self.renamed:
            assert path in safe, f"{path} is not safe from a power cut"
            for folder in path.parents:
                if folder.is_relative_to(self._root):
                    assert folder in safe, f"the folder {folder} is not safe from a power cut"

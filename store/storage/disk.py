"""Files of a local disk that appear whole and outlast a power cut.

A file is written beside its target under a name of its own, synced, and renamed; then the folder is synced, and with it the
new name. A folder that is new is synced into the one around it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.storage.pieces import Bytes

SUFFIX: Final = ".partial"
"""The end of the name of every temporary file, also of those of earlier versions and of Zarr's own."""
_TEMPORARY: Final = re.compile(r"\..*\.(\d+)-[0-9a-f]{16}\.partial", re.DOTALL)
_MAX_NAME_NBYTES: Final = 180
"""Of the target's name in a temporary name, which is longer by up to 46 bytes: file systems take 255."""
_NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
"""What file systems answer that cannot sync folders; PostgreSQL passes over the same."""
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems answer that have no hard links, as FAT."""

_in_use: Final[set[Path]] = set()
"""Temporary files that this process is writing."""
_may_stay_open: Final = Semaphore(64)
"""Files that wait for their sync: an open one is sure to learn of a failed write, and too many would use up descriptors."""


def is_temporary(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that is not published, or never was; folders may have such names."""
    return os.fspath(path).endswith(SUFFIX) and not os.path.isdir(path)


def temporary_path(target: Path) -> Path:
    """A path beside `target` that nothing else uses; it tells which process."""
    return target.with_name(f".{_stem(target)}.{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}")


def remove_temporaries_of(target: Path) -> None:
    """Remove what killed processes have left beside `target` in writing it; what living ones are writing stays."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed, or is not there, is for the writing to name
        for path in list(target.parent.iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            if (
                match is not None
                and path.name.startswith(f".{_stem(target)}.{match[1]}-")
                and not _is_alive(int(match[1]))
            ):
                path.unlink(missing_ok=True)


def _stem(target: Path) -> str:
    return os.fsencode(target.name)[:_MAX_NAME_NBYTES].decode(errors="ignore")


def sync_file(file: int | Path) -> None:
    """Have the disk keep the bytes of a file; the `OSError` of a disk that cannot names it, where a path was given."""
    if isinstance(file, int):
        os.fsync(file)
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder, where the file system can."""
    try:
        sync_file(folder)
    except PermissionError:
        pass  # a folder that only others may list, such as the one around a home
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def is_leftover(path: Path) -> bool:
    """Whether nothing on this machine is writing a temporary file any more, so far as its name tells."""
    match = _TEMPORARY.fullmatch(path.name)  # not of earlier versions, and not of Zarr, which tell nothing
    # The id of a killed process may be this process's own: containers give the same ids again and again.
    return path not in _in_use if match is None or int(match[1]) == os.getpid() else not _is_alive(int(match[1]))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


class PartialFile:
    """A file beside its target, until `publish` puts it there, or `discard` removes it."""

    def __init__(self, disk: Disk, target: Path) -> None:
        """Open the file, and make its folder."""
        self._disk, self._target = disk, target
        disk.make_folder(target.parent)
        self.path = temporary_path(target)
        self._stays_open = False
        _in_use.add(self.path)
        try:
            self.file = self.path.open("xb")
        except BaseException:
            _in_use.discard(self.path)
            raise

    def end(self) -> None:
        """Give the last bytes to the system: what remains is `publish`, which waits for the disk, in whatever thread."""
        self.file.flush()
        self._stays_open = self._disk.sync and _may_stay_open.acquire(blocking=False)
        if not self._stays_open:
            self.file.close()

    def publish(self, *, new: bool = False, settle: bool = True) -> None:
        """Put the file in the place of its target: on `new` only where there is none, or `FileExistsError`.

        With `settle`, it outlasts a power cut from then on; without, once its folder is settled.
        """
        if self._disk.sync:
            self._sync()
        self._close()
        if new:
            link_or_copy(self.path, self._target, sync=self._disk.sync)
            self.path.unlink()
        else:
            self.path.replace(self._target)
        _in_use.discard(self.path)
        if settle:
            self.settle()

    @property
    def folder(self) -> Path:
        """Where the file is."""
        return self._target.parent

    def settle(self) -> None:
        """Have the disk keep the file's name, and those of the folders around it."""
        if self._disk.sync:
            self._disk.settle(self.folder)

    def discard(self) -> None:
        """Remove the file; nothing happens where it is published."""
        with contextlib.suppress(OSError):  # a full disk may refuse the last bytes, which are not needed any more
            self._close()
        self.path.unlink(missing_ok=True)
        _in_use.discard(self.path)

    def _sync(self) -> None:
        if self.file.closed:
            sync_file(self.path)
            return
        self.file.flush()
        try:
            sync_file(self.file.fileno())
        except OSError as error:
            error.filename = str(self._target)
            raise

    def _close(self) -> None:
        if self._stays_open:
            _may_stay_open.release()
            self._stays_open = False
        self.file.close()


def link_or_copy(path: Path, target: Path, *, sync: bool) -> None:
    """Give a file a second name, which must be new: `FileExistsError` where it is not. Without hard links, it is copied."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Of two writers one creates it here too; only, a reader may see a part of it, and a kill may leave one.
        with target.open("xb") as file:
            file.write(path.read_bytes())
            file.flush()
            if sync:
                sync_file(file.fileno())


@contextlib.contextmanager
def _only_changer(path: Path) -> Iterator[BinaryIO]:
    """The file at `path`, open for reading, which nobody else swaps or deletes meanwhile.

    The lock is on the file itself, and dies with its process. Whoever waited for it may find that the file has lost its name
    to another, and begins again with that one.
    """
    import fcntl  # only here: reading needs no locks, which not every system has

    while True:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                error.filename = str(path)
                raise
            if has_name(path, file.fileno()):
                yield file
                return


def _unlink(path: Path) -> None:
    """Remove a file that nobody swaps meanwhile; what cannot be read, nobody swaps."""
    with _only_changer(path) if path.is_file() and os.access(path, os.R_OK) else contextlib.nullcontext():
        path.unlink()


def has_name(path: Path, descriptor: int) -> bool:
    """Whether an open file still is the one at `path`: another may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class Disk:
    """Writes and deletes below a folder so that it outlasts a power cut, or with `sync` False only a kill."""

    def __init__(self, root: Path, *, sync: bool = True) -> None:
        self.root, self.sync = root, sync
        self._settled: set[Path] = set()
        """Folders whose name, and the names of all around them, are known to be on disk."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those around it, where they are missing; `settle` has the disk keep them."""
        if not folder.is_dir():
            folder = folder.absolute()
            self._settled -= {folder, *folder.parents}  # another process may have removed them
            folder.mkdir(parents=True, exist_ok=True)

    def settle(self, folder: Path) -> None:
        """Have the disk keep the names in a folder, its own, and those of all around it.

        What another process made may not be on disk yet, so each is synced once, up to where its file system is mounted.
        """
        sync_folder(folder)
        unsettled = []
        for path in ((folder := folder.absolute()), *folder.parents):
            if path in self._settled or path.is_mount():
                break
            sync_folder(path.parent)
            unsettled.append(path)
        self._settled |= set(unsettled)

    def write(self, target: Path, data: Bytes, *, new: bool = False) -> None:
        """Replace a file, or with `new` create it: `FileExistsError` where it is there."""
        partial = PartialFile(self, target)
        try:
            partial.file.write(data)
            partial.publish(new=new)
        except BaseException:
            partial.discard()
            raise

    def swap(self, target: Path, data: Bytes, expected: Bytes) -> bool:
        """Replace a file that holds `expected`; whether it did. Nobody else swaps or deletes it between."""
        try:
            with _only_changer(target) as file:
                is_expected = file.read(len(expected) + 1) == expected
                if is_expected:
                    self.write(target, data)
                return is_expected
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False

    def delete(self, target: Path) -> None:
        """Remove a file, or a folder with all below it; nothing happens where there is nothing."""
        if target.is_dir():
            absolute = target.absolute()
            self._settled = {folder for folder in self._settled if not folder.is_relative_to(absolute)}
            shutil.rmtree(target)
        else:
            try:
                _unlink(target)
            except (FileNotFoundError, NotADirectoryError):
                return
        if self.sync:
            sync_folder(target.parent)

    def leftovers(self, folder: Path, border: str) -> Iterator[Path]:
        """Temporary files at or below `folder` that nothing writes; not in folders below it that hold a file `border`."""
        for place, folders, files in os.walk(folder):
            if border in files and Path(place) != folder:
                folders.clear()
                continue
            for path in (Path(place, name) for name in files if name.endswith(SUFFIX)):
                if is_leftover(path):
                    yield path

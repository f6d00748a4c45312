"""Files of a model's folder replaced together: all of them or none, whatever stops the process.

The new files are written beside the old ones and synced, then a journal that names them, and only then does each take the place
of the old one; the journal goes last. Without a journal, nothing has been replaced; with one, `recover` replaces the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.engine.models.checkpoints import JOURNAL
from actstore.store.errors import CaptureError, FormatError, ReadOnlyError
from actstore.store.files.records import Record, verify_checksum, with_checksum
from actstore.store.files.shards import source_checksum
from actstore.store.storage.atomic import check_room
from actstore.store.storage.disk import sync_file, sync_folder
from actstore.store.storage.pieces import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_SUFFIX: Final = ".actstore-edit"
"""The end of the names of the new files, beside the old ones."""


@dataclass(frozen=True)
class Replacement(Record):
    """One file of a change."""

    before: str
    """CRC-32C of the file that is replaced."""
    after: str
    """That of the new one."""


@dataclass(frozen=True)
class Change(Record):
    """What is done to a folder, as its journal says it."""

    verb: str
    """`applied` or `reverted`."""
    edits: tuple[str, ...]
    """Their names, in the order in which they are written."""
    digest: str
    """A checksum of their records."""
    files: dict[str, Replacement] = dataclasses.field(default_factory=dict)
    """Name of a file in the folder → its replacement."""

    def is_like(self, other: Change) -> bool:
        """Whether both do the same, to whatever files."""
        return (self.verb, self.edits, self.digest) == (other.verb, other.edits, other.digest)

    def __str__(self) -> str:
        return f"{', '.join(self.edits)} {self.verb}"


@dataclass(frozen=True)
class Recovery:
    """What `recover` did about an interrupted change."""

    folder: Path
    change: Change | None
    """None where nothing is known of it but files that it left."""
    is_finished: bool
    """Whether the folder is as the change was to make it; else it is as before."""

    def __str__(self) -> str:
        """A sentence that says in which of its two states the folder is."""
        if self.is_finished:
            return f"An interrupted change of {self.folder} was finished: its files are now as with {self.change}."
        what = f" ({self.change})" if self.change is not None else ""
        return f"An interrupted change of {self.folder}{what} was undone: its files are as before."


@contextlib.contextmanager
def own_folder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Own a model's folder, while its files are replaced, or `shared` with other readers; `ReadOnlyError` where another does.

    The lock goes with its process and leaves no file. A file system without locks gives none, and nothing is refused there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReadOnlyError(
                f"Another process is writing an edit of the model in {folder}, or reading it for one. Wait for it."
            ) from None
        except OSError:  # such as that of network file systems, which lock only what is open for writing
            pass
        yield
    finally:
        os.close(descriptor)


def replace_files(
    folder: Path, change: Change, write: Callable[[Mapping[str, Path]], None], names: Iterable[str]
) -> None:
    """Replace files of a folder that the caller owns, by copies that `write` has changed; it is given name → copy.

    What fails before all copies are on the disk changes nothing. What stops the process later is for `recover`; an `OSError`
    is then a `CaptureError` that says so.
    """
    targets = {name: _target(folder, name) for name in names}
    copies = {name: _copy_of(target) for name, target in targets.items()}
    nbytes = sum(target.stat().st_size for target in targets.values())
    check_room(next(iter(targets.values())), nbytes, "write the edited model elsewhere with `output`")
    try:
        files = _write_copies(targets, copies, write)
        _write_journal(folder, dataclasses.replace(change, files=files))
    except BaseException:
        if not (folder / JOURNAL).exists():
            _remove_leftovers(folder)
        raise
    try:
        sync_folder(folder)
        _finish(folder, targets)
    except OSError as error:
        raise CaptureError(
            f"Writing into {folder} was interrupted: {error.strerror or error}. Run the same command again, which finishes it."
        ) from error


def _write_copies(
    targets: Mapping[str, Path], copies: Mapping[str, Path], write: Callable[[Mapping[str, Path]], None]
) -> dict[str, Replacement]:
    for name, copy in copies.items():
        shutil.copyfile(targets[name], copy)
        copy.chmod(0o600)
    write(copies)
    for name, copy in copies.items():
        shutil.copymode(targets[name], copy)
        sync_file(copy)
    for parent in {copy.parent for copy in copies.values()}:
        sync_folder(parent)
    return {name: Replacement(_checksum(targets[name]), _checksum(copy)) for name, copy in copies.items()}


def _write_journal(folder: Path, change: Change) -> None:
    partial = folder / f"{JOURNAL}{_SUFFIX}"
    partial.write_text(json.dumps(with_checksum(change.to_json())))
    sync_file(partial)
    partial.replace(folder / JOURNAL)


def is_interrupted(folder: Path) -> bool:
    """Whether a change of a folder was interrupted, or is going on in another process."""
    return (folder / JOURNAL).exists() or any(path.exists() for path in _leftovers(folder))


def recover(folder: Path) -> Recovery | None:
    """Finish or undo an interrupted change of a folder that the caller owns; None where there is none.

    `FormatError` where neither can be done, because the files have been changed meanwhile.
    """
    journal = folder / JOURNAL
    if not journal.exists():
        if not is_interrupted(folder):
            return None
        _remove_leftovers(folder)
        return Recovery(folder, None, is_finished=False)
    change = _read_journal(journal)
    targets = {name: _target(folder, name) for name in change.files}
    copies = {name: _copy_of(target) for name, target in targets.items()}
    found = {name: _checksum(target) for name, target in targets.items()}
    foreign = [name for name, of in change.files.items() if found[name] not in (of.before, of.after)]
    if foreign:
        raise FormatError(
            f"{folder / foreign[0]} was changed by something else after a change of the model ({change}) was interrupted.",
            f"Restore the model's files from a copy, and delete {journal}.",
        )
    left = [name for name, of in change.files.items() if found[name] != of.after]
    lost = [name for name in left if _checksum(copies[name]) != change.files[name].after]
    if not lost:
        _finish(folder, {name: targets[name] for name in left})
        return Recovery(folder, change, is_finished=True)
    if len(left) < len(change.files):
        raise FormatError(
            f"{copies[lost[0]]} is missing or damaged, without which an interrupted change of the model ({change}) can "
            "be neither finished nor undone.",
            f"Restore the model's files from a copy, and delete {journal}.",
        )
    journal.unlink()
    sync_folder(folder)
    _remove_leftovers(folder)
    return Recovery(folder, change, is_finished=False)


def _read_journal(journal: Path) -> Change:
    try:
        value = json.loads(journal.read_text())
        verify_checksum(value if isinstance(value, dict) else {}, str(journal))
        change = Change.from_json(value, str(journal))
        if all(Path(name).name == name and (journal.parent / name).is_file() for name in change.files):
            return change
    except (ValueError, FormatError):
        pass
    raise FormatError(
        f"{journal}, the journal of an interrupted change of the model, is damaged, or names files that are missing.",
        "Restore the model's files from a copy, and delete it.",
    )


def _finish(folder: Path, targets: Mapping[str, Path]) -> None:
    """Put the copies of some files in their place; the journal, which names them, goes last."""
    for target in targets.values():
        _copy_of(target).replace(target)
    for parent in {target.parent for target in targets.values()}:
        sync_folder(parent)
    (folder / JOURNAL).unlink()
    # All is done: after a power cut the journal may be back, which then finds every file replaced.
    with contextlib.suppress(OSError):
        sync_folder(folder)
        _remove_leftovers(folder)


def _target(folder: Path, name: str) -> Path:
    """The file itself, where the folder has a link to it, as the Hub's cache does."""
    return (folder / name).resolve() if (folder / name).is_symlink() else folder / name


def _copy_of(target: Path) -> Path:
    return target.with_name(f".{target.name}{_SUFFIX}")


def _leftovers(folder: Path) -> Iterator[Path]:
    """Where an interrupted change may have left a file, but for its journal."""
    yield folder / f"{JOURNAL}{_SUFFIX}"
    for file in folder.glob("*.safetensors"):
        yield _copy_of(_target(folder, file.name))


def _remove_leftovers(folder: Path) -> None:
    for path in _leftovers(folder):
        path.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    """CRC-32C of a file; empty where there is none."""
    try:
        return source_checksum(FileSource(path))
    except FileNotFoundError:
        return ""

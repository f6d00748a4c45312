"""A capture put into another order on disk, without the model: written beside it, and exchanged with it when it is whole.

Values are read and written as they are stored, never decoded; every other file of the capture gets a second name beside. What
stops it, a kill or a full disk, leaves the capture as it was, and the next call begins anew.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.store.capture.captures import Captures
from actstore.store.capture.commits import read_commit
from actstore.store.capture.committed import write_committed
from actstore.store.capture.tokens.order import order_of_sites
from actstore.store.capture.writer import write_record
from actstore.store.errors import CaptureError, InvalidInputError
from actstore.store.files.arrays import create_block_array
from actstore.store.files.block_arrays import block_arrays, encoded_parts
from actstore.store.files.bundles.reader import open_bundle
from actstore.store.files.bundles.writer import BundleWriter
from actstore.store.files.shards import write_parts
from actstore.store.layout import (
    LOCK_NAME,
    bundle_key,
    bundles_prefix,
    capture_key,
    commit_key,
    committed_key,
    folded_statistics_key,
    record_key,
    shard_key,
    values_key,
)
from actstore.store.storage.atomic import sync_tree
from actstore.store.storage.disk import is_temporary, link_or_copy, sync_folder
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.transfer.exchange import replace_folder
from actstore.store.transfer.interrupted import ASIDE, SCRATCH, path_of, put_back, remove_scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.store.capture.reader import Capture
    from actstore.store.files.arrays import BlockArraySpec
    from actstore.store.files.records import CaptureRecord, CommitRecord

_MOST_THREADS: Final = 16


def reorder_capture(
    location: Folder, name: str | None, order: str, on_block: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """Have the values of a capture, or of the only one, lie in another `order`; its name.

    Nothing is done where they do. `on_block` is told how many of the blocks are written, of how many. Errors are as of
    `actstore.Store.reorder`.
    """
    folder = Folder(location, read_only=False)
    if folder.local_path() is None:
        raise InvalidInputError(
            f"Captures are put into another order on a local disk, and {folder} is none. Copy the store to one, with "
            "`actstore.copy`, reorder the capture there, and copy it back to another location."
        )
    put_back(folder)
    name = Captures(folder).peek(name).record.name
    with own(folder, name), _scratch_folder(folder, name) as scratch:
        capture = Captures(folder).peek(name)
        record = dataclasses.replace(capture.record, order=_checked_order(capture, order))
        if record.order != capture.record.order:
            _Reordering(capture, record, scratch, on_block).run()
            _take_place(folder, scratch, name)
    return name


def _checked_order(capture: Capture, order: str) -> dict[str, str]:
    """The order that the record of a capture is to have; `InvalidInputError` where it cannot have one."""
    record, path = capture.record, path_of(capture.folder, capture_key(capture.record.name))
    found = order_of_sites(order, record.sites, record.order)
    if not record.encoding.keeps_values:
        raise InvalidInputError(
            f"Capture {record.name!r} keeps statistics only (precision none): there are no values to put into another order."
        )
    if not record.is_checked:
        raise InvalidInputError(
            f"Capture {record.name!r} was written by an earlier version, without checksums of its rows, and what cannot be "
            "checked is not written anew. Capture the corpus again, with the `order` that you want."
        )
    for linked in (entry for entry in (path, *path.rglob("*")) if entry.is_symlink()):
        raise InvalidInputError(
            f"{linked} is a symbolic link, and a capture is put into another order where all of it lies in one folder. Put "
            "what it names in its place."
        )
    return found


@contextmanager
def _scratch_folder(folder: Folder, name: str) -> Iterator[Folder]:
    """An empty store, gone afterwards, on the disk of a capture that the caller owns; what a killed call left goes too."""
    path = path_of(folder, f"{SCRATCH}/{name}")
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield Folder(path, read_only=False, sync=False)  # all of it is synced once, before it takes its place
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CaptureError(
            f"The disk of {folder} is full: capture {name!r} could not be written beside itself, and is as it was. Make room, "
            "and run the same again."
        ) from None
    finally:
        if folder.exists(record_key(name)):  # else the capture itself is there, aside
            remove_scratch(folder, name)


@dataclass
class _Reordering:
    """A capture, and the same in another order, in a store of its own."""

    capture: Capture
    record: CaptureRecord
    """As it is to be."""
    scratch: Folder
    on_block: Callable[[int, int], None]

    def __post_init__(self) -> None:
        self._before, self._source = self.capture.record, self.capture.folder
        self._name = self._before.name
        self._prefix = f"{capture_key(self._name)}/"
        new = {spec.key: spec for spec in block_arrays(self.record)}
        self._changed: dict[str, tuple[BlockArraySpec, str, int]] = {}
        """Key of an array whose order changes → what it is to be, its site and layer."""
        for site in self._before.sites:
            if self._before.order.get(site) != self.record.order.get(site):
                for layer in self._before.layers(site):
                    key = values_key(self._name, site, layer)
                    self._changed[key] = new[key], site, layer

    def run(self) -> None:
        """Write all of it."""
        commits = [read_commit(self._source, self._before, block) for block in self.capture.blocks]
        self._check_room(commits)
        self._link_others()
        for spec, _, _ in self._changed.values():
            create_block_array(self.scratch, spec, self.record.plan.n_blocks)
        write_record(self.scratch, self.record)
        self.on_block(0, len(commits))
        n_threads = min(_MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-reorder") as pool:
            for number, commit in enumerate(commits):
                shards = self._bundled(commit) if self.record.bundled else commit.shards | self._shards(commit, pool)
                new = dataclasses.replace(commit, shards=shards).with_checksum()
                self.scratch.write_json(commit_key(self._name, commit.block), new.to_json())
                self.on_block(number + 1, len(commits))
        if self.capture.is_complete and self._source.exists(committed_key(self._name)):
            write_committed(self.scratch, self.record)

    def _short(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _check_room(self, commits: list[CommitRecord]) -> None:
        """Raise `InvalidInputError` where what is written anew will not fit beside what is there."""
        changed = tuple(f"{self._short(key)}/" for key in self._changed)
        files = (item for commit in commits for item in commit.shards.items())
        needed = sum(size for key, (size, _) in files if self.record.bundled or key.startswith(changed))
        free = self._source.free_nbytes()
        if free is not None and needed > free:
            raise InvalidInputError(
                f"Capture {self._name!r} is written beside itself, which takes about {needed / 1e9:.2f} GB, and the disk of "
                f"{self._source} has {free / 1e9:.2f} GB free. Make room."
            )

    def _link_others(self) -> None:
        """Give every file that stays a second name; what a capture need not have, and would be wrong in another order, goes."""
        name = self._name
        gone = {record_key(name), committed_key(name), folded_statistics_key(name)}
        gone |= {commit_key(name, block) for block in self.capture.blocks}
        changed = (*(f"{key}/" for key in self._changed), f"{bundles_prefix(name)}/")
        source, target = (path_of(folder, capture_key(name)) for folder in (self._source, self.scratch))
        for place, folders, files in os.walk(source):
            folders[:] = [one for one in folders if not one.startswith(".")]  # those of a repair that was killed
            for path in (Path(place, file) for file in files):
                relative = path.relative_to(source)
                key = f"{self._prefix}{relative.as_posix()}"
                if key in gone or key.startswith(changed) or is_temporary(path):
                    continue
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                if path.name == LOCK_NAME:  # as the same file: who waits for it, waits for the capture in its place
                    with suppress(OSError):
                        os.link(path, target / relative)
                else:
                    link_or_copy(path, target / relative, sync=False)

    def _shards(self, commit: CommitRecord, pool: ThreadPoolExecutor) -> dict[str, tuple[int, str]]:
        """Write the shards of a block that change; key below the capture → size and checksum."""

        def write(key: str) -> tuple[str, tuple[int, str]]:
            spec, site, layer = self._changed[key]
            values, shard = self.capture.raw_block(layer, commit.block, site), shard_key(key, commit.block)
            with self.scratch.writer(shard) as file:
                return self._short(shard), write_parts(encoded_parts(spec, values, commit.block), file.write)

        return dict(pool.map(write, self._changed))

    def _bundled(self, commit: CommitRecord) -> dict[str, tuple[int, str]]:
        """Write the bundle of a block, whose other files are copied; the same of all of them."""
        block, shards = commit.block, dict(commit.shards)
        before = open_bundle(self._source, self._before, block)
        changed = {self._short(shard_key(key, block)): array for key, array in self._changed.items()}
        writer = BundleWriter(self.scratch, bundle_key(self._name, block))
        try:
            for number, short in enumerate(commit.shards):
                if short in changed:
                    spec, site, layer = changed[short]
                    values = self.capture.raw_block(layer, block, site)
                    shards[short] = writer.add_shard(number, short, encoded_parts(spec, values, block))
                else:
                    shards[short] = writer.add(number, short, *before.copy(short))
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return shards


def _take_place(folder: Folder, scratch: Folder, name: str) -> None:
    """Put the capture that was written beside in its place, once the disk has all of it."""
    here, there = (path_of(one, capture_key(name)) for one in (folder, scratch))
    aside = path_of(scratch, f"{ASIDE}/{capture_key(name)}")
    sync_tree(there)
    aside.parent.mkdir(parents=True)
    replace_folder(here, there, aside)
    for parent in (here.parent, there.parent):
        sync_folder(parent)

"""`committed.json` of a finished capture: that every planned block is committed, and how many slots of each hold a token.

A reader that has it needs neither the list of commit records nor the table of windows. It is written last, when everything of
the capture is there, and removed first by whoever is going to change a block. The commit records are the truth: on a local
disk, where listing them costs nothing, readers do. Elsewhere a block whose record was lost since is read like the others, its
values checked as always; `verify` compares both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.capture.commits import committed_blocks, digest_shards
from actstore.store.capture.plan import Plan
from actstore.store.errors import FormatError, NotFoundError, UnlistableError, finding
from actstore.store.files.bundles.reader import find_bundles
from actstore.store.files.names import write_names
from actstore.store.files.records import Record, verify_checksum, with_checksum
from actstore.store.layout import committed_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


@dataclass(frozen=True)
class Committed(Record):
    """What `committed.json` says; its checksum is beside it."""

    capture: str
    identity: str
    """The capture's, empty in one of an earlier version."""
    plan: str
    """The plan's fingerprint."""
    shards: str
    """`digest_shards` of all blocks."""
    slots: tuple[int, ...] = field(default=())
    """Slots of each block that hold a token."""

    @property
    def used_slots(self) -> NDArray[np.int64]:
        """The same as an array; shape [block]."""
        return np.array(self.slots, np.int64)


def write_committed(folder: Folder, record: CaptureRecord) -> None:
    """Say that a capture is finished, every block of which is committed: the last that is written of it."""
    folder.write_json(committed_key(record.name), with_checksum(_expected(folder, record).to_json()))


def complete_index(folder: Folder, record: CaptureRecord) -> None:
    """Write the index of a finished capture, if there is none that can be read, and bring that of the store's captures up."""
    try:
        is_there = read_committed(folder, record) is not None
    except FormatError:
        is_there = False
    if not is_there:
        write_committed(folder, record)
        write_names(folder, "captures", record.name)


def _expected(folder: Folder, record: CaptureRecord, shards: str = "") -> Committed:
    """What the commit records and the plan say; `shards` is `digest_shards` of all blocks, where it is known."""
    slots = Plan(folder, record.name, record.plan, record.plan_files).used_slots()
    shards = shards or digest_shards(folder, record)
    return Committed(record.name, record.identity, record.plan.fingerprint, shards, tuple(slots.tolist()))


def read_committed(folder: Folder, record: CaptureRecord) -> Committed | None:
    """What a finished capture's index says; None where there is none, `FormatError` where it is damaged, or of another."""
    key = committed_key(record.name)
    where = f"{folder}/{key}"
    try:
        value = folder.read_json(key)
    except NotFoundError:
        return None
    verify_checksum(value, where)
    committed, plan = Committed.from_json(value, where), record.plan
    of_capture = (record.name, record.identity, plan.fingerprint, plan.n_blocks)
    if "checksum" not in value or of_capture != (
        committed.capture, committed.identity, committed.plan, len(committed.slots),
    ):  # fmt: skip
        raise FormatError(f"{where} is not the index of this capture, but of another.", "Run `store.repair()`.")
    if not all(0 <= n <= plan.block_slots for n in committed.slots) or sum(committed.slots) != plan.n_tokens:
        raise FormatError(
            f"{where} is damaged: its blocks do not hold the tokens of the plan.", "Run `store.repair()`."
        )
    return committed


def find_blocks(folder: Folder, record: CaptureRecord) -> tuple[tuple[int, ...], Committed | None]:
    """The committed blocks, ascending, and the index that says so; None in its place where they were listed.

    `FormatError` where they can be had neither way. From then on, `folder` finds the files of the blocks.
    """
    find_bundles(folder, record)
    n_blocks = record.plan.n_blocks
    damage: FormatError | None = None
    if folder.local_path() is None:
        try:
            if (committed := read_committed(folder, record)) is not None:
                return tuple(range(n_blocks)), committed
        except FormatError as error:
            damage = error
    try:
        return tuple(b for b in committed_blocks(folder, record.name) if b < n_blocks), None
    except (UnlistableError, PermissionError):
        raise damage or FormatError(
            f"The blocks of capture {record.name!r} of {folder} cannot be listed there, and it has no committed.json that "
            "names them: it is unfinished, or an earlier version of actstore wrote it.",
            "Finish it with `resume=True` where it can be written.",
        ) from None


def damaged_index(folder: Folder, record: CaptureRecord, shards: str = "") -> Iterator[tuple[str, str]]:
    """(key below the capture, what is wrong) of an index that is there and not what commit records and plan say.

    `shards` is `digest_shards` of all blocks, where it is known.
    """
    try:
        committed = read_committed(folder, record)
        if committed is not None and committed != _expected(folder, record, shards):
            yield "committed.json", "not what the commit records and the plan say"
    except FormatError as error:
        yield "committed.json", finding(error)
    except NotFoundError:  # of a commit record
        yield "committed.json", "says that every block is committed, and a commit record is missing"

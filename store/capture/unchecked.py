"""Captures of earlier versions, whose rows have no checksums: each shard is checked whole when an opened store first uses it.

`verify` reads every shard anyway, and leaves a record of the blocks that it found right: they are not checked again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from actstore.store.capture.commits import damaged_files, read_commit
from actstore.store.errors import ActstoreError, FormatError, NotFoundError
from actstore.store.files.records import verify_checksum, with_checksum
from actstore.store.files.shards import WHAT_TO_DO
from actstore.store.layout import capture_key, shard_key, verified_key
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.store.files.arrays import BlockArraySpec
    from actstore.store.files.records import CaptureRecord

_checked: Final[WeakKeyDictionary[Folder, set[str]]] = WeakKeyDictionary()
"""The shards of each opened store that were found right."""


def check_shard(folder: Folder, record: CaptureRecord, spec: BlockArraySpec, block: int) -> None:
    """Check a shard whole against its block's commit record, where its rows have no checksums and nobody has checked it yet.

    `FormatError` where it has other bytes.
    """
    if record.is_checked:
        return
    key = shard_key(spec.key, block)
    checked = _checked.setdefault(folder, set())
    if key in checked:
        return
    commit, prefix = read_commit(folder, record, block), capture_key(record.name)
    if read_verified(folder, record.name).get(block) != commit.checksum:
        short = key.removeprefix(f"{prefix}/")
        damage = [(short, "its block's commit record does not list it")]
        if short in commit.shards:
            damage = [*damaged_files(folder, prefix, {short: commit.shards[short]})]
        for _, what in damage:
            raise FormatError(f"{spec.title}, block {block}: {folder}/{key} is damaged: {what}.", WHAT_TO_DO)
    checked.add(key)


def read_verified(folder: Folder, capture: str) -> dict[int, str]:
    """Block → checksum of its commit record, of the blocks that `verify` found right; a damaged record of them says nothing."""
    try:
        value = folder.read_json(verified_key(capture))
        verify_checksum(value, verified_key(capture))
        return {int(block): str(checksum) for block, checksum in value["blocks"].items()} if "checksum" in value else {}
    except (NotFoundError, FormatError, ValueError, KeyError, AttributeError):
        return {}


def write_verified(folder: Folder, record: CaptureRecord, blocks: Iterable[int]) -> None:
    """Record that every shard of `blocks` is what the blocks' commit records say; nothing where the store cannot be written."""
    checksums = {str(block): read_commit(folder, record, block).checksum for block in blocks}
    # Whoever verifies a store may only be allowed to read it, and some storages cannot be written at all.
    with suppress(OSError, NotImplementedError, ActstoreError):
        writable = Folder(folder, read_only=False)
        writable.write_json(verified_key(record.name), with_checksum({"blocks": checksums}))

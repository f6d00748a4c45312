"""Which blocks of a capture exist: the commit records, and whether bytes on disk still are what they promise.

Knows nothing about what the shards mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.layout import capture_key, commit_key
from actstore.store.records import CommitRecord
from actstore.store.shards import checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.folder import Folder


def committed_blocks(folder: Folder, capture: str) -> list[int]:
    """The numbers of all blocks that have a commit record, ascending."""
    names = folder.names(f"{capture_key(capture)}/blocks")
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def read_commit(folder: Folder, capture: str, block: int) -> CommitRecord:
    """The commit record of a block; `FormatError` where it is damaged."""
    key = commit_key(capture, block)
    where = f"{folder}/{key}"
    record = CommitRecord.from_json(folder.read_json(key), where)
    if record.block != block or record.sealed().checksum != record.checksum:
        raise FormatError(f"{where} is damaged: its checksum does not match. Delete it and run capture with --resume.")
    return record


def damaged_shards(folder: Folder, capture: str, block: int) -> Iterator[tuple[str, str]]:
    """(key below the capture, what is wrong) of every shard of a block that is not what its commit record says."""
    try:
        record = read_commit(folder, capture, block)
    except FormatError as error:
        yield commit_key(capture, block).removeprefix(f"{capture_key(capture)}/"), str(error)
        return
    for key, (nbytes, expected) in record.shards.items():
        try:
            data = folder.view(f"{capture_key(capture)}/{key}")
        except NotFoundError:
            yield key, "missing"
            continue
        if len(data) != nbytes:
            yield key, f"{len(data)} bytes, expected {nbytes}"
        elif checksum(data) != expected:
            yield key, f"checksum {checksum(data)}, expected {expected}"

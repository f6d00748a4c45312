"""Which blocks of a capture exist: the commit records, and whether the bytes on disk still match their checksums."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from actstore.store.capture.identity import check_commit
from actstore.store.errors import FIND_DAMAGE, FormatError, NotFoundError, finding
from actstore.store.files.bundles.reader import find_bundles
from actstore.store.files.records import CommitRecord
from actstore.store.files.shards import source_checksum
from actstore.store.layout import capture_key, commit_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source


def committed_blocks(folder: Folder, capture: str) -> list[int]:
    """The numbers of all blocks that have a commit record, ascending."""
    names = folder.names(f"{capture_key(capture)}/blocks")
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def missing_blocks(folder: Folder, capture: CaptureRecord) -> list[int]:
    """The numbers of all planned blocks that have no commit record, ascending."""
    committed = set(committed_blocks(folder, capture.name))
    return [block for block in range(capture.plan.n_blocks) if block not in committed]


def read_commit(folder: Folder, capture: CaptureRecord, block: int) -> CommitRecord:
    """The commit record of a block; `FormatError` where it is damaged, or of another capture."""
    return parse_commit(folder, capture, block, folder.read_json(commit_key(capture.name, block)))


def parse_commit(folder: Folder, capture: CaptureRecord, block: int, value: Any) -> CommitRecord:
    """The commit record of a block in JSON that was read from its key; `FormatError` as of `read_commit`."""
    where = f"{folder}/{commit_key(capture.name, block)}"
    record = CommitRecord.from_json(value, where)
    if record.block != block or record.with_checksum().checksum != record.checksum:
        raise FormatError(
            f"{where} is damaged: its checksum does not match.", "`store.repair()` computes the block again."
        )
    check_commit(folder, record, capture)
    return record


def digest_commits(folder: Folder, record: CaptureRecord, n_blocks: int) -> bytes:
    """SHA-256 over the capture's identity and the commit records of its first blocks: other blocks have another."""
    digest = CommitsDigest(record)
    for block in range(n_blocks):
        digest.add(read_commit(folder, record, block))
    return digest.digest()


class CommitsDigest:
    """The same, of commit records that are added one by one."""

    def __init__(self, record: CaptureRecord) -> None:
        self._digest = hashlib.sha256(f"{record.identity} {record.name}".encode())
        self.n_blocks = 0
        """Records that were added."""

    def add(self, commit: CommitRecord) -> None:
        """Add the record of the next block."""
        self._digest.update(commit.checksum.encode())
        self.n_blocks += 1

    def digest(self) -> bytes:
        """What it comes down to."""
        return self._digest.digest()


def digest_shards(folder: Folder, record: CaptureRecord) -> str:
    """SHA-256 over the capture's identity and what its commit records say of each file of all blocks, without their times."""
    return shards_digest(record, (read_commit(folder, record, block) for block in range(record.plan.n_blocks)))


def shards_digest(record: CaptureRecord, commits: Iterable[CommitRecord]) -> str:
    """The same of commit records that are at hand, those of all blocks in their order."""
    digest = ShardsDigest(record)
    for commit in commits:
        digest.add(commit)
    return digest.hexdigest()


class ShardsDigest:
    """The same, of commit records that are added one by one."""

    def __init__(self, record: CaptureRecord) -> None:
        self._digest = hashlib.sha256(f"{record.identity} {record.name}".encode())

    def add(self, commit: CommitRecord) -> None:
        """Add the record of the next block."""
        self._digest.update(json.dumps(commit.shards, sort_keys=True).encode())

    def hexdigest(self) -> str:
        """What it comes down to."""
        return self._digest.hexdigest()


def read_file(folder: Folder, capture: CaptureRecord, block: int, key: str) -> bytes:
    """The small file `key` of a block; `FormatError` where it is not what the block's commit record says."""
    find_bundles(folder, capture)
    prefix = capture_key(capture.name)
    short = key.removeprefix(f"{prefix}/")
    shards = read_commit(folder, capture, block).shards
    for _, source, what in checked_files(folder, prefix, {short: shards[short]} if short in shards else {}):
        if source is None:
            raise FormatError(f"{folder}/{key} is damaged: {what}.", FIND_DAMAGE)
        return bytes(source.read(0, source.nbytes))
    return folder.read(key)


def damaged_files(folder: Folder, prefix: str, files: Mapping[str, tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """(key below `prefix`, what is wrong) of every file that has other bytes than its (size, checksum) in `files`."""
    return ((key, what) for key, source, what in checked_files(folder, prefix, files) if source is None)


def checked_files(
    folder: Folder, prefix: str, files: Mapping[str, tuple[int, str]]
) -> Iterator[tuple[str, Source | None, str]]:
    """Every file as (key below `prefix`, its bytes, ""), or (key, None, what is wrong) where it is not as in `files`."""
    for key, (nbytes, expected) in files.items():
        try:
            source = folder.source(f"{prefix}/{key}", tail=None)
        except (NotFoundError, FormatError) as error:  # a FormatError is of the bundle that it lies in
            yield key, None, "missing" if isinstance(error, NotFoundError) else finding(error)
            continue
        if source.nbytes != nbytes:
            yield key, None, f"{source.nbytes} bytes, expected {nbytes}"
        elif (found := source_checksum(source)) != expected:
            yield key, None, f"checksum {found}, expected {expected}"
        else:
            yield key, source, ""

"""Which worker computes which block of a capture, where several fill it at once.

A worker claims a block by creating its record, which only one can. While it computes, a thread of its own counts the record
up. A record that has not changed for a lease is a dead worker's, and whoever replaces it has the block. No two clocks are
compared: what counts is for how long the one who looks has seen no change, by its own clock.

A worker that was only slow may lose a block, and notices before it writes. Should both write it all the same, nothing is wrong:
workers of the same numerics compute the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from actstore.store.capture.commits import committed_blocks, missing_blocks
from actstore.store.errors import NotFoundError
from actstore.store.layout import claim_key, claims_prefix, commit_key
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from actstore.store.files.records import CaptureRecord

LEASE_S: Final = 60.0
"""How long a claim must stand still before its worker counts as dead."""
_BEATS_PER_LEASE: Final = 4
_MOST_WAITED_S: Final = 2.0
"""How often, at most, a worker that waits for others looks at what they do."""

logger = logging.getLogger("actstore")


class BlockClaims:
    """The blocks that this worker claims of one capture; use as a context manager, which lets go of what was not committed."""

    def __init__(
        self,
        folder: Folder,
        record: CaptureRecord,
        *,
        worker: int | None = None,
        n_workers: int = 1,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Claims of `worker` of `n_workers`, which begins with every n-th block; without a number, somewhere."""
        # A claim need not outlast a power cut: nobody works on after one.
        self._folder = folder if folder.local_path() is None else Folder(folder.location, read_only=False, sync=False)
        self._record, self._lease_s, self._clock = record, lease_s, clock
        self._worker, self._n_workers = worker, n_workers
        self._id = secrets.token_hex(8)
        self._held: dict[int, bytes] = {}
        """Block → the claim as this worker wrote it last."""
        self._seen: dict[int, tuple[bytes, float]] = {}
        """Block → another's claim, and since when it has been seen to be so."""
        self._can_renew = False
        self._changing = threading.RLock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="actstore-claims", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._heart.join()
        for block in list(self._held):
            with suppress(OSError):  # it lapses by itself, and what went wrong before must be heard
                self.release(block)

    @property
    def held(self) -> list[int]:
        """The blocks that this worker has claimed and not let go of, ascending."""
        return sorted(self._held)

    def take(self) -> Iterator[int]:
        """Blocks that nobody else computes, each claimed when it is asked for: this worker's share, then the others'."""
        committed = set(committed_blocks(self._folder, self._record.name))
        for block in self._in_order():
            if block not in committed and block not in self._held and self._claim(block):
                yield block

    def await_others(self) -> bool:
        """Wait a moment for the blocks that others compute; False where every block is committed."""
        if not missing_blocks(self._folder, self._record):
            return False
        time.sleep(min(self._lease_s / _BEATS_PER_LEASE, _MOST_WAITED_S))
        return True

    def renew(self, block: int) -> bool:
        """Whether a block is this worker's still; if so, its lease begins again."""
        with self._changing:
            written = self._held.get(block)
            if written is None:
                return False
            renewed = self._claim_bytes(json.loads(written)["beat"] + 1)
            if not self._folder.swap(claim_key(self._record.name, block), renewed, written):
                del self._held[block]
                return False
            self._held[block] = renewed
            return True

    def release(self, block: int) -> None:
        """Let go of a block, which is committed, or is left to others."""
        with self._changing:
            if self._held.pop(block, None) is not None:
                self._folder.delete(claim_key(self._record.name, block))

    def _in_order(self) -> Iterator[int]:
        n_blocks = self._record.plan.n_blocks
        if self._worker is None:  # workers that begin in different places meet late
            first = random.randrange(n_blocks)
            yield from (*range(first, n_blocks), *range(first))
            return
        for offset in range(self._n_workers):
            yield from range((self._worker + offset) % self._n_workers, n_blocks, self._n_workers)

    def _claim(self, block: int) -> bool:
        key, data = claim_key(self._record.name, block), self._claim_bytes(0)
        with self._changing:
            try:
                self._folder.create(key, data)
            except FileExistsError:
                if not self._take_over(block, data):
                    return False
            self._held[block] = data
            if not self._can_renew:
                self._can_renew = self._folder.swap(key, data, data)  # raises where no storage of its kind can
            if self._folder.exists(commit_key(self._record.name, block)):  # between the listing and the claim
                self.release(block)
                return False
            return True

    def _take_over(self, block: int, data: bytes) -> bool:
        """Whether the claim of another, who has not been heard of for its lease, is replaced by `data`."""
        key = claim_key(self._record.name, block)
        try:
            written = self._folder.read(key)
        except NotFoundError:
            return False  # it has just been released
        seen, since = self._seen.get(block, (b"", 0.0))
        if written != seen:
            self._seen[block] = written, self._clock()
            return False
        if self._clock() - since < _lease_of(written, self._lease_s):
            return False
        del self._seen[block]
        if not self._folder.swap(key, data, written):
            return False
        logger.info("Block %d of capture %r is taken over from a worker that ended.", block, self._record.name)
        return True

    def _claim_bytes(self, beat: int) -> bytes:
        claim = {
            "worker": self._id,
            "process": f"process {os.getpid()} on {socket.gethostname()}",
            "lease_s": self._lease_s,
            "beat": beat,
        }
        return json.dumps(claim).encode()

    def _beat(self) -> None:
        while not self._ended.wait(self._lease_s / _BEATS_PER_LEASE):
            for block in list(self._held):
                with suppress(OSError):  # as of a full disk: the block may be lost, and whoever writes it is told
                    self.renew(block)


def claimed_blocks(folder: Folder, capture: str) -> list[int]:
    """The blocks that are claimed, by workers that live or do not, ascending."""
    names = folder.names(claims_prefix(capture))
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def remove_claims(folder: Folder, capture: str) -> None:
    """Remove what killed workers have claimed of a capture that the caller owns."""
    folder.delete(claims_prefix(capture))


def _lease_of(claim: bytes, otherwise: float) -> float:
    """The lease that a claim was written for: that of its worker, who beats accordingly."""
    try:
        lease_s = json.loads(claim)["lease_s"]
    except (ValueError, KeyError, TypeError):
        return otherwise  # half written, where a file system cannot link
    return float(lease_s) if isinstance(lease_s, int | float) else otherwise

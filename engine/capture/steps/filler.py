"""Fills blocks of a planned capture with a loaded model: alone, or one of several workers that claim theirs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from actstore.engine.capture.sizes import check_memory, estimate_nbytes, n_buffers_on
from actstore.engine.workers.local import n_processors
from actstore.engine.workers.numerics import same_numerics
from actstore.store import layout
from actstore.store.capture.commits import missing_blocks
from actstore.store.capture.statistics.neuron_table import remove_finished
from actstore.store.capture.writer import CaptureWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.statistics.running import RunningStatistics
    from actstore.store.capture.workers.claims import BlockClaims
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


class FillBlocks(Protocol):
    """Runs the model over blocks, in the order given, and submits each to the writer; one function per kind of capture."""

    def __call__(
        self,
        folder: Folder,
        record: CaptureRecord,
        model: LoadedModel,
        writer: CaptureWriter,
        blocks: Iterable[int],
        progress: CaptureProgress,
        /,
    ) -> None:
        """`model` and `writer` are for `record`; `folder` is where its plan is."""


@dataclass(frozen=True)
class Filler:
    """What fills the blocks of one capture in this process; the caller owns the capture, or shares it with other workers."""

    folder: Folder
    record: CaptureRecord
    model: LoadedModel
    fill_blocks: FillBlocks
    progress: CaptureProgress
    threads: int | None = None
    """Encoder threads, as in `RunOptions`."""
    allow_mixed: bool = False
    """Whether other numerics than those of the blocks before are written down instead of refused."""

    def fill(
        self, blocks: Iterable[int], on_commit: Callable[[int], None], running: RunningStatistics | None = None
    ) -> None:
        """Fill and commit blocks, none of which is committed, in the order given.

        `on_commit` is told of each, and its statistics are added to `running`.
        """
        with self._writer(on_commit) as writer:
            writer.running = running
            self.fill_blocks(self.folder, self.record, self.model, writer, blocks, self.progress)

    def fill_claimed(self, claims: BlockClaims, on_commit: Callable[[int], None]) -> None:
        """Fill what other workers do not, until every block is committed; `on_commit` is told of each of this worker's."""

        def let_go(block: int) -> None:
            claims.release(block)
            on_commit(block)

        with self._writer(let_go) as writer:
            writer.is_wanted = claims.renew
            while True:
                blocks = claims.take()
                if (first := next(blocks, None)) is not None:
                    taken = chain((first,), blocks)
                    self.fill_blocks(self.folder, self.record, self.model, writer, taken, self.progress)
                    # Others wait for these, as this worker does for theirs.
                    writer.drain()
                elif not claims.await_others():
                    return

    @contextmanager
    def _writer(self, on_commit: Callable[[int], None]) -> Iterator[CaptureWriter]:
        folder, record = self.folder, self.record
        check_memory(record, n_buffers_on(self.model.device))
        with same_numerics(folder, record.name, self.model, allow_mixed=self.allow_mixed), self._committing() as writer:
            writer.on_commit = on_commit
            yield writer

    @contextmanager
    def _committing(self) -> Iterator[CaptureWriter]:
        folder, record = self.folder, self.record
        overlap = self.model.device.type != "cpu"
        if folder.exists(layout.table_key(record.name, "neurons")):
            # Blocks of a finished capture were lost. They may come out otherwise than they were, and all is added up anew.
            remove_finished(folder, record.name)
        plan = record.plan
        n_committed = plan.n_blocks - len(missing_blocks(folder, record))
        self.progress.started(plan.n_tokens, plan.n_tokens * n_committed // plan.n_blocks, estimate_nbytes(record))
        n_threads = n_encoders(self.threads, overlap=overlap)
        with CaptureWriter(folder, record, n_threads=n_threads, overlap=overlap) as writer:
            yield writer


def n_encoders(threads: int | None, *, overlap: bool) -> int:
    """Threads that encode blocks, `threads` if said.

    Every core where a block is encoded while nothing else runs; half of them where the loop that feeds a GPU does.
    """
    n_cores = n_processors()
    return threads or max(1, min(16, n_cores // 2 if overlap else n_cores))


def blocks_so_far(folder: Folder, record: CaptureRecord) -> str:
    """How much of a capture is there, as a message has it."""
    n_committed = record.plan.n_blocks - len(missing_blocks(folder, record))
    return f"{n_committed} of {record.plan.n_blocks} blocks of capture {record.name!r} are in {folder}"

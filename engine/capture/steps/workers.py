"""A planned capture, filled by the workers of an executor, whichever that is; this process only looks on."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from actstore.engine.capture.sizes import estimate_nbytes
from actstore.engine.capture.steps.filler import blocks_so_far
from actstore.engine.capture.steps.worker import WorkerTask
from actstore.engine.workers.executor import WorkerEnded
from actstore.store.capture.commits import committed_blocks, missing_blocks
from actstore.store.capture.workers.claims import claimed_blocks
from actstore.store.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.capture.steps.worker import FillOptions
    from actstore.engine.workers.executor import Executor
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

_LOOK_S: Final = 1.0
"""How often blocks are counted; those that workers elsewhere commit count too."""


def fill_by_workers(
    executor: Executor,
    folder: Folder,
    record: CaptureRecord,
    model: str,
    fill_blocks: FillBlocks,
    options: FillOptions,
    progress: CaptureProgress,
) -> None:
    """Fill every missing block of a capture that nobody owns; `model` is a name or path that all workers can load.

    Raises what the first worker to fail raises; `CaptureError` naming the blocks of a worker that was killed, and on Ctrl-C.
    """
    missing = missing_blocks(folder, record)
    if not missing:
        return
    n_workers = min(executor.n_workers, len(missing))
    task = WorkerTask(folder, record.name, model, fill_blocks, options, n_workers, executor.threads_per_worker)
    try:
        with _watched(folder, record, progress):
            for _ in executor.map_unordered(task, range(n_workers)):
                pass
    except WorkerEnded as error:
        # Those that were told to end have let go of theirs.
        blocks = ", ".join(map(str, claimed_blocks(folder, record.name))) or "none"
        raise CaptureError(
            f"Worker {error.item} of {n_workers} ended {error.how}, with these blocks of capture {record.name!r} unfinished: "
            f"{blocks}. What is committed stays; run again with `resume=True`."
        ) from None
    except KeyboardInterrupt:
        raise CaptureError(
            f"Interrupted: {blocks_so_far(folder, record)}. Run the same command with `resume=True` to fill the rest."
        ) from None


@contextmanager
def _watched(folder: Folder, record: CaptureRecord, progress: CaptureProgress) -> Iterator[None]:
    """Tell `progress` of all blocks that are committed meanwhile, by whomever."""
    plan, ended = record.plan, threading.Event()

    def n_done() -> int:
        return plan.n_tokens * len(committed_blocks(folder, record.name)) // plan.n_blocks

    n_told = n_done()

    def tell() -> None:
        nonlocal n_told
        n_told, before = n_done(), n_told
        progress.filled(n_told - before)

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            tell()

    progress.started(plan.n_tokens, n_told, estimate_nbytes(record))
    thread = threading.Thread(target=watch, name="actstore-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell()

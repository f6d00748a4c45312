"""The last step of a capture: what stands for all of its blocks, added up from what each has of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.capture.commits import missing_blocks
from actstore.store.capture.committed import complete_index
from actstore.store.capture.questions.answers import has_attributions, write_answers
from actstore.store.capture.statistics.capture_statistics import is_finished
from actstore.store.capture.statistics.finished import write_totals
from actstore.store.capture.statistics.neuron_table import unfinish
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.workers.claims import remove_claims
from actstore.store.errors import CaptureError
from actstore.store.layout import generated_prefix
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.store.capture.reader import Capture
    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

_MOST_NAMED = 8
"""The maximum number of missing blocks that a message names."""


def finish_capture(folder: Folder, record: CaptureRecord, running: RunningStatistics | None = None) -> None:
    """Write what stands for all blocks of a capture that the caller owns, the index of its blocks last, and remove its claims.

    `running`: the statistics of the first blocks, where this process has begun to add them up. `CaptureError` where a block is
    missing; where the capture is finished, only its index is completed and leftovers removed.
    """
    if missing := missing_blocks(folder, record):
        named = ", ".join(map(str, missing[:_MOST_NAMED])) + (", …" if len(missing) > _MOST_NAMED else "")
        raise CaptureError(
            f"{len(missing)} of {record.plan.n_blocks} blocks of capture {record.name!r} in {folder} are missing: {named}. "
            "Fill them before the capture is finished."
        )
    if is_finished(folder, record):
        complete_index(folder, record)
    else:
        # Whoever filled all blocks leaves a checkpoint, also where it was stopped between a block and the checkpoint.
        leaves_checkpoint = running is not None
        running = running or RunningStatistics(folder, record)
        running.advance(checkpoint=leaves_checkpoint)
        write_results(Store(folder).peek(record.name), running.total)
    remove_claims(folder, record.name)
    folder.delete(generated_prefix(record.name))


def write_results(capture: Capture, total: CaptureStatistics) -> None:
    """Write what a finished capture has beside its blocks, whose statistics add up to `total`; the index last."""
    folder, record = capture.folder, capture.record
    # Gone while the rest is written: a reader adds up the blocks meanwhile, and whoever is killed here is seen.
    unfinish(folder, record.name)
    if has_attributions(capture):
        write_answers(capture)
    write_totals(folder, record, total)

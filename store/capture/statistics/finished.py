"""What is written of a capture once all of its blocks are committed, in the order in which readers may believe it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.capture.committed import complete_index
from actstore.store.capture.statistics.exemplars import write_exemplars
from actstore.store.capture.statistics.neuron_table import write_finished

if TYPE_CHECKING:
    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


def write_totals(folder: Folder, record: CaptureRecord, total: CaptureStatistics) -> None:
    """Write exemplars and statistics, then the table of neurons, which says that they are complete, and the index last.

    Of a capture that is not finished, or by `unfinish` not any more.
    """
    write_exemplars(folder, record, total)
    write_finished(folder, record, total)
    complete_index(folder, record)

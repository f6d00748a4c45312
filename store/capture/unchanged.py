"""Whether a capture is still the one that was opened, where values and their scales come from objects of their own.

A row of int8 values and its scale lie in two objects, and each has its checksum. Whoever changes a block removes the capture's
index before; so what was read is of one state where the index is, after the reading, what it was at the opening.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from actstore.store.capture.committed import read_committed
from actstore.store.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.capture.committed import Committed
    from actstore.store.files.arrays import BlockArray
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


@contextmanager
def unchanged(folder: Folder, record: CaptureRecord, committed: Committed | None, array: BlockArray) -> Iterator[None]:
    """Read rows of `array` and their scales inside; `StorageError` where blocks were being changed meanwhile.

    It takes one request, and none where no shard was opened: one that is open keeps to the bytes that it opened. Nothing is
    asked without an index, as on a local disk, and at precisions without scales.
    """
    n_opened, is_needed = array.n_opened, committed is not None and bool(record.encoding.decode_parameters)
    try:
        yield
        if is_needed and array.n_opened > n_opened:
            _check(folder, record, committed)
    except BaseException:
        if is_needed:
            array.close()  # what was opened meanwhile may be of another state: the next reader opens, and asks, again
        raise


def _check(folder: Folder, record: CaptureRecord, committed: Committed | None) -> None:
    if read_committed(folder, record) != committed:
        raise StorageError(f"Capture {record.name!r} of {folder} was changed while it was read. Open the store again.")

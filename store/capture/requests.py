"""The requests of a capture of probes: one row per request of a neuron, with the window that answers it.

The file's metadata hold the checksum of its columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.shards import checksum
from actstore.store.layout import capture_key

if TYPE_CHECKING:
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

REQUESTS: Final = pa.schema(
    [
        ("layer", pa.int32()),
        ("neuron", pa.int32()),
        ("exemplar", pa.int32()),
        ("window", pa.int32()),
        ("pivot", pa.int32()),
        ("n_special", pa.int32()),
        ("position", pa.int32()),
        ("token", pa.int32()),
        ("whole", pa.float32()),
    ],
    metadata={
        "exemplar": "window of the capture that is asked about",
        "window": "the window of the probes that answers; several neurons may share one",
        "pivot": "where in it the token with the largest activation lies",
        "n_special": "special tokens at its beginning",
        "position": "which token is masked or substituted; -1 for none",
        "token": "by what; -1 where it is deleted or nothing is changed",
        "whole": "activation at the pivot in the exemplar itself",
    },
)
_CHECKSUM: Final = b"checksum"


def has_requests(record: CaptureRecord) -> bool:
    """Whether a capture is one of probes of neurons, which has a table of requests; sampled text has none."""
    return bool(record.settings.get("probes", {}).get("kind", "sampled") != "sampled")


def requests_key(capture: str) -> str:
    """Where the table of requests of a capture of probes lies."""
    return f"{capture_key(capture)}/requests.arrow"


def write_requests(folder: Folder, capture: str, table: pa.Table) -> None:
    """Write the table of requests of a capture of probes."""
    checked = table.replace_schema_metadata({**(REQUESTS.metadata or {}), _CHECKSUM: _checksum(table)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, checked.schema) as writer:
        writer.write_table(checked)
    folder.write(requests_key(capture), sink.getvalue().to_pybytes())


def requests_digest(folder: Folder, capture: str) -> str:
    """The checksum of the table of requests, as it says it itself."""
    with pa.ipc.open_file(pa.py_buffer(folder.read(requests_key(capture)))) as file:
        return str((file.schema.metadata or {}).get(_CHECKSUM, b"").decode())


def read_requests(folder: Folder, capture: str, digest: str = "") -> pa.Table:
    """The table of requests of a capture of probes; `FormatError` where it is missing, or not what was written.

    `digest`: as the capture's record has it among its `plan_files`. One of an earlier version has no checksum.
    """
    try:
        data = folder.read(requests_key(capture))
    except NotFoundError as error:
        raise _unreadable(folder, capture, str(error)) from None
    return parse_requests(folder, capture, data, digest)


def parse_requests(folder: Folder, capture: str, data: bytes, digest: str = "") -> pa.Table:
    """The same table in bytes that were read from its key; errors as of `read_requests`."""
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all().select(REQUESTS.names)
        table.validate(full=True)  # else columns longer than their bytes end the process
        stored, found = (table.schema.metadata or {}).get(_CHECKSUM), _checksum(table)
        what = "" if stored in (None, found.encode()) else "its checksum does not match"
        if not what and digest and digest != found:
            what = "it is that of another capture"
    except (pa.ArrowException, ValueError, KeyError, OSError, MemoryError) as error:
        what = str(error)
    if what:
        raise _unreadable(folder, capture, what)
    return table


def _unreadable(folder: Folder, capture: str, what: str) -> FormatError:
    reason = " ".join(what.split()).rstrip(".")
    return FormatError(
        f"{folder}/{requests_key(capture)} is damaged or missing: {reason}.",
        "Restore it from a copy, or make the probes again.",
    )


def _checksum(table: pa.Table) -> str:
    """Of the columns' checksums, so that none of them has to be copied."""
    columns = (table[name].to_numpy() for name in REQUESTS.names)
    return checksum(" ".join(checksum(column.view(np.uint8).data) for column in columns).encode())

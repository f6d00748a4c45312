"""What a capture's record says of each file of its plan, so that none can be taken for it that another plan has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.capture.plan import TOKEN_ARRAYS
from actstore.store.capture.requests import has_requests, requests_digest
from actstore.store.errors import NotFoundError
from actstore.store.files.parquet import table_digest
from actstore.store.files.plain_arrays import PlainArray
from actstore.store.layout import plan_key, table_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


def read_plan_files(folder: Folder, record: CaptureRecord) -> dict[str, str]:
    """File of the plan → what its bytes come down to, by the checksums that it was written with; without those not there."""
    name = record.name
    digests: dict[str, Callable[[], str]] = {
        array: lambda array=array: PlainArray(folder, plan_key(name, array)).digest  # type: ignore[misc]
        for array in ("inputs/ids", *(f"tokens/{column}" for column in TOKEN_ARRAYS))
    }
    for table in ("windows", "documents", *(["patches"] if record.of_images else [])):
        digests[f"{table}.parquet"] = lambda table=table: table_digest(folder, table_key(name, table))  # type: ignore[misc]
    if has_requests(record):
        digests["requests.arrow"] = lambda: requests_digest(folder, name)
    files = {}
    for file, digest in digests.items():
        try:
            files[file] = digest()
        except NotFoundError:
            continue  # whoever plans without it has no reader that needs it
    return files

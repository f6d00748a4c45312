"""The requests of probes: another capture's are not taken for those of this one."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pytest

from actstore.store.capture.requests import REQUESTS, read_requests, requests_digest, write_requests
from actstore.store.errors import FormatError
from actstore.store.storage.folder import Folder


def table(first: int) -> pa.Table:
    """Five requests."""
    return pa.table(
        [pa.array(np.arange(first, first + 5), field.type, safe=False) for field in REQUESTS], schema=REQUESTS
    )


def test_requests_of_another_capture_are_an_error() -> None:
    folder = Folder(f"memory://{uuid.uuid4()}", read_only=False)
    for name, first in (("a", 0), ("b", 7)):
        write_requests(folder, name, table(first))
    digest = requests_digest(folder, "a")
    assert read_requests(folder, "a", digest).equals(table(0))
    folder.write("captures/a/requests.arrow", folder.read("captures/b/requests.arrow"))
    assert read_requests(folder, "a").equals(table(7))
    with pytest.raises(FormatError, match=r"a/requests\.arrow is damaged or missing: it is that of another capture"):
        read_requests(folder, "a", digest)

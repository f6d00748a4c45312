"""An object that is written front to back: small ones in one request, large ones part by part while they are written."""

from __future__ import annotations

import io
import threading
from queue import Queue
from typing import TYPE_CHECKING, Final

import obstore

from actstore.store.storage.objects.errors import sentences
from actstore.store.storage.writers import KeyWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from actstore.store.storage.objects.connect import Driver

PART_NBYTES: Final = 1 << 23
"""What is larger is sent in parts of this size. S3 takes 10,000 parts of an object: 84 GB."""
_PARTS_AT_ONCE: Final = 2


class _AbandonedError(Exception):
    """Ends an upload of which no more will come; the driver has the server drop its parts."""


class ObjectWriter(KeyWriter):
    """Collects up to a part in memory; from the second on, a thread sends what is complete."""

    def __init__(self, driver: Driver, location: str, key: str) -> None:
        self._driver, self._location = driver, location
        self._buffer = io.BytesIO()
        self._n_sent = 0
        self._parts: Queue[bytes | _AbandonedError | None] = Queue(_PARTS_AT_ONCE)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        super().__init__(key, self._buffer)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._n_sent + self._buffer.tell()

    def write(self, data: Buffer) -> int:
        """The number of bytes appended; a `StorageError` where those before could not be sent."""
        n = self._buffer.write(data)
        if self._buffer.tell() >= PART_NBYTES:
            self._send()
        return n

    def _send(self) -> None:
        """Hand the whole parts that are collected to the thread, which may make the caller wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._upload, name="actstore-upload", daemon=True)
            self._thread.start()
        collected = self._buffer.getvalue()
        n_whole = len(collected) // PART_NBYTES * PART_NBYTES
        for at in range(0, n_whole, PART_NBYTES):
            self._put(collected[at : at + PART_NBYTES])
        self._n_sent += n_whole
        self._buffer.seek(0)
        self._buffer.truncate()
        self._buffer.write(collected[n_whole:])

    def _put(self, part: bytes | _AbandonedError | None) -> None:
        self._parts.put(part)
        if self._error is not None:
            raise self._error

    def _upload(self) -> None:
        try:
            with sentences(self._location, "written"):
                obstore.put(
                    self._driver,
                    self._key,
                    self._collected_parts(),
                    use_multipart=True,
                    chunk_size=PART_NBYTES,
                    max_concurrency=4,
                )
        except _AbandonedError:
            pass
        except BaseException as error:
            self._error = error
            while isinstance(self._parts.get(), bytes):  # whoever writes must not wait for room
                pass

    def _collected_parts(self) -> Iterator[bytes]:
        while (part := self._parts.get()) is not None:
            if isinstance(part, _AbandonedError):
                raise part
            yield part

    def _publish(self) -> None:
        if self._thread is None:
            with sentences(self._location, "written"):
                obstore.put(self._driver, self._key, self._buffer.getbuffer(), use_multipart=False)
            return
        if self._buffer.tell():
            self._put(self._buffer.getvalue())
        self._parts.put(None)
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error

    def _discard(self) -> None:
        if self._thread is not None:
            self._parts.put(_AbandonedError())
            self._thread.join()
            self._thread = None

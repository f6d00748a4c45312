"""Files that are written front to back and become visible whole, or never."""

from __future__ import annotations

import contextlib
import io
from abc import abstractmethod
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer


class KeyWriter(io.BufferedIOBase):
    """A binary file that becomes visible under its key on `close`; a storage says how."""

    def __init__(self, key: str, file: IO[bytes]) -> None:
        """Collect in `file` what will be under `key`."""
        self._key, self._file = key, file

    @abstractmethod
    def _publish(self) -> None:
        """Make what was written visible."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove what was written; `_file` is closed already."""

    def writable(self) -> bool:
        """Whether bytes can be written: always."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, data: Buffer) -> int:
        """The number of bytes appended."""
        return self._file.write(data)

    def close(self) -> None:
        """Publish what was written."""
        if self.closed:
            return
        try:
            self._publish()
        except BaseException:
            self.abandon()
            raise
        super().close()

    def abandon(self) -> None:
        """Drop what was written; nothing happens once it is published."""
        if self.closed:
            return
        with contextlib.suppress(OSError):  # a full disk may refuse the last bytes, which are not needed any more
            self._file.close()
        self._discard()
        super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The base class closes, which here would publish half a file.
        self.close() if kind is None else self.abandon()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.abandon()


class CollectingWriter(KeyWriter):
    """Collects the bytes in memory, and writes them in one piece: for storages that replace objects whole."""

    def __init__(self, key: str, write: Callable[[str, bytes], None]) -> None:
        """Hand key and bytes to `write` on `close`."""
        self._buffer = io.BytesIO()
        self._write = write
        super().__init__(key, self._buffer)

    def _publish(self) -> None:
        self._write(self._key, self._buffer.getvalue())
        self._buffer.close()

    def _discard(self) -> None:
        """Nothing: the bytes go with the buffer."""

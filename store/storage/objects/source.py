"""An object of which pieces are read, each by a request of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
from obstore.exceptions import BaseError, NotSupportedError

from actstore.store.errors import StorageError
from actstore.store.storage.objects.errors import sentences

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from obstore import GetResult, ObjectMeta

    from actstore.store.storage.objects.connect import Driver


class ObjectSource:
    """The bytes of an object, its end fetched at opening and kept: what is not in it takes a request per piece.

    It is the object that was opened: where another has taken its place since, reading is a `StorageError`.
    """

    def __init__(self, driver: Driver, location: str, key: str, tail: int) -> None:
        """Fetch the last `tail` bytes of the object, which say how long it is; `FileNotFoundError` where there is none."""
        self._driver, self._location, self._key = driver, location, key
        with sentences(location):
            result = fetch_end(driver, key, tail)
            self._identity = _identity_of(result.meta)
            self.nbytes: int = result.meta["size"]
            self._tail_at, _ = result.range
            self._tail = memoryview(result.bytes())
        self.nbytes_held = len(self._tail)

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes start…stop; `EOFError` where there are fewer."""
        if stop > self.nbytes:
            raise EOFError(f"it ends at byte {self.nbytes}")
        if start >= self._tail_at or start == stop:
            return self._tail[max(0, start - self._tail_at) : max(0, stop - self._tail_at)]
        end = min(stop, self._tail_at)
        with sentences(self._location):
            result = obstore.get(self._driver, self._key, options={"range": (start, end)})
            data = memoryview(result.bytes())
        if _identity_of(result.meta) != self._identity or len(data) != end - start:
            raise StorageError(
                f"{self._location}/{self._key} was replaced by another while it was read. Open the store again."
            )
        return data if end == stop else memoryview(b"".join((data, self._tail[: stop - end])))

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with the bytes from `start`; `EOFError` where there are fewer."""
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(self.read(start, start + out.nbytes), np.uint8)

    def will_need(self) -> None:
        """Nothing: whoever reads all of an object opens it whole."""


def _identity_of(meta: ObjectMeta) -> tuple[object, ...]:
    return meta["e_tag"], meta["size"], meta["last_modified"]


def fetch_end(driver: Driver, key: str, n: int) -> GetResult:
    """The last `n` bytes of an object, in one request where the server can count from the end; all of a shorter one."""
    try:
        return obstore.get(driver, key, options={"range": {"suffix": n}})
    except NotSupportedError as error:
        if ignores_ranges(error):
            return obstore.get(driver, key)
        # Azure does not count from the end.
        size = obstore.head(driver, key)["size"]
        return obstore.get(driver, key, options={"range": (max(0, size - n), size)} if size else {})
    except BaseError as error:
        if not is_unsatisfiable(error):
            raise
        # Of an empty object no byte can be asked for.
        return obstore.get(driver, key)


def is_unsatisfiable(error: BaseError) -> bool:
    """Whether a server says that an object has no byte of the range."""
    return "status code: 416" in str(error)


def ignores_ranges(error: BaseError) -> bool:
    """Whether a server has answered with the whole object where a range was asked for."""
    return "RangeNotSupported" in str(error)

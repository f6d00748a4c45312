"""Scans: one function over many parts of a store, in this process or in several, with the results in order."""

from __future__ import annotations

import pickle
import traceback
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np

from actstore.engine.workers.choose import executor_for
from actstore.engine.workers.executor import Executor, WorkerEnded
from actstore.engine.workers.local import Local
from actstore.store.arguments import argument
from actstore.store.errors import ActstoreError, CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")

HERE: Final[Executor] = Local()
"""This process alone."""


def executor_of(workers: int | None = None, on: str = "local") -> Executor:
    """What carries out a scan, which needs no GPU; raises as `executor_for`."""
    return executor_for(on, argument("workers", workers, int | None), None if on == "local" else 0.0)


def is_here(executor: Executor) -> bool:
    """Whether it is this process that works."""
    return isinstance(executor, Local) and executor.n_workers == 1


@dataclass(frozen=True)
class Scan:
    """`map` by an executor: what is added up from its results has the bits of one process.

    A function holds the captures that it reads: they are pickled by their location, and a worker opens each once. What it
    raises is raised here. `CaptureError` naming the part that a worker had when it was killed.
    """

    executor: Executor
    part: str = ""
    """What an item is, for messages: "block", "layer"; nothing where an item says so itself."""
    again: str = "Run it again"
    """What to do where a worker was killed."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The results in the order of the items."""
        if is_here(self.executor):
            yield from self.executor.map(function, items)
            return
        try:
            yield from self.executor.map(_Elsewhere(function), items)
        except WorkerEnded as error:
            what = f"{self.part} {error.item}".strip()
            raise CaptureError(
                f"A worker ended {error.how} with {what} unfinished. {self.again}, with fewer `workers` where memory is short."
            ) from None


class _Elsewhere(Generic[Item, Result]):
    """A function as it goes to workers, which keep what they have unpickled: captures are opened, and tables read, once.

    An executor may send it with every item: pickled again, it is an array of bytes, which costs little to pass on.
    """

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function, self._name = function, uuid.uuid4().hex

    def __reduce__(self) -> tuple[type[_Kept[Item, Result]], tuple[str, NDArray[np.uint8]]]:
        return _Kept, (self._name, np.frombuffer(pickle.dumps(self._function), np.uint8))

    def __call__(self, item: Item) -> Result:
        return self._function(item)


class _Kept(Generic[Item, Result]):
    """The same in a worker, whose unforeseen errors say where they came from, which a traceback in another process cannot."""

    def __init__(self, name: str, pickled: NDArray[np.uint8]) -> None:
        self._name, self._pickled = name, pickled

    def __reduce__(self) -> tuple[type[_Kept[Item, Result]], tuple[str, NDArray[np.uint8]]]:
        return _Kept, (self._name, self._pickled)

    def __call__(self, item: Item) -> Result:
        try:
            return self._unpickled(item)
        except Exception as error:
            if not isinstance(error, ActstoreError | OSError | MemoryError):
                error.add_note(f"In a worker, with {item!r}:\n{traceback.format_exc()}")
            raise

    @property
    def _unpickled(self) -> Callable[[Item], Result]:
        if self._name not in _KEPT:
            _KEPT.clear()  # a worker has one scan at a time
            _KEPT[self._name] = pickle.loads(self._pickled.data)
            self._pickled = self._pickled[:0].copy()  # whose bytes may be as many as the function takes
        function: Callable[[Item], Result] = _KEPT[self._name]
        return function


_KEPT: Final[dict[str, Any]] = {}
"""Name → function of the scan that this process works on."""

"""Scans: one function over many parts of a store, in this process or in several, with the results in order."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from actstore.engine.workers.executor import Executor, WorkerEnded
from actstore.engine.workers.local import Local
from actstore.store.arguments import argument
from actstore.store.errors import ActstoreError, CaptureError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

HERE: Final[Executor] = Local()
"""This process alone."""


def executor_of(workers: int) -> Executor:
    """What carries out a scan by this number of `workers`; `InvalidInputError` for fewer than one."""
    workers = argument("workers", workers, int)
    if workers < 1:
        raise InvalidInputError(f"A scan has at least one process, found {workers} `workers`.")
    return Local(workers)


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


@dataclass(frozen=True)
class _Elsewhere(Generic[Item, Result]):
    """A function whose unforeseen errors say where in the other process they came from, which a traceback here cannot."""

    function: Callable[[Item], Result]

    def __call__(self, item: Item) -> Result:
        try:
            return self.function(item)
        except Exception as error:
            if not isinstance(error, ActstoreError | OSError | MemoryError):
                error.add_note(f"In a worker, with {item!r}:\n{traceback.format_exc()}")
            raise

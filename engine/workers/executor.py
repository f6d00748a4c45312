"""Who runs a function over many items: this process, or several. What computes knows nothing else of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Functions and items go to other processes, or machines: both can be pickled, and the function is found by its module.

    An error of the function is raised where the results are taken, and ends the work on all items. So does whoever stops taking
    them, by Ctrl-C or otherwise: workers are told as Ctrl-C tells them.
    """

    n_workers: int
    """How many items are worked on at once."""
    threads_per_worker: int
    """Processors that each worker has for itself."""

    def map_unordered(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Each item with its result, as they come; `WorkerEnded` where a worker ends before its item does."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the order of the items: what is added up in it has the bits of one process."""


def thread_variables(threads: int) -> dict[str, str]:
    """The variables by which libraries that compute with several threads are told how many a worker's process has.

    Each would take as many as there are processors, and all would wait for one another.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


class WorkerEnded(Exception):
    """A worker was killed, or ended by itself, with an item unfinished."""

    def __init__(self, item: object, exit_status: int | None) -> None:
        """`exit_status` as `Popen.returncode` has it: the negative number of a signal; None where it is not known."""
        self.item, self.exit_status = item, exit_status
        super().__init__(f"a worker ended {self.how} with item {item!r} unfinished")

    @property
    def how(self) -> str:
        """By what, as far as is known."""
        if self.exit_status is None:
            return "for an unknown reason"
        return f"by signal {-self.exit_status}" if self.exit_status < 0 else f"with exit status {self.exit_status}"


def in_order(executor: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`Executor.map` by `map_unordered`: results that come early wait, as many as workers run ahead."""
    waiting: dict[int, Result] = {}
    n_given = 0
    numbered: _OnSecond[Item, Result] = _OnSecond(function)
    try:
        for (index, _), result in executor.map_unordered(numbered, enumerate(items)):
            waiting[index] = result
            while n_given in waiting:
                yield waiting.pop(n_given)
                n_given += 1
    except WorkerEnded as error:
        number_and_item: Any = error.item
        raise WorkerEnded(number_and_item[1], error.exit_status) from None


class _OnSecond(Generic[Item, Result]):
    """A function of an item, applied to a number and the item."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def __call__(self, numbered: tuple[int, Item]) -> Result:
        return self._function(numbered[1])

"""The executor on this machine: this process, or some that it starts, each of which has the libraries for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actstore.engine.workers.executor import WorkerEnded, in_order, thread_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE_S: Final = 60.0
"""How long a worker may take to end what Ctrl-C ends, before it is killed: to commit the block that it has."""
_PROGRAM: Final = """import signal, sys
for told in (signal.SIGINT, signal.SIGTERM):
    signal.signal(told, signal.SIG_IGN)
from actstore.engine.workers.local import serve
serve(int(sys.argv[1]))
"""


class Local:
    """`Executor` on this machine; with one worker, in this process."""

    def __init__(self, n_workers: int = 1) -> None:
        """With more than one, each is a new process, which imports everything for itself."""
        self.n_workers = n_workers
        self.threads_per_worker = max(1, n_processors() // n_workers)

    def map_unordered(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """As `Executor.map_unordered`."""
        if self.n_workers == 1:
            for item in items:
                yield item, function(item)
            return
        idle: list[_Process] = []
        busy: list[_Process] = []
        remaining = iter(items)
        try:
            for item in islice(remaining, self.n_workers):
                busy.append(_Process(function, self.threads_per_worker))
                busy[-1].give(item)
            while busy:
                for connection in wait([process.connection for process in busy]):
                    process = next(one for one in busy if one.connection is connection)
                    item, result = process.item, process.take()
                    # Before the result is used: the worker would wait meanwhile.
                    if (following := next(remaining, _NOTHING)) is not _NOTHING:
                        process.give(following)
                    else:
                        busy.remove(process)
                        idle.append(process)
                    yield item, result
        finally:
            # In this order: a worker that has not begun its item, and so passes over Ctrl-C, sees that nobody listens.
            for process in (*busy, *idle):
                process.connection.close()
            for process in busy:
                process.interrupt()
            for process in (*busy, *idle):
                process.end()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Executor.map`."""
        return in_order(self, function, items)


_NOTHING: Final[Any] = object()


def n_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process:
    """One worker, and the item that it has."""

    def __init__(self, function: Callable[[Any], Any], threads: int) -> None:
        self.connection, theirs = Pipe()
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment = thread_variables(threads) | os.environ | path
        # Not by multiprocessing, which runs the caller's script again in every process.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
        )
        theirs.close()
        self._is_new, self._function = True, function
        self.item: Any = None

    def give(self, item: Any) -> None:
        """Have it work on an item."""
        self.item = item
        with suppress(BrokenPipeError):  # it ended: `take` says so
            if self._is_new:
                self.connection.send(self._function)
                self._is_new = False
            self.connection.send(item)

    def take(self) -> Any:
        """Its result; raises what its function raised, or `WorkerEnded`."""
        try:
            is_error, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerEnded(self.item, self._process.wait()) from None
        if is_error:
            raise value
        return value

    def interrupt(self) -> None:
        """Tell it as Ctrl-C does; the terminal may have done so already."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Wait until it has ended, which it does when nothing more can come; kill it if it does not."""
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(descriptor: int) -> None:
    """What a worker's process does: take the function, then items, and send what comes of each, until the connection ends.

    Ctrl-C, and SIGTERM alike, count during an item only: between them there is nothing to interrupt.
    """
    connection = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = connection.recv()
        while True:
            item = connection.recv()
            answer: tuple[bool, Any]
            try:
                _on_interrupt(_interrupt_once)
                if connection.poll():  # nothing but the end comes before the answer
                    return
                answer = False, function(item)
            except (Exception, KeyboardInterrupt) as error:
                answer = True, error
            finally:
                _on_interrupt(signal.SIG_IGN)
            connection.send(answer)


def _on_interrupt(handler: Callable[..., None] | signal.Handlers) -> None:
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, handler)


def _interrupt_once(*_: object) -> None:
    """Ctrl-C comes from the terminal and from `interrupt`: the second must not stop the clearing up after the first."""
    _on_interrupt(signal.SIG_IGN)
    raise KeyboardInterrupt

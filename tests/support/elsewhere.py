"""An executor without processes: everything that goes to a worker and back is pickled, and results come out of order."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from actstore.engine.workers.executor import WorkerEnded, in_order
from actstore.store.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pytest


def _sent(value: Any) -> Any:
    """The value after it was pickled; stores in memory pass too, as the workers are here."""
    with patch.object(MemoryStorage, "address", lambda storage: storage.location):
        return pickle.loads(pickle.dumps(value))


class Elsewhere:
    """An `Executor` of two workers, the last item first; the worker that gets `deadly` is killed.

    `items` are those that were worked on.
    """

    n_workers, threads_per_worker = 2, 1

    def __init__(self, deadly: Callable[[Any], bool] = lambda item: False) -> None:
        self.deadly = deadly
        self.items: list[Any] = []

    def map_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        workers = [_sent(function), _sent(function)]
        for number, item in enumerate(reversed(list(items))):
            self.items.append(item)
            if self.deadly(item):
                raise WorkerEnded(item, -9)
            try:
                result = workers[number % 2](_sent(item))
            except Exception as error:
                raise _sent(error) from None
            yield item, _sent(result)

    @classmethod
    def instead_of_processes(cls, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let captures that are to have workers have these, of one thread each."""
        monkeypatch.setattr("actstore.engine.capture.run.executor_for", lambda *asked: cls())

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return in_order(self, function, items)

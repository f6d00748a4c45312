"""What a scan promises beside its executor: who carries it out, and what is said of workers that fail or are killed."""

from __future__ import annotations

import os
from typing import Any

import pytest
from elsewhere import Elsewhere
from worker_functions import Counting, square, variable

from actstore.engine.workers.local import Local
from actstore.engine.workers.scan import HERE, Scan, executor_of
from actstore.store.errors import CaptureError, InvalidInputError


def test_results_are_those_of_map_in_order() -> None:
    for executor in (HERE, Elsewhere()):
        assert list(Scan(executor)(square, range(5))) == [0, 1, 4, 9, 16]


def test_a_worker_that_is_killed_is_named_with_its_part() -> None:
    scan = Scan(Elsewhere(lambda item: item[1] == 3), "block")
    with pytest.raises(
        CaptureError,
        match=r"^A worker ended by signal 9 with block 3 unfinished\. Run it again, with fewer `workers` ",
    ):
        list(scan(square, range(5)))


def test_an_unforeseen_error_says_where_in_the_worker_it_was() -> None:
    with pytest.raises(ValueError, match="-1 is below 0") as raised:
        list(Scan(Elsewhere())(square, [-1, 2]))
    (note,) = raised.value.__notes__
    assert note.startswith("In a worker, with -1:")
    assert "worker_functions.py" in note


def test_a_worker_unpickles_a_function_once_however_often_it_is_sent() -> None:
    class Sending(Elsewhere):
        """Sends the function with every item."""

        def map_unordered(self, function: Any, items: Any) -> Any:
            for item in items:
                yield next(super().map_unordered(function, [item]))

    counts = list(Scan(Sending())(Counting(), range(4)))
    assert counts == [1, 2, 3, 4]


def test_workers_are_one_or_more() -> None:
    assert executor_of(3).n_workers == 3
    with pytest.raises(InvalidInputError, match=r"^At least one worker is needed, found 0 `workers`\.$"):
        executor_of(0)


def test_workers_share_the_processors_but_for_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert list(Local(2).map(variable, ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])) == ["7", "4"]

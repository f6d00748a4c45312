"""The executor on this machine keeps what `Executor` promises: order, errors, workers that end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from worker_functions import die, end_oneself, process_of, square

from actstore.engine.workers.executor import WorkerEnded
from actstore.engine.workers.local import Local

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("n_workers", [1, 2])
def test_results_come_in_the_order_of_their_items(n_workers: int) -> None:
    executor = Local(n_workers)
    assert list(executor.map(square, range(9))) == [n * n for n in range(9)]
    with pytest.raises(ValueError, match=r"^-1 is below 0$"):
        list(executor.map(square, [2, -1, 3]))


def test_several_workers_are_processes_of_their_own() -> None:
    assert dict(Local(1).map_unordered(process_of, range(3))) == dict.fromkeys(range(3), os.getpid())
    processes = dict(Local(2).map_unordered(process_of, range(2)))
    assert processes.keys() == {0, 1}
    assert len({os.getpid(), *processes.values()}) == 3


def test_a_worker_that_is_killed_is_named_and_the_others_are_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_TEST_TOLD", str(tmp_path / "told"))
    with pytest.raises(WorkerEnded, match=r"^a worker ended by signal 9 with item 1 unfinished$") as ended:
        list(Local(2).map_unordered(die, range(4)))
    assert (ended.value.item, ended.value.exit_status) == (1, -9)
    assert (tmp_path / "told").exists()


def test_a_worker_that_a_scheduler_ends_clears_up_as_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(Local(2).map_unordered(end_oneself, range(4)))

"""The executor on Ray keeps what `Executor` promises, and begins again what a dead worker leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from worker_functions import die, die_once, process_of, square
from written_captures import written

import actstore
from actstore.engine.capture import run
from actstore.engine.capture.steps.worker import FillOptions
from actstore.engine.workers import on_ray
from actstore.engine.workers.choose import executor_for
from actstore.engine.workers.executor import WorkerEnded
from actstore.engine.workers.on_ray import OnRay
from actstore.store.errors import InvalidInputError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file by which functions in workers tell that they were told to end; the cluster's workers know it from their start."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("told") / "told"
        patch.setenv("WORKER_TEST_TOLD", str(path))
        yield path


@pytest.fixture(scope="module")
def ray(told: Path) -> Iterator[OnRay]:
    """Two workers of a Ray cluster that is started on this machine."""
    yield OnRay(None, 2)
    import_module("ray").shutdown()


@pytest.fixture
def one_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "RESTARTS", 1)


def test_another_cluster_than_that_which_the_process_is_connected_to_is_refused(ray: OnRay) -> None:
    with pytest.raises(
        InvalidInputError, match=r"connected to a Ray cluster already, and not by ray://head:10001\. Call"
    ):
        OnRay("ray://head:10001", 2)
    assert OnRay(None, 2).n_workers == 2


def test_results_come_in_the_order_of_their_items(ray: OnRay) -> None:
    assert list(ray.map(square, range(9))) == [n * n for n in range(9)]
    assert os.getpid() not in dict(ray.map_unordered(process_of, range(2))).values()
    with pytest.raises(ValueError, match=r"^-1 is below 0$"):
        list(ray.map(square, [2, -1, 3]))


def test_the_item_of_a_worker_that_is_killed_is_begun_again(ray: OnRay, told: Path) -> None:
    assert list(ray.map(die_once, range(3))) == [0, 1, 4]
    told.with_name("told begun").unlink()


def test_a_worker_that_is_killed_each_time_is_named_and_the_others_are_told_to_end(
    ray: OnRay, told: Path, one_restart: None
) -> None:
    with pytest.raises(WorkerEnded, match=r"^a worker ended for an unknown reason with item 1 unfinished$"):
        list(ray.map_unordered(die, range(4)))
    assert told.exists()


def test_workers_of_ray_capture_what_one_process_does_although_one_is_killed(
    ray: OnRay, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        run, "FillOptions", partial(FillOptions, lease_s=0.5)
    )  # the others wait for it, not for a minute
    settings: dict[str, Any] = {"context": 16, "max_tokens": 2000, "precision": "int8", "block_tokens": 64}
    actstore.capture(str(tiny_model), corpus, tmp_path / "whole", **settings)
    blocks, killed = tmp_path / "store/captures/corpus/blocks", threading.Event()

    def kill() -> None:
        while not killed.is_set():
            workers = [
                one for one in psutil.process_iter(["name"]) if (one.info["name"] or "").startswith("ray::_call")
            ]
            if workers and len(list(blocks.glob("*.json"))) > 3:
                workers[0].send_signal(signal.SIGKILL)
                killed.set()
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    options = actstore.RunOptions(on="ray", workers=2)
    capture = actstore.capture(str(tiny_model), corpus, tmp_path / "store", options=options, **settings)
    assert killed.is_set()
    killer.join()
    assert capture.is_complete
    assert written(tmp_path / "store") == written(tmp_path / "whole")
    # Scans go there too.
    (tmp_path / "store/captures/corpus/values/mlp.post/0/c/0/7").unlink()
    stored = actstore.open(tmp_path / "store")
    assert stored.verify(workers=2, on="ray") == stored.verify() != []


def test_what_names_no_cluster_or_too_much_of_it_is_refused(ray: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, sentence in (
        (("here",), r"^`on` is local, ray or ray://HOST:PORT, found 'here'\.$"),
        (("ray", 0), r"^At least one worker is needed, found 0 `workers`\.$"),
        (("local", 2, 1.0), r"^`gpus_per_worker` is for Ray"),
        (("ray", 2, -1.0), r"^`gpus_per_worker` is a number of GPUs from 0 on, found -1\.0\.$"),
        (("ray", 2, 99.0), r"^No machine of the Ray cluster has 99 GPUs; the largest has .*`gpus_per_worker`\.$"),
    ):
        with pytest.raises(InvalidInputError, match=sentence):
            executor_for(*arguments)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(on_ray, "import_module", missing)
    with pytest.raises(
        MissingPackageError, match=r"^Computing on Ray needs the package ray\. Run `pip install 'actstore"
    ):
        executor_for("ray")


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "threads"),
    [
        ([(8, 0)], 2, 0, 4),
        ([(8, 0), (4, 0)], 3, 0, 4),
        ([(2, 0)], 4, 0, 1),
        ([(32, 4), (32, 4)], 8, 1, 8),
        ([(8, 0), (32, 2)], 4, 0.5, 8),
    ],
)
def test_threads_of_a_worker(machines: list[tuple[float, float]], workers: int, gpus: float, threads: int) -> None:
    assert on_ray.threads_per_worker(machines, workers, gpus) == threads

"""The executor on a Ray cluster. Results and progress go by Ray; activations do not: workers write them to the store."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actstore.engine.workers.executor import WorkerEnded, in_order, thread_variables
from actstore.store.errors import InvalidInputError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

RESTARTS: Final = 3
"""How often an item is begun again whose worker died: on another machine, where its own is gone."""
_PATIENCE_S: Final = 60.0
"""How long a worker may take to end what Ctrl-C ends, before it is killed: to commit the block that it has."""
_OBJECTS_NBYTES: Final = 128 << 20
"""Memory of a cluster that is started here for what goes between processes, which is little."""


class OnRay:
    """`Executor` on a Ray cluster. A worker that dies is replaced, and its item begun again, `RESTARTS` times.

    The connection stays for what the process computes next, until it ends or the user calls `ray.shutdown()`.
    """

    def __init__(self, address: str | None, n_workers: int | None = None, gpus_per_worker: float | None = None) -> None:
        """`address`: `ray://HOST:PORT`; None: the cluster that this process, RAY_ADDRESS or this machine has, or a new one.

        By default a worker has one GPU, if any machine of the cluster has some, and there is one per GPU, or else per machine.
        `MissingPackageError` without Ray; `InvalidInputError` where no cluster answers, or no machine of it has the GPUs.
        """
        self._ray = _connect(address)
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        processors = [(float(one.get("CPU", 0)), float(one.get("GPU", 0))) for one in machines]
        most_gpus = max((gpus for _, gpus in processors), default=0.0)
        self.gpus_per_worker = min(1.0, most_gpus) if gpus_per_worker is None else gpus_per_worker
        if self.gpus_per_worker > most_gpus:
            raise InvalidInputError(
                f"No machine of the Ray cluster has {self.gpus_per_worker:g} GPUs; the largest has {most_gpus:g}. Lower "
                "`gpus_per_worker`."
            )
        if n_workers is None:
            by_gpu = sum(int(gpus / self.gpus_per_worker) for _, gpus in processors) if self.gpus_per_worker else 0
            n_workers = max(1, by_gpu or sum(cpus >= 1 for cpus, _ in processors))
        self.n_workers = n_workers
        self.threads_per_worker = threads_per_worker(processors, n_workers, self.gpus_per_worker)

    def map_unordered(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """As `Executor.map_unordered`."""
        ray = self._ray
        # Ray itself says so for OpenMP alone.
        threads = {"env_vars": thread_variables(self.threads_per_worker)}
        call = ray.remote(
            runtime_env=threads,
            num_cpus=self.threads_per_worker,
            num_gpus=self.gpus_per_worker,
            max_retries=RESTARTS,
            scheduling_strategy="SPREAD",
        )(_call)
        given, remaining = ray.put(function), iter(items)
        working: dict[Any, Item] = {}

        def give(n_items: int) -> None:
            for item in islice(remaining, n_items):
                working[call.remote(given, item)] = item

        try:
            give(self.n_workers)
            while working:
                (ready,), _ = ray.wait(list(working), num_returns=1)
                item = working.pop(ready)
                give(1)  # before the result is taken and used: its worker would wait meanwhile
                yield item, self._result(item, ready)
        finally:
            self._end(list(working))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Executor.map`."""
        return in_order(self, function, items)

    def _result(self, item: object, ready: Any) -> Any:
        """What came of an item; raises what the function raised, or `WorkerEnded`."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ready)
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
            raise WorkerEnded(item, None) from None

    def _end(self, working: Sequence[Any]) -> None:
        """Tell those that work as Ctrl-C does, and wait until they have ended; kill them if they do not."""
        for reference in working:
            self._ray.cancel(reference)
        if working:
            _, left = self._ray.wait(working, num_returns=len(working), timeout=_PATIENCE_S)
            for reference in left:
                self._ray.cancel(reference, force=True)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So it is below a shell's background command; and this is how Ray tells a task to end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return function(item)


def threads_per_worker(machines: Sequence[tuple[float, float]], n_workers: int, gpus: float) -> int:
    """The most threads that each of the workers can have, on `machines` with (processors, GPUs); 1 if there are too few."""

    def n_fitting(threads: int) -> int:
        return sum(int(min(cpus // threads, n_gpus / gpus if gpus else cpus)) for cpus, n_gpus in machines)

    most = int(max((cpus for cpus, _ in machines), default=1))
    return next((threads for threads in range(most, 1, -1) if n_fitting(threads) >= n_workers), 1)


_CONNECTED: Final[dict[str, str]] = {}
"""Job, of which every connection to Ray is one → the address that this process has connected to."""


def _connect(address: str | None) -> Any:
    """The module `ray`, connected to a cluster."""
    try:
        ray = import_module("ray")
    except ModuleNotFoundError:
        raise MissingPackageError(
            "Computing on Ray needs the package ray. Run `pip install 'actstore[ray]'`."
        ) from None
    if ray.is_initialized():
        if address is not None and _CONNECTED.get(ray.get_runtime_context().get_job_id()) != address:
            raise InvalidInputError(
                f"This process is connected to a Ray cluster already, and not by {address}. Call `ray.shutdown()` first, or "
                'compute on that one: `on="ray"`.'
            )
        return ray
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address is not None:
            ray.init(address, **quiet)
            _CONNECTED[ray.get_runtime_context().get_job_id()] = address
        else:
            try:
                ray.init("auto", **quiet)
            except ConnectionError:
                _start(ray, quiet)
    except (ConnectionError, RuntimeError, OSError, ImportError, ValueError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(
            f"The Ray cluster {f'at {address}' if address else 'of this machine'} cannot be reached or used: {what}"
        ) from None
    return ray


def _start(ray: Any, quiet: dict[str, Any]) -> None:
    """Start a cluster of this machine alone, for as long as this process lives."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    path = os.pathsep.join(filter(None, sys.path))
    ray.init(
        "local", include_dashboard=False, object_store_memory=_OBJECTS_NBYTES, runtime_env={"env_vars": {"PYTHONPATH": path}},
        **quiet,
    )  # fmt: skip

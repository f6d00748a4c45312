"""The executor that was asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from actstore.engine.workers.local import Local
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.engine.workers.executor import Executor


def check_executor(on: str, workers: int | None, gpus_per_worker: float | None) -> None:
    """`InvalidInputError` for what names no executor."""
    if workers is not None and workers < 1:
        raise InvalidInputError(f"At least one worker is needed, found {workers} `workers`.")
    if on != "local" and on != "ray" and not re.fullmatch(r"ray://.+:[0-9]+", on):
        raise InvalidInputError(f"`on` is local, ray or ray://HOST:PORT, found {on!r}.")
    if gpus_per_worker is not None and on == "local":
        raise InvalidInputError(
            "`gpus_per_worker` is for Ray: on this machine workers take the GPUs in turn. Leave it out."
        )
    if gpus_per_worker is not None and not 0 <= gpus_per_worker < float("inf"):
        raise InvalidInputError(f"`gpus_per_worker` is a number of GPUs from 0 on, found {gpus_per_worker}.")


def executor_for(on: str = "local", workers: int | None = None, gpus_per_worker: float | None = None) -> Executor:
    """The executor `on` names: `local`, `ray` or `ray://HOST:PORT`; one worker on this machine, unless `workers` says how many.

    `gpus_per_worker` is Ray's to give. Raises as `OnRay`, and `InvalidInputError` for what is none of these.
    """
    check_executor(on, workers, gpus_per_worker)
    if on == "local":
        return Local(workers or 1)
    from actstore.engine.workers.on_ray import OnRay  # only here: Ray is an extra

    return OnRay(None if on == "ray" else on, workers, gpus_per_worker)

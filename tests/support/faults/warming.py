"""What a process does before anything of its own, done once before the fork: no fault is about it, and each child took as long.

Of a capture of the tiny model a child spent half of its time on what is here.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings

import explored
import tqdm
from numba.core.registry import cpu_target

import actstore.commands
import actstore.kernels
import actstore.store
from actstore import cli
from actstore.engine.models import load

PACKAGES = (actstore.commands, actstore.store, actstore.kernels)


def warm(models: list[str]) -> None:
    """Import what commands import when they run, let numba build its tables, and walk over the models as a capture does.

    No thread is left behind: a child has none of them.
    """
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "gpu" not in module.name:
                importlib.import_module(module.name)
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    cli.application()
    load._explore = explored.once_each(load._explore)
    warnings.simplefilter("ignore")
    tqdm.tqdm.monitor_interval = 0  # else the first bar, of loading, starts a thread that stays
    for model in models:
        load.inspect_model(model)
        load.load_model(model, device="cpu")

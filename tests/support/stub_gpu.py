"""A GPU that is none: tensors on the CPU that the kernels' launchers take for tensors on a GPU, and Triton interprets."""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

from actstore.engine.devices import device as devices
from actstore.kernels import floats
from actstore.store.model import directions

if TYPE_CHECKING:
    from collections.abc import Callable

LAUNCHERS: Final = {
    "coactivation": ("coactivation",),
    "contribution": ("contribution", "sum_contributions"),
    "top_k": ("top_k",),
    "cluster_inverse": ("threshold",),
}
"""Kernel → the launchers in its modules `gpu` and `cpu`."""


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each launcher was called, such as "top_k.gpu.top_k", on a machine whose device `cuda` is a stub."""
    pytest.importorskip("actstore.kernels.gpu", exc_type=ImportError)
    counts: Counter[str] = Counter()
    for kernel, names in LAUNCHERS.items():
        import_module(f"actstore.kernels.{kernel}.api")
        for processor in ("gpu", "cpu"):
            module = import_module(f"actstore.kernels.{kernel}.{processor}")
            for name in names:
                key = f"{kernel}.{processor}.{name}"
                monkeypatch.setattr(module, name, _counting(getattr(module, name), counts, key))
    if torch.cuda.is_available():  # then it is the GPU itself
        return counts

    # What a store gives is on the host until somebody puts it elsewhere; everything else is on the stub.
    host: list[torch.Tensor] = []

    def is_tensor(values: object) -> bool:
        return isinstance(values, torch.Tensor) and values.data_ptr() not in {tensor.data_ptr() for tensor in host}

    def read(matrix: torch.Tensor) -> torch.Tensor:
        host.append(read_weights(matrix))
        return host[-1]

    def put(self: devices.Device, array: Any) -> Any:
        return devices.as_tensor(array).clone() if self.is_gpu else array

    read_weights = directions._supported
    monkeypatch.setattr(directions, "_supported", read)
    monkeypatch.setattr(devices.Device, "put", put)
    original = floats.on_gpu
    for module in [m for name, m in sys.modules.items() if name.startswith("actstore.kernels.")]:
        if getattr(module, "on_gpu", None) is original:
            monkeypatch.setattr(module, "on_gpu", is_tensor)
    monkeypatch.setattr(devices, "_has_gpu", lambda: True)
    monkeypatch.setattr(devices, "_check_gpu", devices.Device)
    monkeypatch.setattr(devices.Device, "torch", property(lambda self: torch.device("cpu")))
    return counts


def _counting(function: Callable[..., Any], counts: Counter[str], key: str) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        counts[key] += 1
        return function(*arguments, **keywords)

    return call

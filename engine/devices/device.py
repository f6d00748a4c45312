"""The device that a scan computes on, or that a model runs on, and arrays on their way to it.

Torch is loaded where there is a GPU, or one is named.

The kernels' launchers go by what they are handed: an array of numpy is computed by numba, a tensor on a GPU by Triton.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.store.arguments import argument
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array = Any
"""A numpy array or a tensor on a GPU: a union of the two has no arithmetic that a type checker knows."""


@dataclass(frozen=True)
class Device:
    """A device by its name, so that workers can be told of it."""

    name: str = "cpu"
    """`cpu`, or as torch names a GPU: `cuda`, `cuda:1`."""

    @property
    def is_gpu(self) -> bool:
        """Whether Triton computes, not numba."""
        return self.name != "cpu"

    @property
    def torch(self) -> torch.device:
        """The device as torch knows it; of a GPU only."""
        import torch

        return torch.device(self.name)

    def put(self, array: Array) -> Array:
        """An array, or a tensor on the CPU, as the kernels of this device take it; itself on the CPU.

        bfloat16, which numpy lacks and which is uint16 there, becomes a tensor of bfloat16.
        """
        return as_tensor(array).to(self.torch) if self.is_gpu else array


HOST: Final = Device()
"""The CPU."""


def as_tensor(array: Array) -> Tensor:
    """An array as a tensor on the CPU that shares its memory where it may be written to; uint16 as bfloat16."""
    import torch

    if isinstance(array, torch.Tensor):
        return array
    array = np.require(array, requirements=("C", "W"))
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def find_device(device: str = "auto", on: str = "local") -> Device:
    """The device that `device` names: `auto`, `cpu`, `cuda` or `cuda:1`; `auto` is a GPU where there is one, else the CPU.

    `on`: where the workers of a scan run. On Ray they have no GPU of their own, and `auto` is the CPU.

    `InvalidInputError` for a name that is none of these, and for a GPU that is not there.
    """
    name = argument("device", device, str)
    if name == "cpu" or (name == "auto" and (on != "local" or not _has_gpu())):
        return HOST
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise InvalidInputError(
            f"Expected `device` to be auto, cpu, cuda or a GPU's number as in cuda:1, found {name!r}."
        )
    if on != "local":
        raise InvalidInputError(
            f'Scans on Ray compute on CPUs: leave `device` out, or pass `device="cpu"` in place of {name}; or run the scan on '
            "this machine, without `on`."
        )
    return Device("cuda") if name == "auto" else _check_gpu(name)


def model_device(name: str) -> torch.device:
    """The device that a model runs on: any that torch has by that name; `auto` is the GPU where there is one, else the CPU.

    `InvalidInputError` for one that does not exist.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wrong = f"Expected a device such as cpu, cuda or cuda:1, found {name!r}"
    try:
        named = torch.device(name)
    except RuntimeError:  # whose reason is a list of twenty kinds
        raise InvalidInputError(f"{wrong}. Check `device`.") from None
    try:
        return torch.empty(0, device=named).device  # only an allocation shows whether a device exists
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise InvalidInputError(f"{wrong}: {reason}. Check `device`.") from error


def check_device(name: str) -> None:
    """`InvalidInputError` for the name of a device that does not exist, also where it turns out that no model has to run."""
    if name not in ("auto", "cpu"):
        model_device(name)


def _has_gpu() -> bool:
    """Whether torch finds a GPU and Triton is there to use it. Torch is not loaded to be asked where the driver has none."""
    if "torch" not in sys.modules and (not _driver_has_gpu() or find_spec("torch") is None):
        return False
    if find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _driver_has_gpu() -> bool:
    """Whether NVIDIA's driver is there and counts a GPU, of those that CUDA_VISIBLE_DEVICES admits."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _check_gpu(name: str) -> Device:
    """The GPU of a name; `InvalidInputError` where torch does not find it."""
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(name.partition(":")[2] or 0) >= n:
        found = "no GPU" if n == 0 else f"{n} GPU{'' if n == 1 else 's'}, numbered from 0"
        raise InvalidInputError(
            f'There is no device {name} here: torch finds {found}. Leave `device` out, or pass `device="cpu"`.'
        )
    return Device(name)

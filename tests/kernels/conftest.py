"""Where the Triton kernels run: on the GPU where there is one, in Triton's interpreter where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device to test Triton kernels on. The interpreter is chosen by tests/conftest.py, before Triton is imported."""
    pytest.importorskip("actstore.kernels.gpu", exc_type=ImportError)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def on_device(device: torch.device) -> Callable[[NDArray[Any]], Tensor]:
    """Gives an array as a tensor on the device, uint16 as bfloat16; with the strides it has."""

    def move(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)
        return (tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).to(device)

    return move


@pytest.fixture(scope="session")
def on_host() -> Callable[[Tensor], NDArray[Any]]:
    """Gives a tensor as an array, bfloat16 as uint16."""

    def move(tensor: Tensor) -> NDArray[Any]:
        tensor = tensor.cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        array: NDArray[Any] = tensor.numpy()
        return array

    return move

"""The three float formats that activations come in, as numpy arrays: float32, float16, and bfloat16 as uint16 bits.

numpy has no bfloat16, so everywhere in the kernels an array of uint16 means bfloat16. Knows nothing about stores or
models.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

FORMATS = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16", np.dtype(np.uint16): "bfloat16"}


def on_gpu(values: Any) -> "TypeGuard[torch.Tensor]":
    """Whether `values` is a tensor that the Triton kernels take; asks for no import of torch."""
    return not isinstance(values, np.ndarray) and bool(getattr(values, "is_cuda", False))


def as_array(values: "NDArray[Any] | torch.Tensor", name: str = "values") -> NDArray[Any]:
    """`values` as a numpy array of one of the three formats, sharing memory.

    Raises TypeError for any other dtype, ValueError for a tensor that is not on the CPU.
    """
    if not isinstance(values, np.ndarray):
        values = _from_torch(values, name)
    if values.dtype not in FORMATS:
        raise TypeError(
            f"{name} must be float32, float16 or bfloat16 (as uint16 bits), not {values.dtype}: convert it first"
        )
    return values


def decode(values: NDArray[Any]) -> NDArray[np.float32]:
    """The float32 values of an array in any of the three formats; exact."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def encode(values: NDArray[np.float32], dtype: Any) -> NDArray[Any]:
    """float32 `values` in the format of `dtype`, rounded to nearest even; overflow becomes infinite, NaN stays NaN."""
    if np.dtype(dtype) != np.uint16:
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def cast(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """`values` in the format of `dtype`: the very bits where it has that format already."""
    return values if values.dtype == dtype else encode(decode(values), dtype)


def _from_torch(values: "torch.Tensor", name: str) -> NDArray[Any]:
    import torch  # whoever has a tensor has loaded torch; nobody else should wait for it

    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor or a numpy array, not {type(values).__name__}")
    if values.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {values.device}: call .cpu() first")
    values = values.detach()
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()

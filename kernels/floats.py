"""The three float formats that activations come in, as numpy arrays: float32, float16, and bfloat16 as uint16 bits.

numpy has no bfloat16, so everywhere in the kernels an array of uint16 means bfloat16.
"""

from typing import TYPE_CHECKING, TypeAlias, TypeGuard
from typing import cast as cast_type

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import torch

FloatArray: TypeAlias = NDArray[np.float32 | np.float16 | np.uint16]
"""An array in one of the three formats."""

FORMATS = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16", np.dtype(np.uint16): "bfloat16"}


def on_gpu(values: object) -> "TypeGuard[torch.Tensor]":
    """Whether `values` is a tensor that the Triton kernels take; asks for no import of torch."""
    return not isinstance(values, np.ndarray) and bool(getattr(values, "is_cuda", False))


def as_array(values: "NDArray[np.generic] | torch.Tensor", name: str = "values") -> FloatArray:
    """`values` as a numpy array of one of the three formats, sharing memory.

    Raises TypeError for any other dtype, ValueError for a tensor that is not on the CPU.
    """
    if not isinstance(values, np.ndarray):
        values = _from_torch(values, name)
    if values.dtype not in FORMATS:
        raise TypeError(
            f"{name} must be float32, float16 or bfloat16 (as uint16 bits), not {values.dtype}: convert it first"
        )
    return cast_type("FloatArray", values)


def decode(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """The float32 values of an array in any of the three formats; exact."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of a float32
    return values.astype(np.float32)


def encode(values: NDArray[np.float32], dtype: DTypeLike) -> FloatArray:
    """float32 `values` in the format of `dtype`, rounded to nearest even; overflow becomes infinite, NaN stays NaN."""
    if np.dtype(dtype) != np.uint16:
        with np.errstate(over="ignore"):
            return cast_type("FloatArray", values.astype(dtype))
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Half of the last bit less one, and one more where that bit is set: then a tie goes to the even neighbour.
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def cast(values: FloatArray, dtype: DTypeLike) -> FloatArray:
    """`values` in the format of `dtype`: the very bits where it has that format already."""
    return values if values.dtype == dtype else encode(decode(values), dtype)


def _from_torch(values: "torch.Tensor", name: str) -> NDArray[np.generic]:
    import torch  # whoever has a tensor has loaded torch; nobody else should wait for it

    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor or a numpy array, not {type(values).__name__}")
    if values.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {values.device}: call .cpu() first")
    values = values.detach()
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[np.generic] = values.numpy()
    return array

"""How the activations of chosen neurons go with those of all neurons: checks and dispatch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from actstore.kernels.coactivation import cpu
from actstore.kernels.coactivation.state import Coactivation
from actstore.kernels.floats import FloatArray, as_array, on_gpu
from actstore.kernels.jit import default_threads

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["Coactivation", "coactivation"]

Flags = TypeVar("Flags", "NDArray[np.bool_]", "torch.Tensor")


def coactivation(
    chosen: "torch.Tensor | FloatArray",
    values: "torch.Tensor | FloatArray",
    state: Coactivation | None = None,
    counted: "torch.Tensor | NDArray[np.bool_] | None" = None,
    threads: int | None = None,
) -> Coactivation:
    """How `chosen` went with `values`, over these tokens and those of `state`: `.pearson()` and `.jaccard()` of every pair.

    Pearson's correlation of a pair is over the counted tokens at which both values are finite, NaN where either neuron's
    are all the same; right to a millionth however large the mean is against the spread. Jaccard's index is that of the
    sets of counted tokens at which each neuron is active, its value larger than its threshold: infinity is, NaN is not;
    NaN where neither ever is. Thresholds are those of `state`, so start from `Coactivation.empty` for others than 0.

    A pair with a gap, a value that is not finite, is computed by itself, in some seventy times the time: leave tokens at
    which many values overflow out by `counted`. On the CPU a pair's result depends neither on the number of threads
    nor on the other neurons of the call nor on the processor; the same calls in the same order give the same bits.

    chosen: [chosen, token] and values: [neuron, token], each float32, float16 or bfloat16 (in numpy: uint16 bits), both
    on the CPU or both on one CUDA device. state: the result over other tokens, left as it is; it lies where the values
    do (`Coactivation.to`, `Coactivation.cpu`), and so does what comes back. counted: [token] False for a token to leave
    out. threads: of the CPU.

    Raises ValueError for shapes or devices that do not fit, TypeError for other dtypes.
    """
    if on_gpu(values) or on_gpu(chosen):
        return _on_gpu(chosen, values, state, counted)
    x, y = as_array(chosen, "chosen"), as_array(values)
    state = _check(x.shape, y.shape, state)
    if on_gpu(state.comoment):
        raise ValueError(
            f"state must lie on the CPU, as the values do, not on {state.comoment.device}: call .cpu() first"
        )
    tokens = np.arange(y.shape[1])
    if counted is not None:
        tokens = np.flatnonzero(_check_counted(np.asarray(counted), y.shape[1]))
    return cpu.coactivation(x, y, tokens, state, threads or default_threads())


def _on_gpu(
    chosen: "torch.Tensor | FloatArray",
    values: "torch.Tensor | FloatArray",
    state: Coactivation | None,
    counted: "torch.Tensor | NDArray[np.bool_] | None",
) -> Coactivation:
    """`coactivation` of tensors on a GPU, after checks that ask for nothing that the device holds."""
    import torch

    from actstore.kernels.coactivation import gpu

    x, y = (_check_tensor(tensor, values.device, name) for name, tensor in (("chosen", chosen), ("values", values)))
    if state is None:
        state = _check(chosen.shape, values.shape, state).to(values.device)
    state = _check(chosen.shape, values.shape, state)
    if not on_gpu(state.comoment) or state.comoment.device != values.device:
        raise ValueError(f"state must lie on {values.device}, as the values do: call .to({str(values.device)!r}) first")
    tokens = torch.arange(values.shape[1], device=values.device)
    if counted is not None:
        counted = torch.as_tensor(counted, device=values.device)
        tokens = tokens[_check_counted(counted, values.shape[1])]
    return gpu.coactivation(x.detach(), y.detach(), tokens, state)


def _check_tensor(tensor: "torch.Tensor | FloatArray", device: object, name: str) -> "torch.Tensor":
    """The tensor itself. Raises ValueError unless it lies on `device`, TypeError for other dtypes."""
    import torch

    if not on_gpu(tensor) or tensor.device != device:
        location = tensor.device if isinstance(tensor, torch.Tensor) else "the CPU"
        raise ValueError(f"chosen and values must lie on one device, but {name} lies on {location}: move it first")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name} must be float32, float16 or bfloat16, not {tensor.dtype}: convert it first")
    return tensor


def _check(chosen: Sequence[int], values: Sequence[int], state: Coactivation | None) -> Coactivation:
    """The state to go on from, of the shapes `chosen` and `values`. Raises ValueError where they do not fit."""
    if len(chosen) != 2 or len(values) != 2 or chosen[1] != values[1]:
        expected = "chosen must be [chosen, token] and values [neuron, token] over the same tokens"
        raise ValueError(f"{expected}, not {list(chosen)} and {list(values)}")
    if state is None:
        return Coactivation.empty(chosen[0], values[0])
    if state.comoment.shape != (chosen[0], values[0]):
        raise ValueError(f"state must be [{chosen[0]} chosen, {values[0]} neurons], not {list(state.comoment.shape)}")
    return state


def _check_counted(counted: Flags, n_tokens: int) -> Flags:
    if counted.shape != (n_tokens,) or "bool" not in str(counted.dtype):
        raise ValueError(
            f"counted must be one flag for each of {n_tokens} tokens, not {counted.dtype} {list(counted.shape)}"
        )
    return counted

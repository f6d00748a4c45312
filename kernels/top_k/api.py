"""The running k largest activations of every neuron, and merging them: checks and dispatch."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, as_array, on_gpu
from actstore.kernels.jit import default_threads
from actstore.kernels.top_k import cpu
from actstore.kernels.top_k.naive import TopK

if TYPE_CHECKING:
    import torch

__all__ = ["TopK", "merge", "top_k"]


def top_k(
    values: "torch.Tensor | FloatArray",
    tokens: NDArray[np.int64],
    k: int,
    segments: NDArray[np.int64] | None = None,
    state: TopK | None = None,
    threads: int | None = None,
) -> TopK:
    """The k largest activations of every neuron, descending, and the tokens they came from, over `values` and `state`.

    Ties go to the earlier token. NaN and -inf are never among them: entries that no value is left for are -inf with
    token -1. With `segments`, each segment contributes only its largest value, at the first token that
    attains it, so that the k come from different text windows.

    values: [neuron, token] float32, float16 or bfloat16 (in numpy: uint16 bits). tokens: [token] ascending token
    indices, 0 or more. segments: [segment + 1] ascending offsets into the tokens, from 0 to their number. state: the
    result over other tokens; left as it is.

    Values on a GPU are searched there; the result is on the CPU all the same. `gpu.top_k` leaves it on the GPU. The result
    does not depend on `threads`.

    Raises ValueError for shapes that do not fit, tokens or segments that do not ascend and a negative k, TypeError for
    other dtypes.
    """
    source = values if on_gpu(values) else as_array(values)
    tokens = np.ascontiguousarray(tokens, np.int64)
    if source.ndim != 2 or tokens.shape != source.shape[1:]:
        raise ValueError(f"values must be [neuron, token] with {tokens.size} tokens, not {list(source.shape)}")
    if tokens.size and (tokens[0] < 0 or not (np.diff(tokens) > 0).all()):
        raise ValueError("tokens must be token indices of 0 or more, ascending, each once")
    result, borders = _start(len(source), k, state), _check_segments(segments, tokens.size)
    if not isinstance(source, np.ndarray):
        from actstore.kernels.gpu import upload  # only here: Triton takes its time to load
        from actstore.kernels.top_k import gpu

        device_borders = upload(borders, source.device) if borders.size else None
        return merge(result, gpu.top_k(source, upload(tokens, source.device), k, device_borders).to_host())
    cpu.top_k(source, tokens, borders, *result, threads or default_threads())
    return result


def merge(a: TopK, b: TopK, threads: int | None = None) -> TopK:
    """The k largest activations of two parts together, the k being that of `a`; neither is changed.

    The order of merging makes no difference as long as no token is in both. Ties go to the earlier token. Raises ValueError
    where the parts are of different numbers of neurons.
    """
    if len(a.values) != len(b.values):
        raise ValueError(f"cannot merge the top activations of {len(a.values)} and of {len(b.values)} neurons")
    result = TopK(a.values.copy(), a.tokens.copy())
    cpu.merge(*result, np.ascontiguousarray(b.values), np.ascontiguousarray(b.tokens), threads or default_threads())
    return result


def _start(n_neurons: int, k: int, state: TopK | None) -> TopK:
    if k < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
    if state is None:
        return TopK(np.full((n_neurons, k), -np.inf, np.float32), np.full((n_neurons, k), -1, np.int64))
    if state.values.shape != (n_neurons, k):
        raise ValueError(f"state must be [{n_neurons} neurons, k = {k}], not {list(state.values.shape)}")
    return TopK(np.array(state.values, order="C"), np.array(state.tokens, order="C"))


def _check_segments(segments: NDArray[np.int64] | None, n_tokens: int) -> NDArray[np.int64]:
    if segments is None:
        return np.empty(0, np.int64)
    segments = np.ascontiguousarray(segments, np.int64)
    whole = segments.ndim == 1 and segments.size > 0 and segments[0] == 0 and segments[-1] == n_tokens
    if not whole or not (np.diff(segments) >= 0).all():
        raise ValueError(f"segments must ascend from 0 to the number of tokens, {n_tokens}")
    return segments

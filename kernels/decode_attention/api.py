"""Attention of one new token per row over keys and values that are kept: checks and dispatch. On the CPU only.

On a GPU the libraries' own kernels are made for this.
"""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.decode_attention import cpu
from actstore.kernels.floats import FloatArray
from actstore.kernels.jit import default_threads, over_neurons

__all__ = ["decode_attention"]


def decode_attention(
    query: FloatArray,
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    n_positions: int,
    scale: float,
    *,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """The attention [row, head, dimension] of every head of every row over the first `n_positions`, scaled dot product.

    query: [row, head, dimension], converted to float32. keys, values: [row, group, dimension, position], float32 and
    C-contiguous, with room for positions to come, which are not read; heads of a group follow one another. All must be
    finite, which is not checked: one NaN makes its heads NaN. Neither the number of threads nor other rows change a bit of a
    row. Raises ValueError for shapes, dtypes or strides that do not fit.
    """
    if query.ndim != 3 or keys.ndim != 4 or keys.shape != values.shape:
        raise ValueError(
            "query must be [row, head, dimension] and keys and values [row, group, dimension, position], found "
            f"{query.shape}, {keys.shape}, {values.shape}"
        )
    if query.shape[0] != keys.shape[0] or query.shape[2] != keys.shape[2] or not keys.shape[1]:
        raise ValueError(f"query and keys must have the same rows and dimensions, found {query.shape}, {keys.shape}")
    if query.shape[1] % keys.shape[1]:
        raise ValueError(f"{query.shape[1]} heads cannot share {keys.shape[1]} groups of keys evenly")
    if not 1 <= n_positions <= keys.shape[3]:
        raise ValueError(f"n_positions must be from 1 to {keys.shape[3]}, the room for keys, found {n_positions}")
    for name, array in (("keys", keys), ("values", values)):
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} must be float32 and C-contiguous, found {array.dtype} with strides {array.strides}"
            )
    queries, out = np.ascontiguousarray(query, np.float32), np.empty(query.shape, np.float32)
    over_neurons(
        cpu.attend,
        len(queries),
        8,
        threads or default_threads(),
        queries,
        keys,
        values,
        n_positions,
        np.float32(scale),
        out,
    )
    return out

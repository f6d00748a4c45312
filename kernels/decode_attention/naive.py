"""Attention of one new token per row: the specification, in plain numpy."""

import numpy as np
from numpy.typing import NDArray


def decode_attention(
    query: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32], scale: float
) -> NDArray[np.float32]:
    """The attention [row, head, dimension] of every head of every row: softmax(scale · query · keys) · values.

    query: [row, head, dimension]. keys, values: [row, group, dimension, position]; heads of a group follow one another and
    share its keys and values.
    """
    n_rows, n_heads, size = query.shape
    grouped = query.astype(np.float64).reshape(n_rows, keys.shape[1], n_heads // keys.shape[1], size)
    scores = scale * np.einsum("rghd,rgdp->rghp", grouped, keys.astype(np.float64))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    read: NDArray[np.float64] = np.einsum("rghp,rgdp->rghd", weights, values.astype(np.float64))
    return read.reshape(n_rows, n_heads, size).astype(np.float32)

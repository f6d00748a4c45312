"""Blocks as token rows, and stored rows as floats: checks, and the way to the compiled loops."""

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FORMATS, FloatArray
from actstore.kernels.token_rows import cpu
from actstore.kernels.token_rows.naive import Decoding

__all__ = ["Decoding", "decode_rows", "scatter_rows"]


def scatter_rows(values: NDArray[np.generic], target: NDArray[np.int64], out: NDArray[np.generic], column: int) -> None:
    """Put token t of `values` [neuron, token] into row `target[t]` of `out` [row, neuron], from `column` on.

    values, out: of one dtype of 1, 2 or 4 bytes, with contiguous rows. target: [token], -1 where a token is left out, no row
    twice. The interpreter's lock is not held. `ValueError` where something lies outside of `out`.
    """
    is_inside = column >= 0 and column + len(values) <= out.shape[1]
    if values.dtype != out.dtype or target.shape != values.shape[1:] or not is_inside:
        raise ValueError(
            f"{list(values.shape)} {values.dtype} and {list(target.shape)} targets do not go into {list(out.shape)} "
            f"{out.dtype} from column {column} on"
        )
    if not values.size:
        return
    if int(target.max()) >= len(out) or int(target.min()) < -1:
        raise ValueError(f"targets are rows below {len(out)} or -1, found {int(target.min())} to {int(target.max())}")
    if not out.flags.c_contiguous:
        raise ValueError("rows are put into a contiguous array")
    cpu.scatter_rows(values, target, out, column)


def decode_rows(raw: NDArray[np.generic], blocks: NDArray[np.int32], decoding: Decoding, out: FloatArray) -> None:
    """Fill `out` [row, neuron] with the values of `raw` [row, neuron]; `blocks` [row] is the row of `decoding.scales` of each.

    raw: int8 steps where there are scales, else one of the three float formats. Computed in float32 and rounded once, to the
    format of `out`. NaN stays NaN. The interpreter's lock is not held.
    """
    width, expected = raw.shape[1], np.dtype(np.int8)
    if (raw.dtype != expected) if decoding.scales is not None else (raw.dtype not in FORMATS):
        raise TypeError(f"rows are int8 steps with scales, or floats without; found {raw.dtype}")
    if raw.shape != out.shape or out.dtype not in FORMATS or not (raw.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError(f"{list(raw.shape)} {raw.dtype} do not fill {list(out.shape)} {out.dtype}, contiguous both")
    if any(len(part) != width for part in (decoding.limit, decoding.shift, decoding.factor)):
        raise ValueError(f"there is one limit, shift and factor for each of {width} neurons")
    if decoding.is_plain and raw.dtype == out.dtype:
        np.copyto(out, raw)
        return
    n_blocks = 0 if decoding.scales is None else len(decoding.scales)
    is_known = blocks.shape == raw.shape[:1] and (not len(blocks) or 0 <= blocks.min() <= blocks.max() < n_blocks)
    if decoding.scales is not None and not is_known:
        raise ValueError(f"every row has one of {n_blocks} blocks")
    cpu.decode_rows(raw, blocks, decoding, out)

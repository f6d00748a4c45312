"""A tile of the product of write vectors and token directions, as a part of Triton kernels.

Imported only where a tensor lies on a GPU. Knows nothing about what is done with the product.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import FORMATS, as_bits, jit, widen

NEURONS = 64  # rows of a tile
COLUMNS = 64  # its columns
DEPTH = 32  # entries of d that are multiplied at a time: with two stages, 32 KB of shared memory in float32
WARPS = 8  # gives a thread 16 places of a tile: 120 to 200 registers on Hopper


def factors(
    write_vectors: Tensor, directions: Tensor, gain: Tensor | None, columns: int = COLUMNS, neurons: int = NEURONS
) -> dict[str, Any]:
    """The arguments by name of a kernel that calls `multiply` for tiles of that size."""
    left, right = as_bits(write_vectors), as_bits(directions)
    # Without a gain, tensor cores multiply 16-bit floats as they are, exactly; the interpreter has no bfloat16.
    same = write_vectors.dtype == directions.dtype and gain is None
    return {
        "write_vectors": left,
        "neuron_stride": left.stride(0),
        "left_stride": left.stride(1),
        "n_neurons": len(left),
        "directions": right,
        "row_stride": right.stride(0),
        "right_stride": right.stride(1),
        "gain": gain,
        "d": left.shape[1],
        "LEFT": FORMATS[write_vectors.dtype],
        "RIGHT": FORMATS[directions.dtype],
        "NATIVE": same and not triton.knobs.runtime.interpret,
        "NEURONS": neurons,
        "COLUMNS": columns,
        "DEPTH": DEPTH,
        "num_warps": WARPS,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


@jit
def as_floats(raw: tl.tensor, FORMAT: tl.constexpr, NATIVE: tl.constexpr) -> tl.tensor:
    """The values whose bits are `raw`: in their own format where `NATIVE`, else in float32."""
    if NATIVE and FORMAT == 1:
        values = raw.to(tl.float16, bitcast=True)
    elif NATIVE and FORMAT == 2:
        values = raw.to(tl.bfloat16, bitcast=True)
    else:
        values = widen(raw, FORMAT).to(tl.float32, bitcast=True)
    return values


@jit
def multiply(
    write_vectors: tl.tensor,
    neuron_stride: tl.tensor,
    left_stride: tl.tensor,
    neurons: tl.tensor,
    n_neurons: tl.tensor,
    directions: tl.tensor,
    row_stride: tl.tensor,
    right_stride: tl.tensor,
    rows: tl.tensor,
    there: tl.tensor,
    gain: tl.tensor,
    d: tl.tensor,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    NATIVE: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """The products [neuron, column] in float32 of `neurons` with the directions in `rows`, both int64; 0 beyond them."""
    product = tl.zeros([NEURONS, COLUMNS], tl.float32)
    known = (neurons < n_neurons)[:, None]
    left_rows = write_vectors + neurons[:, None] * neuron_stride
    right_columns = directions + rows[None, :] * row_stride
    for start in range(0, d, DEPTH):
        at = start + tl.arange(0, DEPTH).to(tl.int64)
        left = tl.load(left_rows + at[None, :] * left_stride, mask=known & (at < d)[None, :], other=0)
        right = tl.load(right_columns + at[:, None] * right_stride, mask=there[None, :] & (at < d)[:, None], other=0)
        a, b = as_floats(left, LEFT, NATIVE), as_floats(right, RIGHT, NATIVE)
        if gain is not None:
            b *= tl.load(gain + at, mask=at < d, other=0.0)[:, None]
        product = tl.dot(a, b, product, input_precision="ieee")
    return product

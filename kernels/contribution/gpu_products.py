"""A tile of the product of write vectors and token directions, as a part of Triton kernels.

Imported only where a tensor lies on a GPU.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import FORMATS, as_bits, jit, widen

NEURONS = 64  # rows of a tile
COLUMNS = 64  # its columns
DEPTH = 32  # entries of d that are multiplied at a time: with two stages, 32 KB of shared memory in float32
WARPS = 8  # gives a thread 16 places of a tile: 120 to 200 registers on Hopper


class Factors(NamedTuple):
    """Write vectors [neuron, d] and token directions [row, d] as a kernel takes them: the bits of their floats."""

    write_vectors: Tensor
    neuron_stride: int
    left_stride: int
    n_neurons: int
    directions: Tensor
    row_stride: int
    right_stride: int
    gain: Tensor | None
    """[d] by which the directions are weighed."""
    d: int


def factors(
    write_vectors: Tensor, directions: Tensor, gain: Tensor | None, columns: int = COLUMNS, neurons: int = NEURONS
) -> dict[str, Any]:
    """The arguments by name of a kernel that calls `multiply` for tiles of that size."""
    left, right = as_bits(write_vectors), as_bits(directions)
    # Without a gain, tensor cores multiply 16-bit floats as they are, exactly; the interpreter has no bfloat16.
    same = write_vectors.dtype == directions.dtype and gain is None
    return {
        "factors": Factors(
            left,
            left.stride(0),
            left.stride(1),
            len(left),
            right,
            right.stride(0),
            right.stride(1),
            gain,
            left.shape[1],
        ),
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
    factors: Factors,
    neurons: tl.tensor,
    rows: tl.tensor,
    there: tl.tensor,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    NATIVE: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """The products [neuron, column] in float32 of `neurons` with the directions in `rows`, both int64; 0 beyond them."""
    product = tl.zeros([NEURONS, COLUMNS], tl.float32)
    d = factors.d
    known = (neurons < factors.n_neurons)[:, None]
    left_rows = factors.write_vectors + neurons[:, None] * factors.neuron_stride
    right_columns = factors.directions + rows[None, :] * factors.row_stride
    for start in range(0, d, DEPTH):
        at = start + tl.arange(0, DEPTH).to(tl.int64)
        left_places = left_rows + at[None, :] * factors.left_stride
        left = tl.load(left_places, mask=known & (at < d)[None, :], other=0)
        right_places = right_columns + at[:, None] * factors.right_stride
        right = tl.load(right_places, mask=there[None, :] & (at < d)[:, None], other=0)
        a, b = as_floats(left, LEFT, NATIVE), as_floats(right, RIGHT, NATIVE)
        if factors.gain is not None:
            b *= tl.load(factors.gain + at, mask=at < d, other=0.0)[:, None]
        product = tl.dot(a, b, product, input_precision="ieee")
    return product

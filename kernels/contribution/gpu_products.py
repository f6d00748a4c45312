"""A tile of the product of write vectors and token directions, as a part of Triton kernels.

Imported only where a tensor lies on a GPU.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import FORMATS, as_bits, jit, widen

NEURONS = 64  # rows of a tile
COLUMNS = 64  # its columns
DEPTH = 32  # entries of d that are multiplied at a time: with two stages, 32 KB of shared memory in float32
WARPS = 8  # gives a thread 16 elements of a tile: 120 to 200 registers on Hopper

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels are interpreted: the interpreter multiplies the bits of bfloat16 as integers, unless a test teaches it."""


class Factors(NamedTuple):
    """Write vectors [neuron, d] and token directions [row, d] as a kernel takes them: the bits of their floats."""

    write_vectors: Tensor
    """[neuron, d] integers of the width of the format LEFT."""
    neuron_stride: int
    """Elements from one neuron to the next; `left_stride` from one entry of d to the next."""
    left_stride: int
    n_neurons: int
    directions: Tensor
    """[row, d] integers of the width of the format RIGHT."""
    row_stride: int
    """Elements from one row to the next; `right_stride` from one entry of d to the next."""
    right_stride: int
    gain: Tensor | None
    """[d] float32, by which the directions are multiplied."""
    d: int


def factors(
    write_vectors: Tensor, directions: Tensor, gain: Tensor | None, columns: int = COLUMNS, neurons: int = NEURONS
) -> dict[str, Factors | int | bool]:
    """What `launch` takes by name for a kernel that calls `multiply` for tiles of that size."""
    left, right = as_bits(write_vectors), as_bits(directions)
    # Without a gain, tensor cores multiply 16-bit floats as they are, exactly.
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
        "NATIVE": same and not INTERPRETED,
        "NEURONS": neurons,
        "COLUMNS": columns,
        "DEPTH": DEPTH,
        "num_warps": WARPS,
        "num_stages": 2,
    }


@jit
def as_floats(raw: tl.tensor, FORMAT: tl.constexpr, NATIVE: tl.constexpr) -> tl.tensor:
    """The values whose bits are `raw`, of any shape: in their own format where `NATIVE`, else in float32."""
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
    valid: tl.tensor,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    NATIVE: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """The products [NEURONS, COLUMNS] float32 of the write vectors of `neurons` with the directions in `rows`.

    neurons: [NEURONS] int64; those from n_neurons on give 0. rows: [COLUMNS] int64; 0 where not `valid`, [COLUMNS]
    bool. DEPTH entries of d are multiplied at a time, always in the same order. LEFT and RIGHT are the formats of the
    bits in `factors`. With NATIVE both are the same, there is no gain, and 16-bit floats go to the tensor cores as they
    are, whose products are exact; else all is float32 without rounding to tf32.
    """
    product = tl.zeros([NEURONS, COLUMNS], tl.float32)
    d = factors.d
    valid_neurons = (neurons < factors.n_neurons)[:, None]  # [NEURONS, 1]
    left_rows = factors.write_vectors + neurons[:, None] * factors.neuron_stride  # [NEURONS, 1]
    right_columns = factors.directions + rows[None, :] * factors.row_stride  # [1, COLUMNS]
    for start in range(0, d, DEPTH):
        entries = start + tl.arange(0, DEPTH).to(tl.int64)  # [DEPTH]
        left_pointers = left_rows + entries[None, :] * factors.left_stride
        left = tl.load(left_pointers, mask=valid_neurons & (entries < d)[None, :], other=0)  # [NEURONS, DEPTH]
        right_pointers = right_columns + entries[:, None] * factors.right_stride
        right = tl.load(right_pointers, mask=valid[None, :] & (entries < d)[:, None], other=0)  # [DEPTH, COLUMNS]
        a, b = as_floats(left, LEFT, NATIVE), as_floats(right, RIGHT, NATIVE)
        if factors.gain is not None:
            b *= tl.load(factors.gain + entries, mask=entries < d, other=0.0)[:, None]
        product = tl.dot(a, b, product, input_precision="ieee")  # [NEURONS, COLUMNS]
    return product

"""A tile of the product of write vectors and token directions, as a part of Triton kernels.

Imported only where a tensor lies on a GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import FORMATS, INFINITY, MAGNITUDE, as_bits, jit, widen

NEURONS = 64  # rows of a tile
COLUMNS = 64  # its columns
DEPTH = 32  # entries of d that are multiplied at a time: with two stages, 32 KB of shared memory in float32
WARPS = 8  # gives a thread 16 elements of a tile: 120 to 200 registers on Hopper

_QUIET = tl.constexpr(1 << 22)  # the bit of a float32 that a NaN has in its upper half
IN_FLOAT32 = tl.constexpr(0)
"""Both factors in float32, each product rounded to it: no tensor core does that."""
IN_16_BITS = tl.constexpr(1)
"""Both factors as they are, on tensor cores, whose products of 16-bit floats are exact."""
IN_PARTS = tl.constexpr(2)
"""On tensor cores too, a bfloat16 times a float32 that is taken apart into three bfloat16: exact, and none is left out."""

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
        "PRODUCTS": (IN_FLOAT32 if INTERPRETED else _products(write_vectors, directions, gain)).value,
        "NEURONS": neurons,
        "COLUMNS": columns,
        "DEPTH": DEPTH,
        "num_warps": WARPS,
        "num_stages": 2,
    }


def _products(write_vectors: Tensor, directions: Tensor, gain: Tensor | None) -> tl.constexpr:
    """How two factors are multiplied: on tensor cores where the write vectors are bfloat16, as those of most models.

    Compiled for Hopper, a step of three products of parts takes 298 instructions, one in float32 670. A float16 is two
    bfloat16, which takes six products and 511: hardly fewer.
    """
    if write_vectors.dtype == directions.dtype != torch.float32 and gain is None:
        return IN_16_BITS
    return IN_PARTS if write_vectors.dtype == torch.bfloat16 else IN_FLOAT32


@jit
def _as_floats(raw: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """The values in their own format whose bits are `raw`, of any shape."""
    if FORMAT == 1:
        values = raw.to(tl.float16, bitcast=True)
    elif FORMAT == 2:
        values = raw.to(tl.bfloat16, bitcast=True)
    else:
        values = raw.to(tl.float32, bitcast=True)
    return values


@jit
def _upper_half(values: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """float32 values without the lower 16 of their bits, as bfloat16 and as float32; of their shape. NaN stays NaN."""
    bits = values.to(tl.int32, bitcast=True)
    kept = tl.where((bits & MAGNITUDE) > INFINITY, bits | _QUIET, bits) >> 16
    return kept.to(tl.int16).to(tl.bfloat16, bitcast=True), (kept << 16).to(tl.float32, bitcast=True)


@jit
def _multiply_parts(a: tl.tensor, b: tl.tensor, product: tl.tensor, rest: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The sums `product` and `rest` with the products of two tiles added: of the largest parts of `b`, and of all others.

    a: [NEURONS, DEPTH] bfloat16. b: [DEPTH, COLUMNS] float32. product, rest: [NEURONS, COLUMNS] float32. A float32 has 24
    significant bits: three bfloat16 of 8 each, cut off one after the other.
    """
    b_high, b_upper = _upper_half(b)
    b_middle, b_next = _upper_half(b - b_upper)
    b_low, _ = _upper_half(b - b_upper - b_next)
    rest = tl.dot(a, b_low, rest)
    rest = tl.dot(a, b_middle, rest)
    return tl.dot(a, b_high, product), rest


@jit
def multiply(
    factors: Factors,
    neurons: tl.tensor,
    rows: tl.tensor,
    valid: tl.tensor,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PRODUCTS: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """The products [NEURONS, COLUMNS] float32 of the write vectors of `neurons` with the directions in `rows`.

    neurons: [NEURONS] int64; those from n_neurons on give 0. rows: [COLUMNS] int64; 0 where not `valid`, [COLUMNS]
    bool. DEPTH entries of d are multiplied at a time, always in the same order. LEFT and RIGHT are the formats of the
    bits in `factors`. PRODUCTS says how: IN_16_BITS, both formats are the same, and there is no gain; IN_PARTS, the write
    vectors are bfloat16; IN_FLOAT32, nothing is rounded to tf32. Sums are in float32.
    """
    product = tl.zeros([NEURONS, COLUMNS], tl.float32)
    rest = product
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
        # [NEURONS, COLUMNS]
        if PRODUCTS == IN_16_BITS:
            product = tl.dot(_as_floats(left, LEFT), _as_floats(right, RIGHT), product)
        else:
            b = widen(right, RIGHT).to(tl.float32, bitcast=True)
            if factors.gain is not None:
                b *= tl.load(factors.gain + entries, mask=entries < d, other=0.0)[:, None]
            if PRODUCTS == IN_PARTS:
                product, rest = _multiply_parts(_as_floats(left, LEFT), b, product, rest)
            else:
                a = widen(left, LEFT).to(tl.float32, bitcast=True)
                product = tl.dot(a, b, product, input_precision="ieee")
    if PRODUCTS == IN_PARTS:
        # Infinity less its upper half is NaN, and so is 0 · infinity: where a factor is not finite, its largest part decides.
        product += tl.where(tl.abs(rest) < float("inf"), rest, 0.0)
    return product

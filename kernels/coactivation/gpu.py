"""Coactivation on the GPU, in Triton: rows made ready span by span, products of tiles, moments added in float64.

The same spans, means and units as on the CPU; sums are in another order. Arguments were checked by `api`.
"""

import torch
import triton.language as tl
from torch import Tensor

from actstore.kernels.coactivation.state import Coactivation
from actstore.kernels.gpu import jit, launch

SPAN = 4096  # tokens of one float32 product; a power of two
SIDE, DEPTH = 64, 32  # rows, columns and tokens of the tiles of a product


def coactivation(chosen: Tensor, values: Tensor, tokens: Tensor, state: Coactivation) -> Coactivation:
    """`state` and the `chosen` [chosen, token] and `values` [neuron, token] at `tokens` together; see `api`."""
    for span in torch.split(tokens, SPAN):
        if len(span):
            x, y = _Rows(chosen, span, state.chosen_thresholds), _Rows(values, span, state.thresholds)
            state = state.merge(_compare(x, y, state))
    return state


class _Rows:
    """Rows made ready at some tokens, as `cpu.Centred`: differences from the mean in units, sums, active tokens."""

    def __init__(self, values: Tensor, tokens: Tensor, thresholds: Tensor) -> None:
        n, device = len(values), values.device
        self.source, self.tokens = values, tokens
        self.values = torch.empty(n, len(tokens), device=device)
        self.active = torch.empty(n, len(tokens), dtype=torch.float16, device=device)
        self.unit, self.mean, self.total, self.squares = torch.empty(4, n, dtype=torch.float64, device=device)
        self.count, self.n_active = torch.empty(2, n, dtype=torch.int64, device=device)
        if n:
            launch(
                _centre, n,
                values, tokens, thresholds, self.values, self.active, self.unit, self.mean, self.total, self.squares,
                self.count, self.n_active, len(tokens), values.stride(0), values.stride(1), SPAN=SPAN, num_warps=8,
                on=values, fuse=False,
            )  # fmt: skip


def _compare(x: _Rows, y: _Rows, state: Coactivation) -> Coactivation:
    """The state over one span."""
    n_tokens = x.values.shape[1]
    chosen_unit, unit, chosen_total, total = x.unit[:, None], y.unit[None], x.total[:, None], y.total[None]
    moments = [
        torch.full((1, 1), n_tokens, device=x.count.device),
        x.mean[:, None] + chosen_unit * (chosen_total / n_tokens),
        y.mean[None] + unit * (total / n_tokens),
        chosen_unit.square() * (x.squares[:, None] - chosen_total * (chosen_total / n_tokens)).clip(0),
        unit.square() * (y.squares[None] - total * (total / n_tokens)).clip(0),
        (_multiply(x.values, y.values).double() - chosen_total * (total / n_tokens)) * (chosen_unit * unit),
    ]
    both_active = _multiply(x.active, y.active).long()
    if both_active.numel() and bool((x.count < n_tokens).any() or (y.count < n_tokens).any()):
        moments = [array.expand(both_active.shape).contiguous() for array in moments]
        launch(
            _compare_anew, both_active.numel(),
            x.source, y.source, x.tokens, x.count, y.count, *moments, len(y.count), n_tokens, *x.source.stride(),
            *y.source.stride(), SPAN=SPAN, num_warps=8, on=y.source, fuse=True,
        )  # fmt: skip
    active = (x.n_active, y.n_active, both_active)
    return Coactivation(*(state.chosen_thresholds, state.thresholds, *moments, *active))


def _multiply(x: Tensor, y: Tensor) -> Tensor:
    """The inner products [row of x, row of y] float32 of rows of float32, or exactly of fewer than 2^24 zeros and ones."""
    out = torch.empty(len(x), len(y), device=x.device)
    n_tiles = -(-len(x) // SIDE) * -(-len(y) // SIDE)
    if out.numel():
        sizes = (len(x), len(y), x.shape[1])
        launch(_multiply_tiles, n_tiles, x, y, out, *sizes, SIDE=SIDE, DEPTH=DEPTH, on=x, fuse=True)
    return out


@jit
def _centre(
    source: tl.tensor,
    tokens: tl.tensor,
    thresholds: tl.tensor,
    values: tl.tensor,
    active: tl.tensor,
    unit: tl.tensor,
    mean: tl.tensor,
    total: tl.tensor,
    squares: tl.tensor,
    count: tl.tensor,
    n_active: tl.tensor,
    n_tokens: tl.tensor,
    pitch: tl.tensor,
    step: tl.tensor,
    SPAN: tl.constexpr,
) -> None:
    """Make one row ready: its differences from its mean, its sums and its active tokens, over one span of tokens.

    Grid: [row]. A program holds the whole span in registers: n_tokens is at most SPAN, a power of two, and 1 or more.

    source: [row, any token] float32, float16 or bfloat16, `pitch` and `step` elements apart along rows and tokens.
    tokens: [token] int64, columns of the source. thresholds: [row] float32. Filled: values [row, token] float32, active
    [row, token] float16, 0 or 1, both contiguous; unit, mean, total, squares [row] float64; count, n_active [row]
    int64. See `cpu.Centred`; a value that is not finite counts as the mean, and only `count` tells. Infinity is above
    every threshold, NaN above none.
    """
    row = tl.program_id(0).to(tl.int64)
    positions = tl.arange(0, SPAN)  # [SPAN]
    valid = positions < n_tokens
    token = tl.load(tokens + positions, mask=valid, other=0).to(tl.int64)  # [SPAN]
    value = tl.load(source + row * pitch + token * step, mask=valid, other=0).to(tl.float32)  # [SPAN]
    is_active = valid & (value > tl.load(thresholds + row))
    finite = valid & (tl.abs(value) < float("inf"))
    value = tl.where(finite, value, 0.0)
    n = tl.sum(finite.to(tl.int32), axis=0)
    row_total = tl.sum(value.to(tl.float64), axis=0)  # scalar, as all sums of a row are
    row_mean = (row_total / tl.maximum(n, 1)).to(tl.float32)
    # The power of two at or below the largest magnitude, and its inverse, by their exponents.
    largest = tl.max(tl.abs(value), axis=0)
    exponent = tl.minimum(tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)
    row_unit = ((exponent + 127) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    difference = tl.where(finite, value * scale - row_mean * scale, 0.0)  # [SPAN]
    exact = difference.to(tl.float64)
    tl.store(values + row * n_tokens + positions, difference, mask=valid)
    tl.store(active + row * n_tokens + positions, is_active.to(tl.float16), mask=valid)
    tl.store(unit + row, row_unit)
    tl.store(mean + row, row_mean.to(tl.float64))
    # What the rounding of the mean to float32 leaves.
    tl.store(total + row, (row_total - n * row_mean.to(tl.float64)) / row_unit)
    tl.store(squares + row, tl.sum(exact * exact, axis=0))
    tl.store(count + row, n.to(tl.int64))
    tl.store(n_active + row, tl.sum(is_active.to(tl.int32), axis=0).to(tl.int64))


@jit
def _multiply_tiles(
    x: tl.tensor,
    y: tl.tensor,
    out: tl.tensor,
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    depth: tl.tensor,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Fill a tile of the inner products of the rows of `x` with the rows of `y`.

    Grid: [tile of SIDE × SIDE products], along the rows of y fastest. x: [n_rows, depth], y: [n_columns, depth], both
    float32 or both float16, contiguous. out: [n_rows, n_columns] float32, contiguous. Sums are in float32 without
    tensor cores' rounding to tf32; those of fewer than 2^24 zeros and ones are exact. All sizes may be odd.
    """
    tile = tl.program_id(0).to(tl.int64)
    n_across = tl.cdiv(n_columns, SIDE)
    row = (tile // n_across) * SIDE + tl.arange(0, SIDE)  # [SIDE]
    column = (tile % n_across) * SIDE + tl.arange(0, SIDE)  # [SIDE]
    sums = tl.zeros((SIDE, SIDE), tl.float32)  # [row, column]
    for start in range(0, depth, DEPTH):
        token = start + tl.arange(0, DEPTH)  # [DEPTH]
        valid = token < depth
        a = tl.load(
            x + row[:, None] * depth + token[None], mask=(row < n_rows)[:, None] & valid[None], other=0
        )  # [SIDE, DEPTH]
        b = tl.load(
            y + column[None] * depth + token[:, None], mask=(column < n_columns)[None] & valid[:, None], other=0
        )
        sums = tl.dot(a, b, sums, input_precision="ieee")
    valid = (row < n_rows)[:, None] & (column < n_columns)[None]
    tl.store(out + row[:, None] * n_columns + column[None], sums, mask=valid)


@jit
def _compare_anew(
    chosen: tl.tensor,
    values: tl.tensor,
    tokens: tl.tensor,
    chosen_count: tl.tensor,
    value_count: tl.tensor,
    count: tl.tensor,
    chosen_mean: tl.tensor,
    mean: tl.tensor,
    chosen_m2: tl.tensor,
    m2: tl.tensor,
    comoment: tl.tensor,
    n_neurons: tl.tensor,
    n_tokens: tl.tensor,
    chosen_pitch: tl.tensor,
    chosen_step: tl.tensor,
    pitch: tl.tensor,
    step: tl.tensor,
    SPAN: tl.constexpr,
) -> None:
    """Fill the moments of a pair with gaps, from the tokens at which both its values are finite.

    Grid: [chosen × neuron], neurons fastest; a pair without a gap returns at once. A program holds the span in
    registers.

    chosen: [chosen, any token] and values: [neuron, any token], float32, float16 or bfloat16, `pitch` and `step`
    elements apart. tokens: [token] int64, n_tokens of them, at most SPAN. chosen_count: [chosen] and value_count:
    [neuron] int64, finite values of each. Filled, [chosen, neuron], contiguous: count int64; the means, second moments
    and the comoment float64, all 0 where no token is common. All in float64, each sum over the whole span at once.
    """
    pair = tl.program_id(0).to(tl.int64)
    c, neuron = pair // n_neurons, pair % n_neurons
    if tl.minimum(tl.load(chosen_count + c), tl.load(value_count + neuron)) < n_tokens:
        positions = tl.arange(0, SPAN)  # [SPAN]
        valid = positions < n_tokens
        token = tl.load(tokens + positions, mask=valid, other=0).to(tl.int64)  # [SPAN]
        x = tl.load(chosen + c * chosen_pitch + token * chosen_step, mask=valid, other=0).to(
            tl.float32
        )  # [SPAN], as all that follows
        y = tl.load(values + neuron * pitch + token * step, mask=valid, other=0).to(tl.float32)
        both_finite = valid & (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
        # The means are of the common tokens: one neuron's gap may hide where the other is largest.
        n = tl.sum(both_finite.to(tl.int32), axis=0)
        x_exact, y_exact = tl.where(both_finite, x, 0.0).to(tl.float64), tl.where(both_finite, y, 0.0).to(tl.float64)
        x_mean, y_mean = tl.sum(x_exact, axis=0) / tl.maximum(n, 1), tl.sum(y_exact, axis=0) / tl.maximum(n, 1)
        from_x, from_y = tl.where(both_finite, x_exact - x_mean, 0.0), tl.where(both_finite, y_exact - y_mean, 0.0)
        tl.store(count + pair, n.to(tl.int64))
        tl.store(chosen_mean + pair, x_mean)
        tl.store(mean + pair, y_mean)
        tl.store(chosen_m2 + pair, tl.sum(from_x * from_x, axis=0))
        tl.store(m2 + pair, tl.sum(from_y * from_y, axis=0))
        tl.store(comoment + pair, tl.sum(from_x * from_y, axis=0))

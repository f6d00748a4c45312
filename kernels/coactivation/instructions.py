"""What a vector unit can do and numba cannot say: products of a few rows with a few others, the bits of a word.

No BLAS, because how a BLAS adds depends on its threads, on the shape and on the processor. Here the order is fixed, and
a fused multiply-add rounds alike everywhere. On one core it is as fast: 94–112 GFLOP/s where MKL has 76–98 (Zen 4,
4,096 tokens).
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

LANES = 16  # partial sums of each product
WORD = 64  # bits
ROWS, COLUMNS = (4, 6) if binding.get_host_cpu_features().get("avx512f") else (2, 3)  # what the registers hold

_insert: Any = cgutils.get_or_insert_function
_VECTOR, _INDEX = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)


def _multiply(
    context: Any,
    x: types.Array,
    x_start: types.Type,
    x_pitch: types.Type,
    y: types.Array,
    y_start: types.Type,
    y_pitch: types.Type,
    depth: types.Type,
    out: types.Array,
    out_start: types.Type,
    out_pitch: types.Type,
) -> tuple[Signature, Callable[..., ir.Value]]:
    """Write the inner products of ROWS rows of x with COLUMNS rows of y to `out`.

    `out[out_start + i * out_pitch + j]` = sum over t of `x[x_start + i * x_pitch + t] * y[y_start + j * y_pitch + t]`.

    x, y, out: flat float32 arrays. i below ROWS, j below COLUMNS, t below `depth`, a multiple of LANES and not 0. Nothing
    checks the bounds.
    """
    n = types.int64
    signature = types.void(x, n, n, y, n, n, n, out, n, n)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        x, y, out = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 7))
        xs = _starts(builder, x, arguments[1], arguments[2], ROWS)
        ys = _starts(builder, y, arguments[4], arguments[5], COLUMNS)
        fma: Any = _insert(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32")
        # One loop over the tokens. Every product has a vector of partial sums, which stays in a register throughout.
        before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("loop", "after"))
        builder.branch(loop)
        builder.position_at_end(loop)
        token = builder.phi(_INDEX)
        sums = [builder.phi(_VECTOR) for _ in range(ROWS * COLUMNS)]
        rows, columns = ([_load(builder, start, token) for start in starts] for starts in (xs, ys))
        longer = [builder.call(fma, [rows[i // COLUMNS], columns[i % COLUMNS], sum_]) for i, sum_ in enumerate(sums)]
        following = builder.add(token, ir.Constant(_INDEX, LANES))
        for phi, value in zip([token, *sums], [following, *longer], strict=True):
            phi.add_incoming(ir.Constant(phi.type, None), before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[6]), loop, after)
        builder.position_at_end(after)  # lanes are added once, at the end
        for i, start in enumerate(_starts(builder, out, arguments[8], arguments[9], ROWS)):
            for j in range(COLUMNS):
                total = _add_lanes(builder, longer[i * COLUMNS + j])
                builder.store(total, builder.gep(start, [ir.Constant(_INDEX, j)]))
        return context.get_dummy_value()

    return signature, generate


def _popcount(context: Any, word: types.Type) -> tuple[Signature, Callable[..., ir.Value]]:
    """The number of bits set in a uint64; LLVM vectorises it, to one instruction for eight words where there is one."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


multiply: Any = intrinsic(_multiply)
popcount: Any = intrinsic(_popcount)


def _starts(builder: ir.IRBuilder, data: ir.Value, start: ir.Value, pitch: ir.Value, n_rows: int) -> list[ir.Value]:
    """Pointers to the starts of `n_rows` rows, the first at element `start` of `data`, `pitch` elements apart."""
    offsets = [builder.add(start, builder.mul(pitch, ir.Constant(_INDEX, row))) for row in range(n_rows)]
    return [builder.gep(data, [offset]) for offset in offsets]


def _load(builder: ir.IRBuilder, start: ir.Value, token: ir.Value) -> ir.Value:
    """LANES elements of a row from `token` on; rows are aligned to an element only."""
    return builder.load(builder.bitcast(builder.gep(start, [token]), _VECTOR.as_pointer()), align=4)


def _add_lanes(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """The sum of a vector's lanes: its halves added, then theirs, and so on. Always in this order: no reduction of LLVM's."""
    half = LANES // 2
    while half:
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), half), range_))
            for range_ in ([*range(half)], [*range(half, 2 * half)])
        )
        vector = builder.fadd(low, high)
        half //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

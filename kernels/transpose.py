"""A 16 × 16 transpose in vector registers, as an instruction for compiled kernels.

LLVM does not find one in a loop: storing value by value, a tile takes four times as long.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

SIDE = 16
_INDEX = ir.VectorType(ir.IntType(32), SIDE)


def _transpose_square(
    context: Any,
    source: types.Array,
    source_start: types.Type,
    source_pitch: types.Type,
    target: types.Array,
    target_start: types.Type,
    target_pitch: types.Type,
) -> tuple[Signature, Callable[..., ir.Value]]:
    """Write `target[target_start + j * target_pitch + i] = source[source_start + i * source_pitch + j]` for i and j below 16.

    source, target: flat arrays of one dtype; they must not overlap. Starts and pitches count elements. Nothing checks the
    bounds. What numba calls at compile time: arguments are the types of those that the instruction is given.
    """
    signature = types.void(source, types.int64, types.int64, target, types.int64, types.int64)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        lane = context.get_data_type(signature.args[0].dtype)
        align = context.get_abi_sizeof(lane)  # that of an element: rows start anywhere

        def address(operand: int, row: int) -> ir.Value:
            array = context.make_array(signature.args[operand])(context, builder, arguments[operand])
            offset = builder.mul(arguments[operand + 2], ir.Constant(ir.IntType(64), row))
            element = builder.gep(array.data, [builder.add(arguments[operand + 1], offset)])
            return builder.bitcast(element, ir.VectorType(lane, SIDE).as_pointer())

        # All loads before all stores: sixteen vectors, which the registers hold.
        rows = [builder.load(address(0, row), align=align) for row in range(SIDE)]
        for row, vector in enumerate(_transposed(builder, rows)):
            builder.store(vector, address(3, row), align=align)
        return context.get_dummy_value()

    return signature, generate


transpose_square: Any = intrinsic(_transpose_square)  # numba's, without types


def _transpose_into_rows(
    context: Any,
    source: types.Array,
    source_start: types.Type,
    source_pitch: types.Type,
    target: types.Array,
    rows: types.Array,
    first_row: types.Type,
    target_pitch: types.Type,
    column: types.Type,
) -> tuple[Signature, Callable[..., ir.Value]]:
    """Write `target[rows[first_row + j] * target_pitch + column + i] = source[source_start + i * source_pitch + j]`.

    As `transpose_square`, but for the rows of the target, which `rows`, int64, names one by one.
    """
    number = types.int64
    signature = types.void(source, number, number, target, rows, number, number, number)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        lane = context.get_data_type(signature.args[0].dtype)
        align = context.get_abi_sizeof(lane)
        data = {i: context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 4)}
        _, start, pitch, _, _, first, target_pitch, column = arguments

        def vector(operand: int, at: ir.Value) -> ir.Value:
            return builder.bitcast(builder.gep(data[operand], [at]), ir.VectorType(lane, SIDE).as_pointer())

        loaded = []
        for i in range(SIDE):
            at = builder.add(start, builder.mul(pitch, ir.Constant(ir.IntType(64), i)))
            loaded.append(builder.load(vector(0, at), align=align))
        for j, transposed in enumerate(_transposed(builder, loaded)):
            row = builder.load(builder.gep(data[4], [builder.add(first, ir.Constant(ir.IntType(64), j))]))
            builder.store(transposed, vector(3, builder.add(builder.mul(row, target_pitch), column)), align=align)
        return context.get_dummy_value()

    return signature, generate


transpose_into_rows: Any = intrinsic(_transpose_into_rows)


def _transposed(builder: ir.IRBuilder, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """The vectors' transpose: swap the off-diagonal halves of the square, then those of its quarters, and so on."""
    vectors = list(rows)
    half = SIDE // 2
    while half:
        # Lanes of the two vectors together: those of the second count from SIDE on.
        upper = ir.Constant(_INDEX, [j + SIDE - half if j & half else j for j in range(SIDE)])
        lower = ir.Constant(_INDEX, [j + SIDE if j & half else j + half for j in range(SIDE)])
        for i in range(SIDE):
            if not i & half:
                a, b = vectors[i], vectors[i + half]
                vectors[i] = builder.shuffle_vector(a, b, upper)
                vectors[i + half] = builder.shuffle_vector(a, b, lower)
        half //= 2
    return vectors

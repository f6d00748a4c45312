"""A 16 × 16 transpose in vector registers, as an instruction for compiled kernels.

LLVM does not find one in a loop: storing value by value, a tile takes four times as long. Knows nothing about its
callers.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

SIDE = 16
_INDEX = ir.VectorType(ir.IntType(32), SIDE)


def _transpose_square(
    context: Any, source: Any, source_at: Any, source_pitch: Any, target: Any, target_at: Any, target_pitch: Any
) -> Any:
    """Write `target[target_at + j * target_pitch + i] = source[source_at + i * source_pitch + j]` for i and j below 16.

    source, target: flat arrays of one dtype. Nothing checks the bounds.
    """
    signature = types.void(source, types.int64, types.int64, target, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lane = context.get_data_type(signature.args[0].dtype)
        align = context.get_abi_sizeof(lane)

        def address(operand: int, row: int) -> Any:
            array = context.make_array(signature.args[operand])(context, builder, arguments[operand])
            offset = builder.mul(arguments[operand + 2], ir.Constant(ir.IntType(64), row))
            element = builder.gep(array.data, [builder.add(arguments[operand + 1], offset)])
            return builder.bitcast(element, ir.VectorType(lane, SIDE).as_pointer())

        rows = [builder.load(address(0, row), align=align) for row in range(SIDE)]
        for row, vector in enumerate(_transposed(builder, rows)):
            builder.store(vector, address(3, row), align=align)
        return context.get_dummy_value()

    return signature, generate


transpose_square: Any = intrinsic(_transpose_square)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The vectors' transpose: swap the off-diagonal halves of the square, then those of its quarters, and so on."""
    rows = list(rows)
    half = SIDE // 2
    while half:
        upper = ir.Constant(_INDEX, [j + SIDE - half if j & half else j for j in range(SIDE)])
        lower = ir.Constant(_INDEX, [j + SIDE if j & half else j + half for j in range(SIDE)])
        for i in range(SIDE):
            if not i & half:
                a, b = rows[i], rows[i + half]
                rows[i] = builder.shuffle_vector(a, b, upper)
                rows[i + half] = builder.shuffle_vector(a, b, lower)
        half //= 2
    return rows

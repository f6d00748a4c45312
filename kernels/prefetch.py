"""Asking for memory before it is needed, as an instruction for compiled kernels.

Hardware follows the rows of a matrix to the end of a page; a tile's next rows are a page away each.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

_READ, _KEEP_IN_L2, _DATA = 0, 2, 1  # arguments of llvm.prefetch: access, locality, kind of cache


def _prefetch(context: Any, source: types.Array, index: types.Type) -> tuple[Signature, Callable[..., ir.Value]]:
    """Bring the cache line of `source[index]`, a flat array, into the caches. Nothing checks the bounds, nothing faults."""
    signature = types.void(source, types.int64)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        )
        builder.call(function, [pointer, number(_READ), number(_KEEP_IN_L2), number(_DATA)])
        return context.get_dummy_value()

    return signature, generate


prefetch: Any = intrinsic(_prefetch)  # numba's, without types

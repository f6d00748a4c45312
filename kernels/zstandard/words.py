"""Words of 64 bits as instructions for compiled kernels: eight bytes of an array, wherever they begin; zero bits."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

_WORD = ir.IntType(64)


def _pointer(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _WORD.as_pointer())


def _load_word(context: Any, source: types.Array, index: types.Type) -> tuple[Signature, Callable[..., ir.Value]]:
    """The 8 bytes of `source`, a flat uint8 array, from `index` on, the first one lowest. Nothing checks the bounds."""
    signature = types.uint64(source, types.uint64)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        return builder.load(_pointer(context, builder, signature.args[0], *arguments), align=1)

    return signature, generate


def _store_word(
    context: Any, target: types.Array, index: types.Type, word: types.Type
) -> tuple[Signature, Callable[..., ir.Value]]:
    """Write `word` to 8 bytes of `target`, a flat uint8 array, from `index` on. Nothing checks the bounds."""
    signature = types.void(target, types.uint64, types.uint64)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], *arguments[:2]), align=1)
        return context.get_dummy_value()

    return signature, generate


def _zeros(name: str) -> Callable[..., tuple[Signature, Callable[..., ir.Value]]]:
    def typed(context: Any, word: types.Type) -> tuple[Signature, Callable[..., ir.Value]]:
        signature = types.uint64(types.uint64)

        def generate(
            context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
        ) -> ir.Value:
            flag = ir.IntType(1)
            function = builder.module.declare_intrinsic(name, [_WORD], ir.FunctionType(_WORD, [_WORD, flag]))
            return builder.call(function, [arguments[0], flag(0)])

        return signature, generate

    return typed


leading_zeros: Any = intrinsic(_zeros("llvm.ctlz"))
"""The number of zero bits above the highest that is set; 64 of 0."""
trailing_zeros: Any = intrinsic(_zeros("llvm.cttz"))
"""The number of zero bits below the lowest that is set; 64 of 0."""
load_word: Any = intrinsic(_load_word)  # numba's, without types
store_word: Any = intrinsic(_store_word)

"""Rows of a chunk put to their places while their CRC-32C is taken, compiled. Arguments were checked by `api`.

What is put there goes past the caches: it is written once, does not fit into them, and would else be read before it is written.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from numpy.typing import NDArray

from actstore.kernels.crc32c.cpu import INVERTED, advance_register
from actstore.kernels.jit import jit
from actstore.kernels.zstandard.words import load_word

LINE = 64
"""Bytes that the memory takes at once."""
DONE, OUTSIDE, OTHER = -1, -2, -3
HEADER_NBYTES = 16
"""Of a Blosc frame, which holds a chunk that was not compressed as it is."""
_MEMCPYED = np.uint64(0x2)

_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))


def _stream(n_words: int) -> Any:
    """An instruction that copies `n_words` words of 8 bytes from `at` of `data` to `to` of `out`, a multiple of their size."""

    def typed(
        context: Any, out: types.Type, to: types.Type, data: types.Type, at: types.Type
    ) -> tuple[Signature, Callable[..., ir.Value]]:
        signature = types.void(out, types.uint64, data, types.uint64)

        def generate(
            context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
        ) -> ir.Value:
            kind = ir.VectorType(ir.IntType(64), n_words)
            place, source = (
                builder.bitcast(
                    builder.gep(
                        context.make_array(signature.args[i])(context, builder, arguments[i]).data, [arguments[i + 1]]
                    ),
                    kind.as_pointer(),
                )
                for i in (0, 2)
            )
            store = builder.store(builder.load(source, align=1), place, align=8 * n_words)
            store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(typed)


def _fence(context: Any) -> tuple[Signature, Callable[..., ir.Value]]:
    """What was put past the caches is there for other threads from here on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        function = builder.module.globals.get("llvm.x86.sse.sfence") or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse.sfence"
        )
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


_stream_line: Any = _stream(LINE // 8)
_stream_word: Any = _stream(1)
_fence_stores: Any = intrinsic(_fence)


@jit
def scatter_rows(
    data: NDArray[np.uint8],
    row_nbytes: int,
    target: NDArray[np.int64],
    starts: NDArray[np.uint32],
    table: NDArray[np.uint32],
    out: NDArray[np.uint8],
    pitch: int,
    column: int,
) -> int:
    """Put row r of `data`, of a multiple of 8 bytes, into row `target[r]` of `out`, from byte `column` of its `pitch` bytes on.

    A row whose target is -1 is left out. `out` begins at a multiple of 8 in memory, and so do pitch and column. DONE where the
    CRC-32C of each, continued from that of `starts` [row], is that of `table` [row]; else the first row whose is not, or
    OUTSIDE where a row lies outside of `data` or `out`: those behind it are not put anywhere then.
    """
    n_rows, row = target.size, 0
    by_lines = (np.uint64(out.ctypes.data) | np.uint64(row_nbytes | pitch | column)) & np.uint64(LINE - 1) == 0
    rows, registers = np.zeros(4, np.int64), np.zeros(4, np.uint64)
    froms, tos = np.zeros(4, np.uint64), np.zeros(4, np.uint64)
    wrong = DONE
    while row < n_rows and wrong == DONE:
        n = 0  # four rows whose checksums do not depend on one another, the last one again where there are fewer
        while row < n_rows and n < 4:
            if target[row] >= 0:
                rows[n] = row
                n += 1
            row += 1
        for r in range(4 if n else 0):
            one = rows[min(r, n - 1)]
            place = target[one] * pitch + column
            if place + row_nbytes > out.size or (one + 1) * row_nbytes > data.size:
                return OUTSIDE
            froms[r], tos[r] = np.uint64(one * row_nbytes), np.uint64(place)
            registers[r] = np.uint64(starts[one] ^ INVERTED)
        if by_lines and n:
            _copy_lines(data, froms, out, tos, row_nbytes, registers)
        elif n:
            _copy_words(data, froms, out, tos, row_nbytes, registers)
        for r in range(n):
            if wrong == DONE and np.uint32(registers[r]) ^ INVERTED != table[rows[r]]:
                wrong = rows[r]
    _fence_stores()
    return wrong


@jit
def scatter_file(
    descriptor: int,
    offsets: NDArray[np.int64],
    bands: NDArray[np.int64],
    memory: NDArray[np.uint8],
    table: NDArray[np.uint32],
    data: NDArray[np.uint8],
    row_nbytes: int,
    target: NDArray[np.int64],
    starts: NDArray[np.uint32],
    out: NDArray[np.uint8],
    pitch: int,
    column: int,
) -> tuple[int, int]:
    """`scatter_rows` of chunks of a file: (how many of `bands` were put there, what `scatter_rows` says of the next one).

    offsets: [band] where the table of a chunk's checksums begins, behind which its frame is. memory: what is read of a chunk;
    `table`, `data` are parts of it. target, starts: [row], of all chunks. OTHER where a chunk could not be read whole, or is
    none that was not compressed.
    """
    height, nbytes = table.size, np.uint64(data.size)
    for i in range(bands.size):
        if _pread(descriptor, memory.ctypes.data, memory.size, offsets[i]) != memory.size:
            return i, OTHER
        head = np.uint64(4 * height)
        flags, sizes = load_word(memory, head), load_word(memory, head + np.uint64(8))
        is_copy = (flags >> np.uint64(16)) & _MEMCPYED and flags >> np.uint64(32) == nbytes
        if not is_copy or sizes >> np.uint64(32) != nbytes + np.uint64(HEADER_NBYTES):
            return i, OTHER
        first, stop = bands[i] * height, (bands[i] + 1) * height
        wrong = scatter_rows(data, row_nbytes, target[first:stop], starts[first:stop], table, out, pitch, column)
        if wrong != DONE:
            return i, wrong
    return bands.size, DONE


@jit
def _copy_lines(
    data: NDArray[np.uint8],
    froms: NDArray[np.uint64],
    out: NDArray[np.uint8],
    tos: NDArray[np.uint64],
    nbytes: int,
    registers: NDArray[np.uint64],
) -> None:
    """Copy four rows of a multiple of 64 bytes, and take the `registers` of their checksums through them.

    A line is written by one instruction: by eight, the processor holds parts of four lines, and takes twice as long.
    """
    from_i, from_j, from_k, from_m = froms[0], froms[1], froms[2], froms[3]
    to_i, to_j, to_k, to_m = tos[0], tos[1], tos[2], tos[3]
    a, b, c, d = registers[0], registers[1], registers[2], registers[3]
    at, eight = np.uint64(0), np.uint64(8)
    for _ in range(nbytes // LINE):
        _stream_line(out, to_i + at, data, from_i + at)
        _stream_line(out, to_j + at, data, from_j + at)
        _stream_line(out, to_k + at, data, from_k + at)
        _stream_line(out, to_m + at, data, from_m + at)
        for _ in range(LINE // 8):
            a = advance_register(a, load_word(data, from_i + at))
            b = advance_register(b, load_word(data, from_j + at))
            c = advance_register(c, load_word(data, from_k + at))
            d = advance_register(d, load_word(data, from_m + at))
            at += eight
    registers[0], registers[1], registers[2], registers[3] = a, b, c, d


@jit
def _copy_words(
    data: NDArray[np.uint8],
    froms: NDArray[np.uint64],
    out: NDArray[np.uint8],
    tos: NDArray[np.uint64],
    nbytes: int,
    registers: NDArray[np.uint64],
) -> None:
    """As `_copy_lines`, of rows of a multiple of 8 bytes, at any such."""
    from_i, from_j, from_k, from_m = froms[0], froms[1], froms[2], froms[3]
    to_i, to_j, to_k, to_m = tos[0], tos[1], tos[2], tos[3]
    a, b, c, d = registers[0], registers[1], registers[2], registers[3]
    at, eight = np.uint64(0), np.uint64(8)
    for _ in range(nbytes // 8):
        _stream_word(out, to_i + at, data, from_i + at)
        a = advance_register(a, load_word(data, from_i + at))
        _stream_word(out, to_j + at, data, from_j + at)
        b = advance_register(b, load_word(data, from_j + at))
        _stream_word(out, to_k + at, data, from_k + at)
        c = advance_register(c, load_word(data, from_k + at))
        _stream_word(out, to_m + at, data, from_m + at)
        d = advance_register(d, load_word(data, from_m + at))
        at += eight
    registers[0], registers[1], registers[2], registers[3] = a, b, c, d

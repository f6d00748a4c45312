"""CRC-32C by the processor's own instruction, compiled. Arguments were checked by `api`.

The instruction takes three cycles and can be begun in every one: four checksums that do not depend on one another take little
longer than one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.zstandard.words import load_word

_POLYNOMIAL = np.uint32(0x82F63B78)  # of Castagnoli, the lowest power in the highest bit
INVERTED = np.uint32(0xFFFFFFFF)


def has_instruction() -> bool:
    """Whether this processor has the instruction, and numba compiles for it and not for another."""
    is_native = not (numba.config.CPU_NAME or numba.config.CPU_FEATURES)  # type: ignore[attr-defined]
    return is_native and bool(binding.get_host_cpu_features().get("sse4.2", False))


def _advance(context: Any, crc: types.Type, word: types.Type) -> tuple[Signature, Callable[..., ir.Value]]:
    """The register `crc`, in the lower half of a word, 8 bytes on."""
    signature = types.uint64(types.uint64, types.uint64)

    def generate(context: Any, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]) -> ir.Value:
        number = ir.IntType(64)
        function = builder.module.globals.get("llvm.x86.sse42.crc32.64.64") or ir.Function(
            builder.module, ir.FunctionType(number, [number, number]), "llvm.x86.sse42.crc32.64.64"
        )
        return builder.call(function, arguments)

    return signature, generate


advance_register: Any = intrinsic(_advance)  # numba's, without types


@jit
def _advance_byte(crc: np.uint64, byte: np.uint8) -> np.uint64:
    register = np.uint32(crc) ^ np.uint32(byte)
    for _ in range(8):
        register = (register >> np.uint32(1)) ^ (_POLYNOMIAL * (register & np.uint32(1)))
    return np.uint64(register)


@jit
def _advance_four(data: NDArray[np.uint8], starts: NDArray[np.uint64], n: int, registers: NDArray[np.uint64]) -> None:
    """Take the four `registers` through `n` bytes each, which begin at `starts`."""
    a, b, c, d = registers[0], registers[1], registers[2], registers[3]
    at, eight = np.uint64(0), np.uint64(8)
    i, j, k, m = starts[0], starts[1], starts[2], starts[3]
    for _ in range(n >> 3):
        a = advance_register(a, load_word(data, i + at))
        b = advance_register(b, load_word(data, j + at))
        c = advance_register(c, load_word(data, k + at))
        d = advance_register(d, load_word(data, m + at))
        at += eight
    registers[0], registers[1], registers[2], registers[3] = a, b, c, d
    for _ in range(n & 7):
        for r in range(4):
            registers[r] = _advance_byte(registers[r], data[starts[r] + at])
        at += np.uint64(1)


@jit
def rows(data: NDArray[np.uint8], row_nbytes: int, starts: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """Fill `out` [row] with the CRC-32C of every row of `data`, each continued from that of `starts` [row]."""
    places, registers = np.empty(4, np.uint64), np.empty(4, np.uint64)
    n_rows = out.size
    for first in range(0, n_rows, 4):
        for r in range(4):
            row = min(first + r, n_rows - 1)  # the last row again where there are not four
            places[r] = np.uint64(row * row_nbytes)
            registers[r] = np.uint64(starts[row] ^ INVERTED)
        _advance_four(data, places, row_nbytes, registers)
        for r in range(min(4, n_rows - first)):
            out[first + r] = np.uint32(registers[r]) ^ INVERTED


@jit
def extend(crc: np.uint32, data: NDArray[np.uint8]) -> np.uint32:
    """The CRC-32C of what had `crc` so far, followed by `data`: that of four quarters, put together."""
    quarter = (data.size // 4) & ~7
    places, registers = np.empty(4, np.uint64), np.zeros(4, np.uint64)
    for r in range(4):
        places[r] = np.uint64(r * quarter)
    registers[0] = np.uint64(crc ^ INVERTED)
    _advance_four(data, places, quarter, registers)
    power = _power(8 * quarter)
    register = np.uint32(registers[0])
    for r in range(1, 4):
        register = _multiply(power, register) ^ np.uint32(registers[r])
    rest = np.uint64(register)
    at, stop = np.uint64(4 * quarter), np.uint64(data.size)
    while at + np.uint64(8) <= stop:
        rest = advance_register(rest, load_word(data, at))
        at += np.uint64(8)
    while at < stop:
        rest = _advance_byte(rest, data[at])
        at += np.uint64(1)
    return np.uint32(rest) ^ INVERTED


@jit
def _multiply(a: np.uint32, b: np.uint32) -> np.uint32:
    """The product of two polynomials, modulo that of the checksum."""
    product, bit = np.uint32(0), np.uint32(1 << 31)
    while bit:
        if a & bit:
            product ^= b
        b = (b >> np.uint32(1)) ^ (_POLYNOMIAL * (b & np.uint32(1)))
        bit >>= np.uint32(1)
    return product


@jit
def _power(n: int) -> np.uint32:
    """xⁿ, modulo the polynomial of the checksum."""
    power, square = np.uint32(1 << 31), np.uint32(1 << 30)
    while n:
        if n & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        n >>= 1
    return power

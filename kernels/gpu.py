"""What the Triton kernels share: how they are compiled and started, and the float formats on their bits.

Written for Triton 3.6 to 3.9, with each of which tests/kernels/test_gpu_compiles.py passes.

Kernels are handed integers, so that a copy keeps every bit, bfloat16 needs no support from the chip, and interpreter and
compiler round alike. Formats are numbered as in `actstore.kernels.bits`. Imported only where a tensor lies on a GPU: whoever
has none need not wait for Triton.

In the kernels, comments beside a load or a computation give the shape of what it yields, in the names of its blocks:
`# [BLOCK_N, BLOCK_T]`. Pointers are described in a kernel's docstring, with the shape and dtype of the array that each is to.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

if (
    triton.knobs.runtime.interpret
    and triton.__version__.startswith("3.6.")
    and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
):
    # Compiled kernels work with both; the interpreter takes an array of one element for a number, which numpy 2.4 refuses.
    raise ImportError(
        f"Triton {triton.__version__}'s interpreter does not run with numpy {np.__version__}: install triton>=3.7, or unset "
        "TRITON_INTERPRET to compile the kernels for a GPU."
    )

P = ParamSpec("P")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class TritonFunction(Protocol[P, Result_co]):
    """What `triton.jit` makes of a function: a kernel, started by `launch`, or a part that kernels call."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        """The kernel to be started with `grid` programs; takes `num_warps` and such beside its arguments."""

    def __call__(self, *arguments: P.args, **keywords: P.kwargs) -> Result_co:
        """What the function returns inside another Triton function."""


class _Jit(Protocol):
    def __call__(self, function: Callable[P, Result], /) -> TritonFunction[P, Result]: ...


jit: _Jit = triton.jit
"""`triton.jit`, which itself has no types."""

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}

INFINITY = tl.constexpr(0x7F800000)  # float32 bits; what is above them, without the sign, is NaN
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits of a float32 but its sign
_QUIET_NAN = tl.constexpr(0x7FC0)  # of bfloat16, without a sign
_FLOAT16_NAN = tl.constexpr(0x7E00)  # which keeps its sign: what `bits.narrow` gives on the CPU
_MAX_PROGRAMS = (1 << 31) - 1  # along the first axis of a grid
_FLOAT16_OVERFLOW = tl.constexpr(0x477FF000)  # the smallest magnitude that float16 rounds to infinity
_BFLOAT16_OVERFLOW = tl.constexpr(0x7F7F8000)


def jit_for_any(*names: str) -> _Jit:
    """`jit`, with one compilation for all values of the integer arguments `names`, which change from batch to batch.

    Triton otherwise compiles anew where one becomes 1, or a multiple of 16, or neither.
    """
    decorator: _Jit = triton.jit(do_not_specialize=list(names))
    return decorator


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """While open, kernels are started on the GPU of `tensor`; nothing for a tensor elsewhere."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]


def launch(
    kernel: TritonFunction[..., None], n_programs: int, *arguments: object, on: Tensor, fuse: bool, **keywords: object
) -> None:
    """Start `n_programs` programs of a kernel on the GPU of `on`; every kernel is started here, and returns at once.

    fuse: whether a product and a sum may become one operation, which rounds once. False where bits are those of the CPU. It is
    always said: Triton 3.9 warns where it is not, and 3.10 will change what it then does. `arguments` and `keywords` are the
    kernel's, and `num_warps` and such. Raises ValueError for more programs than a GPU counts.
    """
    if n_programs > _MAX_PROGRAMS:
        raise ValueError(
            f"a GPU starts at most {_MAX_PROGRAMS:,} programs at a time, not {n_programs:,}: pass fewer rows at once"
        )
    with on_device_of(on):
        kernel[(n_programs,)](*arguments, enable_fp_fusion=fuse, **keywords)


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy of `array` on `device`, made through pinned memory so that nothing waits for it."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    # The caching allocator keeps the pinned copy until the stream has read it.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def as_bits(values: Tensor) -> Tensor:
    """The bits of a float tensor as integers of the same width, sharing memory. Raises TypeError for other formats."""
    if values.dtype not in FORMATS:
        raise TypeError(f"values must be float32, float16 or bfloat16, not {values.dtype}: convert them first")
    return values.detach().view(_BITS[values.dtype])


@jit
def widen(raw: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """The float32 bits, int32, of values whose bits in a format are `raw`; exact, NaN payloads included.

    raw: int32 for float32 (FORMAT 0), int16 for float16 (1) and bfloat16 (2), of any shape, which the result has too.
    """
    if FORMAT == 0:
        bits = raw
    elif FORMAT == 1:
        bits = raw.to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
    else:
        bits = raw.to(tl.int32) << 16
    return bits


@jit
def overflows(bits: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """Whether values whose float32 bits are `bits`, int32 of any shape, are finite and too large for a format."""
    magnitude = bits & MAGNITUDE
    if FORMAT == 0:
        limit = INFINITY
    elif FORMAT == 1:
        limit = _FLOAT16_OVERFLOW
    else:
        limit = _BFLOAT16_OVERFLOW
    return (magnitude >= limit) & (magnitude < INFINITY)


@jit
def narrow(bits: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """The bits in a format of values whose float32 bits are `bits`, int32 of any shape; int16 but for FORMAT 0.

    Rounds to nearest, ties to even. What overflows becomes infinite, NaN the quiet NaN of the CPU, but keeps its bits in
    FORMAT 0.
    """
    is_nan = (bits & MAGNITUDE) > INFINITY
    if FORMAT == 0:
        raw = bits
    elif FORMAT == 1:
        infinite = (bits & ~MAGNITUDE) | INFINITY
        # Said here what overflows and what NaN becomes: the interpreter's numpy would warn of the one, and of the other PTX
        # makes 0x7FFF.
        bounded = tl.where(overflows(bits, FORMAT), infinite, tl.where(is_nan, 0, bits))
        number = bounded.to(tl.float32, bitcast=True).to(tl.float16).to(tl.int16, bitcast=True)
        raw = tl.where(is_nan, (((bits >> 16) & 0x8000) | _FLOAT16_NAN).to(tl.int16), number)
    else:
        # Half of the last bit less one, and one more where that bit is set: a tie goes to the even neighbour.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        raw = tl.where(is_nan, _QUIET_NAN, rounded).to(tl.int16)
    return raw

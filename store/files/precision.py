"""How precisely a capture stores its values: one class per precision, with everything that depends on it.

A new precision is one class and one line in `PRECISIONS`. The kernels that encode are passed in, because reading a store
needs neither a compiler nor a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

import numpy as np

from actstore.kernels.pack.steps import INFINITE, MARK, decode
from actstore.store.files.compression import HUFFMAN, LZ4, compression_of
from actstore.store.layout import FAST, SMALL, ValueFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from actstore.store.layout import Compression

Block = TypeVar("Block")
"""A NumPy array, or a tensor on a GPU."""

COMPRESSED_SHARE: Final = {"float32": 0.93, "float16": 1.0, "bfloat16": 0.75, "int8": 0.62}
"""Format → compressed size over raw size, as measured on dense activations: an estimate, not a bound."""


class LossyKernels(Protocol[Block]):
    """`kernels.pack.api` for arrays, `kernels.pack.gpu_lossy` for tensors on a GPU."""

    def quantise(self, block: Block, /) -> tuple[Block, Block]:
        """int8 steps [neuron, slot] and scale [neuron]."""

    def sparsify(self, block: Block, keep: float, counted: NDArray[np.bool_], /) -> tuple[Block, Block]:
        """Threshold and number of dropped values [neuron]; the block is changed in place."""


class StoredBlock(Protocol):
    """One block of one layer as a store holds it, to compare recomputed values with."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The decoded values [neuron, slot]."""

    @property
    def n_used(self) -> int:
        """How many of the slots hold a token."""

    def raw(self) -> NDArray[Any]:
        """The values as they are stored [neuron, slot]."""

    def parameter(self, name: str) -> NDArray[Any]:
        """A parameter of the encoding [neuron]."""


@dataclass(frozen=True)
class Encoded(Generic[Block]):
    """A block as it is written."""

    values: Block
    """[neuron, slot]."""
    parameters: dict[str, Block]
    """Name → [neuron]."""


@dataclass(frozen=True)
class Precision:
    """How the values of a capture are stored. The base stores them as the model computed them."""

    held_dtype: str
    """`float32`, `float16` or `bfloat16`: the format of values before they are encoded."""
    keep: float | None = None
    """The share of values to keep, where `uses_keep`."""
    compressor: str = ""
    """How chunks are compressed, as the record has it; empty in records of earlier versions."""

    keeps_values: ClassVar[bool] = True
    """Whether any values are stored."""
    keeps_every_value: ClassVar[bool] = True
    """Whether every value is stored, however rounded."""
    keeps_signs: ClassVar[bool] = True
    """Whether a stored value is above zero where the model's was, but for what underflows a float format."""
    uses_keep: ClassVar[bool] = False
    """Whether `keep` says something."""
    default_compression: ClassVar[str] = LZ4
    """Of dense floats Huffman codes save a tenth of the bytes, and cost a fifth to a half more time than LZ4: beside a forward
    pass, time counts."""
    earlier_compression: ClassVar[Compression] = FAST
    """Of captures whose record names none."""
    parameters: ClassVar[Mapping[str, str]] = {}
    """Name → dtype of what is stored per neuron and block beside the values."""
    decode_parameters: ClassVar[tuple[str, ...]] = ()
    """Which of the parameters `decode` needs."""

    @property
    def stored_format(self) -> ValueFormat | None:
        """The format on disk; None where no values are stored."""
        return ValueFormat(self.held_dtype)

    @property
    def staging_format(self) -> ValueFormat | None:
        """The format in which a block is collected before it is encoded."""
        return self.stored_format

    @property
    def compression(self) -> Compression:
        """How the chunks of values are compressed."""
        form = self.stored_format
        if not self.compressor or form is None:
            return self.earlier_compression
        return compression_of(self.compressor, form.dtype.itemsize, is_sparse=self.uses_keep)

    @property
    def sign_compression(self) -> Compression:
        """How the chunks of gate signs are compressed."""
        return compression_of(self.compressor, 1) if self.compressor else FAST

    @property
    def can_overflow(self) -> bool:
        """Whether a finite value of the model may be stored as infinite."""
        return False

    @property
    def bytes_per_value(self) -> float:
        """The expected size on disk of one value, compressed."""
        form = self.stored_format
        return 0.0 if form is None else form.dtype.itemsize * COMPRESSED_SHARE[form.name]

    def encode(self, block: Block, used: NDArray[np.bool_], kernels: LossyKernels[Block]) -> Encoded[Block]:
        """The block [neuron, slot], which is in the staging format and may be changed; `used` [slot]: which hold a token."""
        return Encoded(block, {})

    def decode(self, stored: NDArray[Any], parameters: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Stored values [neuron, slot] or [slot] as float32, NaN where there is none.

        `parameters`: the `decode_parameters` [neuron], of the one neuron where the values are one neuron's.
        """
        return widened(stored)

    def rounding(
        self, largest: NDArray[np.floating[Any]], parameter: Callable[[str], NDArray[Any]]
    ) -> NDArray[np.float32]:
        """How far a stored value may lie from the model's [neuron], if that is no larger than `largest` [neuron]."""
        return np.zeros(len(largest), np.float32)

    def comparable(self, recomputed: NDArray[np.float32], stored: StoredBlock, tolerance: float) -> NDArray[np.float32]:
        """Recomputed values [neuron, slot], decoded, with the stored one wherever the encoding may decide either way.

        `tolerance`: how far another machine's values may be off, relative to the largest.
        """
        return recomputed

    def comparison_slack(self, stored: StoredBlock) -> float:
        """How far apart stored and recomputed values may be because of rounding alone."""
        return 0.0


@dataclass(frozen=True)
class NoValues(Precision):
    """Statistics only."""

    keeps_values = False
    keeps_every_value = False
    keeps_signs = False

    @property
    def stored_format(self) -> None:
        """None."""
        return


@dataclass(frozen=True)
class Exact(Precision):
    """The bits that the model computed."""


@dataclass(frozen=True)
class Half(Precision):
    """float16."""

    @property
    def stored_format(self) -> ValueFormat:
        """float16."""
        return ValueFormat("float16")

    @property
    def can_overflow(self) -> bool:
        """Whether the model computed in a format of a larger range."""
        return self.held_dtype != "float16"

    def rounding(
        self, largest: NDArray[np.floating[Any]], parameter: Callable[[str], NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Half a unit in the last place of float32 values; bfloat16 has fewer bits of mantissa than float16."""
        if self.held_dtype != "float32":
            return super().rounding(largest, parameter)
        return (largest * 2.0**-11 + 2.0**-25).astype(np.float32)


@dataclass(frozen=True)
class Int8(Precision):
    """Multiples of a scale per neuron and block, in int8."""

    keeps_signs = False
    default_compression = HUFFMAN
    earlier_compression = SMALL
    parameters = {"scale": "float32"}  # noqa: RUF012 (a ClassVar in the base)
    decode_parameters = ("scale",)

    @property
    def stored_format(self) -> ValueFormat:
        """int8."""
        return ValueFormat("int8")

    @property
    def staging_format(self) -> ValueFormat:
        """As the model computed: the whole block is needed to find the scale."""
        return ValueFormat(self.held_dtype)

    def encode(self, block: Block, used: NDArray[np.bool_], kernels: LossyKernels[Block]) -> Encoded[Block]:
        """Steps and their scale."""
        steps, scale = kernels.quantise(block)
        return Encoded(steps, {"scale": scale})

    def decode(self, stored: NDArray[Any], parameters: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Steps times scale."""
        scale = parameters["scale"]
        return decode(stored, scale if stored.ndim == 1 else scale[:, None])

    def rounding(
        self, largest: NDArray[np.floating[Any]], parameter: Callable[[str], NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Half a step, and the rounding of that."""
        return (parameter("scale").astype(np.float32) * np.float32(0.50001)).astype(np.float32)

    def comparable(self, recomputed: NDArray[np.float32], stored: StoredBlock, tolerance: float) -> NDArray[np.float32]:
        """Infinities as the stored scales have them.

        Earlier versions marked none: there infinities are the steps of ±127, as the largest finite values are.
        """
        infinite = np.isinf(recomputed)
        if not infinite.any():
            return recomputed
        unmarked = (stored.parameter("scale").view(np.uint32) & MARK == 0)[:, None]
        return np.where(
            infinite & unmarked & (stored.raw() == np.sign(recomputed) * INFINITE), stored.values, recomputed
        )

    def comparison_slack(self, stored: StoredBlock) -> float:
        """A step: values on either side of a border are rounded apart."""
        return float(stored.parameter("scale").max())


@dataclass(frozen=True)
class Sparse(Precision):
    """The largest magnitudes per neuron and block as they are, zero for the others."""

    keeps_every_value = False
    keeps_signs = False
    uses_keep = True
    default_compression = HUFFMAN
    earlier_compression = SMALL
    parameters = {"threshold": "float32", "dropped": "int64"}  # noqa: RUF012 (a ClassVar in the base)

    @property
    def bytes_per_value(self) -> float:
        """A kept value costs itself and about half as much again for its position."""
        if self.keep is None:
            return super().bytes_per_value
        share = min(COMPRESSED_SHARE[self.held_dtype], 1.5 * self.keep + 0.02)
        return ValueFormat(self.held_dtype).dtype.itemsize * share

    def encode(self, block: Block, used: NDArray[np.bool_], kernels: LossyKernels[Block]) -> Encoded[Block]:
        """The block with zeros, and what was dropped."""
        assert self.keep is not None
        threshold, dropped = kernels.sparsify(block, self.keep, used)
        return Encoded(block, {"threshold": threshold, "dropped": dropped})

    def comparable(self, recomputed: NDArray[np.float32], stored: StoredBlock, tolerance: float) -> NDArray[np.float32]:
        """As the stored thresholds would have left them."""
        values, threshold = stored.values, stored.parameter("threshold")[:, None]
        # Earlier versions counted tokens without a value into the share, and kept less of an expert's neurons.
        has_gaps = np.isnan(values[:, : stored.n_used]).any(axis=1, keepdims=True)
        recomputed = np.where(has_gaps & (np.abs(recomputed) <= threshold), np.float32(0), recomputed)
        # A value at the threshold may fall on either side of it on another machine.
        margin = tolerance * np.nanmax(np.abs(values), initial=0.0)
        is_near = (np.abs(np.abs(recomputed) - threshold) <= margin) | (np.abs(np.abs(values) - threshold) <= margin)
        return np.where(is_near, values, recomputed)


PRECISIONS: Final[Mapping[str, type[Precision]]] = {
    "exact": Exact,
    "half": Half,
    "int8": Int8,
    "sparse": Sparse,
    "none": NoValues,
}
"""Name, as records and commands have it → class."""


def widened(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Values stored as float32, float16 or the bits of bfloat16 (uint16), as float32; NaN where there is none."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)

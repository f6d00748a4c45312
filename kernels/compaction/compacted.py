"""A compacted block: of every neuron only what differs from one row that all have in common.

Plain dataclasses of arrays or tensors, so that whoever copies one from a GPU needs to know only its parts.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Block = TypeVar("Block")
"""A NumPy array, or a tensor on a GPU."""

SPAN: Final = 256
"""Slots whose entries are counted together: the place of an entry among them is one byte. At a share of 5 % an entry costs
1.16 bytes beside its value; two bytes would hold any slot."""


@dataclass(frozen=True)
class Compacted(Generic[Block]):
    """A block [neuron, slot] as a row that all neurons have in common, and the entries of each that differ from it."""

    base: Block
    """[slot] the bits of the common row, as signed integers of the values' width."""
    totals: Block
    """[neuron] int32: how many entries differ, those beyond the capacity included."""
    counts: Block
    """[neuron, span] int16: how many of them are in each span of `SPAN` slots."""
    offsets: Block
    """[neuron, entry] uint8: the slot of each within its span, ascending. Contents undefined from a neuron's total on."""
    values: Block
    """[neuron, entry] the bits of each, as `base`."""

    def parts(self) -> dict[str, Block]:
        """Every array or tensor by its name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Part:
    """Shape and dtype of a part of a compacted block."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def parts_of(n_neurons: int, n_slots: int, capacity: int, itemsize: int) -> dict[str, Part]:
    """The parts of a compacted block with room for `capacity` entries per neuron; `itemsize`: bytes of a value."""
    bits = np.dtype(f"i{itemsize}")
    return {
        "base": Part((n_slots,), bits),
        "totals": Part((n_neurons,), np.dtype(np.int32)),
        "counts": Part((n_neurons, -(-n_slots // SPAN)), np.dtype(np.int16)),
        "offsets": Part((n_neurons, capacity), np.dtype(np.uint8)),
        "values": Part((n_neurons, capacity), bits),
    }


def nbytes_per_neuron(n_slots: int, capacity: int, itemsize: int) -> int:
    """Bytes of a neuron's share of a compacted block; beside those, a block has one common row."""
    parts = parts_of(1, n_slots, capacity, itemsize)
    return sum(int(np.prod(part.shape)) * part.dtype.itemsize for name, part in parts.items() if name != "base")


def empty(n_neurons: int, n_slots: int, capacity: int, itemsize: int) -> "Compacted[NDArray[Any]]":
    """One in host memory, contents undefined."""
    parts = parts_of(n_neurons, n_slots, capacity, itemsize)
    return Compacted(**{name: np.empty(part.shape, part.dtype) for name, part in parts.items()})

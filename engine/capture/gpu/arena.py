"""One allocation for many tensors, so that all of them are filled, or copied to the host, at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from torch import Tensor

ALIGNMENT: Final = 256
"""Bytes of which every tensor begins at a multiple: kernels load 16 at a time where an address allows it."""


@dataclass(frozen=True)
class Place:
    """What a tensor of an arena is."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in an arena."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT


Groups: TypeAlias = "Mapping[str, Mapping[Hashable, Place]]"
"""Group → key → what lies there. A group of the same places has the same layout in every arena."""


def groups_nbytes(groups: Groups) -> int:
    """Bytes of an arena of these groups."""
    return sum(place.nbytes for places in groups.values() for place in places.values())


class Arena:
    """Tensors side by side, group after group; contents undefined at first."""

    def __init__(self, groups: Groups, device: torch.device | str, *, pinned: bool = False) -> None:
        """One allocation on `device`; `pinned` in host memory that a GPU copies to by itself."""
        self._bytes = torch.empty(groups_nbytes(groups), dtype=torch.uint8, device=device, pin_memory=pinned)
        self._groups: dict[str, Tensor] = {}
        self._dtypes: dict[str, set[torch.dtype]] = {}
        self.tensors: dict[Hashable, Tensor] = {}
        """Every tensor by its key."""
        start = 0
        for name, places in groups.items():
            first = start
            for key, place in places.items():
                n = math.prod(place.shape) * place.dtype.itemsize
                self.tensors[key] = self._bytes[start : start + n].view(place.dtype).view(place.shape)
                start += place.nbytes
            self._groups[name] = self._bytes[first:start]
            self._dtypes[name] = {place.dtype for place in places.values()}

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self._bytes.nbytes

    def fill(self, group: str, value: float) -> None:
        """Fill all tensors of a group, which are of one dtype unless the value is 0."""
        if value == 0:
            self._groups[group].zero_()
        elif self._dtypes[group]:
            (dtype,) = self._dtypes[group]
            self._groups[group].view(dtype).fill_(value)

    def fill_bits(self, group: str, bits: int, dtype: torch.dtype) -> None:
        """Fill all tensors of a group with the bits of a number of the integer `dtype`, which is as wide as theirs."""
        self._groups[group].view(dtype).fill_(bits)

    def copy_to(self, other: Arena, groups: tuple[str, ...] = ()) -> None:
        """Overwrite `other`, of the same groups, or those that are named: one copy each, without waiting where it is pinned."""
        for name in groups:
            other._groups[name].copy_(self._groups[name], non_blocking=True)
        if not groups:
            other._bytes.copy_(self._bytes, non_blocking=True)

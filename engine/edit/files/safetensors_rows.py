"""Rows of tensors in safetensors files, read and written in place: no other byte of a file changes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""Those of safetensors' dtypes in which rows are written."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in a safetensors file."""

    file: str
    key: str
    dtype: str
    """As the file's header spells it, such as BF16."""
    shape: tuple[int, ...]
    start: int
    """Byte of the file at which the tensor's data begin."""


@dataclass(frozen=True, eq=False)
class RowPatch:
    """Rows to be written into one tensor of one file."""

    entry: TensorEntry
    neurons: tuple[int, ...]
    by_column: bool
    """Whether a neuron is a column of the tensor, as in a Linear's weight [d_model, neuron]."""
    rows: Tensor
    """[neuron, d_model], in the file's dtype."""


def read_entries(path: Path) -> Iterator[TensorEntry]:
    """The tensors of a safetensors file: its header is a length of 8 bytes, then as many bytes of JSON, then the data."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    for key, value in header.items():
        if key != "__metadata__":
            start = 8 + size + value["data_offsets"][0]
            yield TensorEntry(path.name, key, value["dtype"], tuple(value["shape"]), start)


def read_patched_rows(folder: Path, patch: RowPatch) -> Tensor:
    """The rows [neuron, d_model] that are where a patch writes its own."""
    rows = np.ascontiguousarray(_view(folder, patch)[list(patch.neurons)])
    return torch.frombuffer(bytearray(rows.tobytes()), dtype=patch.rows.dtype).reshape(rows.shape)


def write_patches(files: Mapping[str, Path], patches: Sequence[RowPatch]) -> None:
    """Write the rows of patches into files, by the name that the patches have for them."""
    for patch in patches:
        entry = patch.entry
        bits = np.dtype(f"<u{patch.rows.dtype.itemsize}")
        # Not by a mapping: on a full disk, writing to one ends the process (SIGBUS).
        with files[entry.file].open("r+b") as file:
            file.seek(entry.start)
            values = np.fromfile(file, bits, math.prod(entry.shape)).reshape(entry.shape)
            rows = patch.rows.contiguous().view(torch.uint8).numpy().view(bits).reshape(patch.rows.shape)
            (values.T if patch.by_column else values)[list(patch.neurons)] = rows
            file.seek(entry.start)
            file.write(values.data)


def _view(folder: Path, patch: RowPatch) -> NDArray[np.unsignedinteger[Any]]:
    """The tensor in a file, [neuron, d_model], as unsigned integers: numpy has no bfloat16, and bits are all that counts."""
    entry = patch.entry
    bits = np.dtype(f"<u{patch.rows.dtype.itemsize}")
    values: NDArray[np.unsignedinteger[Any]] = np.memmap(folder / entry.file, bits, "r", entry.start, entry.shape)
    return values.T if patch.by_column else values


def matching_suffix(key: str, parameter: str) -> int:
    """How many components, from the end, the names of two parameters have in common."""
    n = 0
    for a, b in zip(reversed(key.split(".")), reversed(parameter.split(".")), strict=False):
        if a != b:
            break
        n += 1
    return n


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bytes: -0 is not 0, and NaN equals itself."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))

"""What a block takes on a GPU, and how it comes from there to the host without anything waiting.

On a CPU, for tests, the same objects work without streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.capture.buffers import staged_arrays
from actstore.engine.capture.gpu.arena import Arena, Place
from actstore.kernels.pack.gpu_statistics import STARTS, DeviceStatistics
from actstore.kernels.pack.statistics import Statistics
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.files.records import CaptureRecord

# numpy has no bfloat16: its arrays of uint16 stand for it.
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint16": torch.bfloat16, "uint8": torch.uint8}
_INTEGERS: dict[int, tuple[torch.dtype, type[np.signedinteger[Any]]]] = {
    1: (torch.int8, np.int8),
    2: (torch.int16, np.int16),
    4: (torch.int32, np.int32),
}


class CopyStream:
    """The stream that brings blocks to the host; on a CPU there is none, and everything happens at once."""

    def __init__(self, device: torch.device) -> None:
        # torch's streams have no types.
        stream: Any = torch.cuda.Stream
        self._stream = stream(device) if device.type == "cuda" else None

    def after_compute(self) -> ExitStack:
        """While open, work is queued here, behind what the compute stream has been given so far."""
        stack = ExitStack()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def mark(self) -> CopyEvent:
        """The end of what has been queued here so far."""
        return CopyEvent(None if self._stream is None else self._stream.record_event())


@dataclass(frozen=True)
class CopyEvent:
    """A point on the copy stream; on a CPU it lies in the past."""

    event: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Return when the point is reached."""
        if self.event is not None:
            self.event.synchronize()

    def hold_compute(self, device: torch.device) -> None:
        """Let what the compute stream is given from now on begin when the point is reached."""
        if self.event is not None:
            torch.cuda.current_stream(device).wait_event(self.event)


@dataclass
class BlockStatistics:
    """The statistics of one block, of all sites and layers, in one arena: a group for each number that they begin with."""

    sites: dict[tuple[str, int], DeviceStatistics]
    gate_positives: dict[int, Tensor]
    label_tokens: NDArray[np.int64]
    arena: Arena
    copied: CopyEvent = field(default_factory=CopyEvent)
    """When they were last copied to the host."""

    @classmethod
    def empty(cls, record: CaptureRecord, device: torch.device | str, *, pinned: bool = False) -> BlockStatistics:
        """Statistics over no token; `pinned` in host memory that a GPU copies to by itself."""
        n_labels = len(record.plan.labels) + 1
        widths = record.layers("mlp.post") if record.gate_sign else {}
        groups: dict[str, dict[Hashable, Place]] = {str(start): {} for start in (0, *STARTS.values())}
        names = {}
        for site in record.sites:
            for layer, width in record.layers(site).items():
                names[site, layer] = formats = DeviceStatistics.formats(width, n_labels, record.n_exemplars)
                for name, (shape, dtype) in formats.items():
                    groups[str(STARTS.get(name, 0))][site, layer, name] = Place(shape, dtype)
        for layer in record.gate_sign:
            groups["0"][layer] = Place((n_labels, widths[layer]), torch.int32)
        arena = Arena(groups, device, pinned=pinned)
        sites = {
            key: DeviceStatistics(**{name: arena.tensors[(*key, name)] for name in formats})
            for key, formats in names.items()
        }
        gates = {layer: arena.tensors[layer] for layer in record.gate_sign}
        result = cls(sites, gates, np.zeros(n_labels, np.int64), arena)
        result.clear()
        return result

    @property
    def nbytes(self) -> int:
        """What they take on the device, and what is copied."""
        return self.arena.nbytes

    def clear(self) -> None:
        """Forget every token."""
        for start in {0, *STARTS.values()}:
            self.arena.fill(str(start), start)
        self.label_tokens = np.zeros_like(self.label_tokens)

    def copy_to(self, other: BlockStatistics) -> None:
        """Overwrite `other` by one copy, without waiting where it is pinned."""
        self.arena.copy_to(other.arena)
        other.label_tokens = self.label_tokens

    def to_host(self) -> CaptureStatistics:
        """The same in numpy; those of a site and layer are converted when they are looked up, in the thread that does so."""
        sites = _OnHost(self.sites)
        gates = {layer: tensor.cpu().numpy().astype(np.int64) for layer, tensor in self.gate_positives.items()}
        return CaptureStatistics(sites, gates, self.label_tokens)


class _OnHost(Mapping[tuple[str, int], Statistics]):
    """(site, layer) → statistics in numpy, made anew at each look."""

    def __init__(self, sites: Mapping[tuple[str, int], DeviceStatistics]) -> None:
        self._sites = sites

    def __getitem__(self, key: tuple[str, int]) -> Statistics:
        return self._sites[key].to_host()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


@dataclass
class StagingBuffer:
    """One set of buffers for some slots of a block: on the device, and the pinned memory that they are copied to."""

    arena: Arena
    host: Arena | None = None
    first: int = 0
    """The first slot that is collected here; those before it in the buffers belong to the other set."""
    base: int = 0
    """The slot of column 0, a multiple of 8."""
    copied: CopyEvent = field(default_factory=CopyEvent)
    """When the buffers were last copied."""
    moved: Future[None] | None = None
    """When what was copied was last moved to its place in a block."""


VALUES, SIGNS = "values", "signs"
"""The groups of what is collected token by token."""


def staged_groups(record: CaptureRecord, n_slots: int) -> dict[str, dict[Hashable, Place]]:
    """What is collected token by token, for `n_slots` slots, a multiple of 8."""
    groups: dict[str, dict[Hashable, Place]] = {VALUES: {}, SIGNS: {}}
    for key, (rows, columns), dtype in staged_arrays(record):
        place = Place((rows, columns * n_slots // record.plan.block_slots), _TORCH_DTYPES[dtype.name])
        groups[SIGNS if dtype == np.uint8 else VALUES][key] = place
    return groups


def nothing_bits(record: CaptureRecord) -> tuple[int, torch.dtype]:
    """The bits of what stands for no value, of which there are many, and the integer dtype that is as wide."""
    staging = record.encoding.staging_format
    assert staging is not None
    integer, same_in_numpy = _INTEGERS[staging.dtype.itemsize]
    return int(np.full(1, staging.fill_value, staging.dtype).view(same_in_numpy)[0]), integer


def clear_staged(arena: Arena, record: CaptureRecord) -> None:
    """Fill what is collected with what stands for nothing."""
    arena.fill(SIGNS, 0)
    if record.encoding.keeps_values:
        arena.fill_bits(VALUES, *nothing_bits(record))


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """A host tensor as an array that shares its memory; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array

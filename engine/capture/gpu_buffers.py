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

from actstore.kernels.pack.gpu_statistics import DeviceStatistics
from actstore.kernels.pack.statistics import Statistics
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    """The statistics of one block, of all sites and layers."""

    sites: dict[tuple[str, int], DeviceStatistics]
    gate_positives: dict[int, Tensor]
    label_tokens: NDArray[np.int64]
    copied: CopyEvent = field(default_factory=CopyEvent)
    """When they were last copied to the host."""

    @classmethod
    def empty(cls, record: CaptureRecord, device: torch.device | str, *, pinned: bool = False) -> BlockStatistics:
        """Statistics over no token; `pinned` in host memory that a GPU copies to by itself."""
        n_labels = len(record.plan.labels) + 1
        widths = record.layers("mlp.post") if record.gate_sign else {}
        sites = {
            (site, layer): DeviceStatistics.empty(width, n_labels, record.n_exemplars, device, pinned=pinned)
            for site in record.sites
            for layer, width in record.layers(site).items()
        }
        gates = {
            layer: torch.zeros((n_labels, widths[layer]), dtype=torch.int32, device=device, pin_memory=pinned)
            for layer in record.gate_sign
        }
        return cls(sites, gates, np.zeros(n_labels, np.int64))

    @property
    def nbytes(self) -> int:
        """What they take on the device."""
        gates = sum(tensor.nbytes for tensor in self.gate_positives.values())
        return gates + sum(statistics.nbytes for statistics in self.sites.values())

    def clear(self) -> None:
        """Forget every token."""
        for statistics in self.sites.values():
            statistics.clear()
        for positives in self.gate_positives.values():
            positives.zero_()
        self.label_tokens = np.zeros_like(self.label_tokens)

    def copy_to(self, other: BlockStatistics) -> None:
        """Overwrite `other`, without waiting where it is pinned."""
        for key, statistics in self.sites.items():
            statistics.copy_to(other.sites[key])
        for layer, positives in self.gate_positives.items():
            other.gate_positives[layer].copy_(positives, non_blocking=True)
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

    arrays: dict[str, Tensor]
    host: dict[str, Tensor] = field(default_factory=dict)
    first: int = 0
    """The first slot that is collected here; those before it in the buffers belong to the other set."""
    base: int = 0
    """The slot of column 0, a multiple of 8."""
    copied: CopyEvent = field(default_factory=CopyEvent)
    """When the buffers were last copied."""
    moved: Future[None] | None = None
    """When what was copied was last moved to its place in a block."""

    def copy_out(self, key: str, tensor: Tensor) -> None:
        """Copy `tensor` to the span's host memory under `key`, without waiting where that is pinned."""
        if key not in self.host:
            self.host[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.host[key].copy_(tensor, non_blocking=True)


def allocate(shape: tuple[int, int], dtype: np.dtype[Any], device: torch.device) -> Tensor:
    """A tensor for arrays of a numpy dtype, contents undefined."""
    return torch.empty(shape, dtype=_TORCH_DTYPES[dtype.name], device=device)


def fill_bits(tensor: Tensor, value: NDArray[Any]) -> None:
    """Fill a tensor with the very bits of `value` [1]: there are many NaN."""
    integer, same_in_numpy = _INTEGERS[tensor.element_size()]
    tensor.view(integer).fill_(int(value.view(same_in_numpy)[0]))


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """A host tensor as an array that shares its memory; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array

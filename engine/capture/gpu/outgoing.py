"""Whole blocks on their way from a GPU to the host: encoded there, compacted where that pays, and copied in a few pieces.

What is compacted is made again rows by rows, by the thread that writes it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

from actstore.engine.capture.gpu.arena import Arena, Place, groups_nbytes
from actstore.engine.capture.gpu.buffers import SIGNS, VALUES, as_numpy, nothing_bits, staged_groups
from actstore.engine.capture.packing import used_slots
from actstore.kernels.compaction import gpu as compaction
from actstore.kernels.compaction.compacted import Compacted, nbytes_per_neuron, parts_of
from actstore.kernels.compaction.rows import CompactedRows
from actstore.kernels.pack import gpu_lossy
from actstore.store import layout

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.files.chunks import Rows
    from actstore.store.files.records import CaptureRecord

WORTHWHILE: Final = 0.75
"""Values are compacted where that takes at most this share of their bytes: it costs the device a pass over them."""
ENCODED: Final = "encoded"
"""The group of what is made of values: parameters, and parts of compacted blocks."""
_DTYPES: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, name) for name in ("float32", "int8", "int16", "int32", "int64", "uint8")
}


class Outgoing:
    """How the blocks of a capture that fit a device leave it.

    At precision sparse a neuron keeps at most its share of the block's slots, so that what is copied has one size, known before
    anything is computed, and no copy waits for a count. Infinities and NaN are kept beyond the share: a layer in which a neuron
    has more entries than there is room for is copied as it is.
    """

    def __init__(self, record: CaptureRecord, device: torch.device) -> None:
        """For blocks of `record` on `device`."""
        self._record, self._device = record, device
        self._layers = {
            layout.values_key(record.name, site, layer): (site, layer)
            for site in (record.sites if record.encoding.keeps_values else ())
            for layer in record.layers(site)
        }
        self.capacity = compacted_capacity(record)
        """The most entries of a neuron's that a compacted block has room for; 0 where values are not compacted."""
        self._encoded: Arena | None = None
        # The groups of a block in host memory: values as they are written, unless they are compacted.
        staged, encoded = staged_groups(record, record.plan.block_slots), self._encoded_places()
        self._groups: dict[str, dict[Hashable, Place]] = {SIGNS: staged[SIGNS], ENCODED: encoded}
        if not self.capacity:
            self._groups[VALUES] = {key: self._as_written(place) for key, place in staged[VALUES].items()}

    @property
    def device_nbytes(self) -> int:
        """Bytes that encoding takes on the device, beside what is collected there."""
        return groups_nbytes({ENCODED: self._groups[ENCODED]})

    @property
    def host_nbytes(self) -> int:
        """Bytes that are copied to the host for one block, beside its statistics."""
        return groups_nbytes(self._groups)

    def host_arena(self) -> Arena:
        """Memory on the host for one block, contents undefined."""
        return Arena(self._groups, "cpu", pinned=self._device.type == "cuda")

    def copy(self, staged: Arena, plan: BlockPlan, host: Arena) -> None:
        """Queue the encoding of a whole block, on the device and in place, and its copies to `host`."""
        groups = [SIGNS, VALUES]
        if self._groups[ENCODED]:
            if self._encoded is None:
                self._encoded = Arena({ENCODED: self._groups[ENCODED]}, self._device)
            kernels = _Kernels(used_slots(self._record, plan), self._record, self._device)
            for key in self._layers:
                self._encode(key, staged.tensors[key], kernels, host)
            self._encoded.copy_to(host, (ENCODED,))
            is_staged = not self.capacity and self._record.encoding.uses_keep
            groups = [SIGNS, *([VALUES] if is_staged else [])]
        staged.copy_to(host, tuple(groups))

    def collect(self, host: Arena, staged: Arena) -> dict[str, Rows]:
        """The arrays of a block that was copied; what could not be compacted is copied from the device now."""
        arrays: dict[str, Rows] = {
            str(key): as_numpy(host.tensors[key]) for group in (SIGNS, VALUES) for key in self._groups.get(group, ())
        }
        for key, (site, layer) in self._layers.items():
            for name in self._record.encoding.parameters:
                arrays[layout.block_parameters_key(self._record.name, site, layer, name)] = as_numpy(
                    host.tensors[key, name]
                )
            if self.capacity:
                arrays[key] = self._collect_compacted(key, host, staged.tensors[key])
        return arrays

    def _collect_compacted(self, key: str, host: Arena, values: Tensor) -> Rows:
        names = ("base", "totals", "counts", "offsets", "values")
        compacted: Compacted[NDArray[Any]] = Compacted(**{name: host.tensors[key, name].numpy() for name in names})
        if int(compacted.totals.max(initial=0)) > self.capacity:
            return as_numpy(torch.empty_like(values, device="cpu").copy_(values))
        form = self._record.encoding.staging_format
        assert form is not None
        return CompactedRows(compacted, form.dtype)

    def _encode(self, key: str, values: Tensor, kernels: _Kernels, host: Arena) -> None:
        """Encode one layer: into the arena; steps, for which the device has no room for all layers, straight to the host."""
        assert self._encoded is not None
        places = self._encoded.tensors
        kernels.parameters = {name: places[key, name][:, 0] for name in self._record.encoding.parameters}
        encoded = self._record.encoding.encode(values, kernels.used, kernels)
        if encoded.values is not values:
            host.tensors[key].copy_(encoded.values, non_blocking=True)
        if self.capacity:
            out = Compacted(**{name: places[key, name] for name in ("base", "totals", "counts", "offsets", "values")})
            bits, _ = nothing_bits(self._record)
            compaction.compact(values, compaction.common_row(values, bits, out.base), self.capacity, out)

    def _encoded_places(self) -> dict[Hashable, Place]:
        """(key of the values, name) → a parameter [neuron, 1], or a part of a compacted block."""
        places: dict[Hashable, Place] = {}
        for key, (site, layer) in self._layers.items():
            width = self._record.layers(site)[layer]
            for name, dtype in self._record.encoding.parameters.items():
                places[key, name] = Place((width, 1), _DTYPES[dtype])
            form = self._record.encoding.staging_format
            if self.capacity and form is not None:
                parts = parts_of(width, self._record.plan.block_slots, self.capacity, form.dtype.itemsize)
                for name, part in parts.items():
                    places[key, name] = Place(part.shape, _DTYPES[part.dtype.name])
        return places

    def _as_written(self, place: Place) -> Place:
        form, staging = self._record.encoding.stored_format, self._record.encoding.staging_format
        return place if form == staging or form is None else Place(place.shape, _DTYPES[form.dtype.name])


class _Kernels:
    """`LossyKernels` on a device, whose parameters come to lie in an arena; what a block has in common is uploaded once."""

    def __init__(self, used: NDArray[np.bool_], record: CaptureRecord, device: torch.device) -> None:
        self.used = used
        self.parameters: dict[str, Tensor] = {}
        keep = record.encoding.keep if record.encoding.uses_keep else None
        self._share = None if keep is None else gpu_lossy.Share.of(keep, used, device)

    def quantise(self, block: Tensor, /) -> tuple[Tensor, Tensor]:
        return gpu_lossy.quantise(block, scale=self.parameters["scale"])

    def sparsify(self, block: Tensor, keep: float, counted: NDArray[np.bool_], /) -> tuple[Tensor, Tensor]:
        assert self._share is not None
        threshold, dropped = self.parameters["threshold"], self.parameters["dropped"]
        gpu_lossy.sparsify_into(block, self._share, threshold, dropped)
        return threshold, dropped


def compacted_capacity(record: CaptureRecord) -> int:
    """The most entries of a neuron in a block of `record`, as values leave a device; 0 where compacting them does not pay."""
    encoding, n_slots = record.encoding, record.plan.block_slots
    form = encoding.staging_format
    if not encoding.uses_keep or encoding.keep is None or form is None:
        return 0
    capacity = math.ceil(n_slots * encoding.keep)
    share = nbytes_per_neuron(n_slots, capacity, form.dtype.itemsize) / (n_slots * form.dtype.itemsize)
    return capacity if share <= WORTHWHILE else 0

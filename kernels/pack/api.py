"""Packing activations into blocks, and the lossy precisions of a packed block: checks and dispatch.

`pack` turns token-major activations, as a model produces them, into the neuron-major columns of a block and gathers
every statistic in the same pass.
"""

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.floats import FloatArray, as_array, on_gpu
from actstore.kernels.jit import default_threads
from actstore.kernels.pack import cpu, cpu_lossy
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.statistics import HISTOGRAM_EDGES, Quantiles, Statistics, quantiles

if TYPE_CHECKING:
    from torch import Tensor

    from actstore.kernels.pack.gpu_statistics import DeviceStatistics

__all__ = [
    "HISTOGRAM_EDGES",
    "Columns",
    "Quantiles",
    "Statistics",
    "pack",
    "pack_signs",
    "quantiles",
    "quantise",
    "sparsify",
]


def pack(
    values: "Tensor | FloatArray",
    columns: Columns,
    out: "FloatArray | Tensor | None",
    statistics: "Statistics | DeviceStatistics | None",
    threads: int | None = None,
) -> None:
    """Write a batch's activations into its slots of a block and add them to the statistics, each value touched once.

    values: [row, neuron] float32, float16 or bfloat16 (in numpy: uint16 bits); copied only if the neurons of a row are
    not contiguous. out: [neuron, slot], contiguous along slots, float32, float16, or uint16 for bfloat16; only the
    columns' slots are written. A cast to the same format keeps every bit; to a narrower one it rounds to nearest even,
    and what overflows becomes infinite. Statistics are of the values before the cast. Either of `out` and `statistics`
    may be None.

    Values on a GPU are packed there, without waiting for it, into an `out` and `DeviceStatistics` that lie there too.

    The result does not depend on `threads`. Raises ValueError for shapes that do not fit, TypeError for other dtypes.
    """
    if on_gpu(values):
        from actstore.kernels.pack import gpu  # only here: Triton takes its time to load

        gpu.pack(values, columns, out, statistics)  # type: ignore[arg-type]  # it checks what they are
        return
    source = as_array(values)
    n_neurons = _check_rows(source, columns)
    if out is not None:
        out = as_array(out, "out")
        _check_block(out, "out", n_neurons, columns.n_slots)
        _check_writable(out, "out")
    if statistics is not None:
        if not isinstance(statistics, Statistics):
            raise TypeError(f"statistics of values on the CPU must be Statistics, not {type(statistics).__name__}")
        if len(statistics.count) != n_neurons:
            raise ValueError(f"statistics are of {len(statistics.count)} neurons, values of {n_neurons}")
        _check_labels(statistics.positives, columns, n_neurons)
    cpu.pack(source, columns, out, statistics, threads or default_threads())


def pack_signs(
    values: "Tensor | FloatArray",
    columns: Columns,
    out_bits: "NDArray[np.uint8] | Tensor",
    positives: "NDArray[np.int64] | Tensor | None" = None,
    threads: int | None = None,
) -> None:
    """Set the bit of every slot whose value is above zero; count those of counted tokens by label.

    values: as for `pack`. out_bits: [neuron, slot / 8] uint8, little bit order (slot s is bit s % 8 of byte s // 8);
    bits are only ever set, so start from zeros. NaN is not above zero. positives: [label, neuron], added to; int64, but
    int32 on a GPU, where all of them lie if the values do.

    The result does not depend on `threads`. Raises ValueError for shapes that do not fit, TypeError for other dtypes.
    """
    if on_gpu(values):
        from actstore.kernels.pack import gpu

        gpu.pack_signs(values, columns, out_bits, positives)  # type: ignore[arg-type]
        return
    source = as_array(values)
    if not isinstance(out_bits, np.ndarray) or not isinstance(positives, np.ndarray | None):
        raise TypeError("out_bits and positives of values on the CPU must be numpy arrays, not tensors")
    n_neurons = _check_rows(source, columns)
    if out_bits.dtype != np.uint8:
        raise TypeError(f"out_bits must be uint8, not {out_bits.dtype}")
    _check_block(out_bits, "out_bits", n_neurons, -(-columns.n_slots // 8))
    _check_writable(out_bits, "out_bits")
    if positives is not None:
        _check_labels(positives, columns, n_neurons)
    cpu.pack_signs(source, columns, out_bits, positives, threads or default_threads())


@overload
def quantise(
    block: FloatArray, out: NDArray[np.int8] | None = None, threads: int | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
@overload
def quantise(block: "Tensor", out: "Tensor | None" = None, threads: int | None = None) -> "tuple[Tensor, Tensor]": ...
def quantise(block: Any, out: Any = None, threads: int | None = None) -> Any:
    """The int8 steps [neuron, slot] of a block and the scale [neuron] of a step.

    scale is the largest finite magnitude / 127, its mantissa rounded up to 17 bits: then `q * scale` is exact in
    float32, and |value - q * scale| <= scale / 2 holds for every finite value in float32 arithmetic, not only on paper.
    q is the nearest multiple, ties to even. A neuron of zeros has scale 0. NaN becomes `steps.NO_VALUE`; a neuron with an
    infinity has the largest finite magnitude / 126 for a scale, with its lowest bit set, and ±127 for the infinities.
    `steps.decode` is the inverse.

    block: [neuron, slot] float32, float16, or uint16 for bfloat16; a tensor on a GPU gives tensors there. out: written
    and returned where given; on a CPU it may be the first bytes of each row of the block, which is overwritten then. Raises
    ValueError for shapes that do not fit, TypeError for other dtypes of the block.
    """
    if on_gpu(block):
        from actstore.kernels.pack import gpu_lossy

        return gpu_lossy.quantise(block, out)
    source = as_array(block, "block")
    _check_block(source, "block", *source.shape)
    if out is None:
        out = np.empty(source.shape, np.int8)
    elif out.dtype != np.int8 or out.shape != source.shape:
        raise ValueError(f"out must be int8 {list(source.shape)}, not {out.dtype} {list(out.shape)}")
    _check_block(out, "out", *source.shape)
    _check_writable(out, "out")
    return out, cpu_lossy.quantise(source, out, threads or default_threads())


@overload
def sparsify(
    block: FloatArray, keep: float, counted: NDArray[np.bool_] | None = None, threads: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
@overload
def sparsify(
    block: "Tensor", keep: float, counted: NDArray[np.bool_] | None = None, threads: int | None = None
) -> "tuple[Tensor, Tensor]": ...
def sparsify(block: Any, keep: float, counted: NDArray[np.bool_] | None = None, threads: int | None = None) -> Any:
    """The threshold [neuron] of every neuron and how many of its non-zero values were dropped, set to +0 in place.

    Every dropped |value| is at most the threshold; every kept one is above it and keeps its bits. NaN and infinities
    are always kept. The share `keep` (0..1) of a neuron's values survives, rounded up, infinities before all others;
    fewer where magnitudes tie at the threshold. NaN is no value: a neuron of an expert has as many as tokens it is given.

    block: [neuron, slot] float32, float16, or uint16 for bfloat16; a tensor on a GPU gives tensors there. counted:
    [slot], the slots whose values the share is of (all, unless given); the threshold holds for every slot. Raises ValueError
    for another share and for shapes that do not fit, TypeError for other dtypes.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be a share between 0 and 1, not {keep}")
    source: Any = block if on_gpu(block) else as_array(block, "block")
    if counted is not None and counted.shape != source.shape[1:]:
        raise ValueError(f"counted must hold one flag for each of {source.shape[1]} slots, not {list(counted.shape)}")
    if on_gpu(source):
        from actstore.kernels.pack import gpu_lossy

        return gpu_lossy.sparsify(source, keep, counted)
    _check_block(source, "block", *source.shape)
    _check_writable(source, "block")
    return cpu_lossy.sparsify(source, keep, counted, threads or default_threads())


def _check_rows(source: NDArray[np.generic], columns: Columns) -> int:
    if source.ndim != 2 or len(source) < columns.n_rows:
        raise ValueError(f"values must be [row, neuron] with {columns.n_rows} rows or more, not {list(source.shape)}")
    return int(source.shape[1])


def _check_block(block: NDArray[np.generic], name: str, n_neurons: int, n_slots: int) -> None:
    if block.ndim != 2 or len(block) != n_neurons or block.shape[1] < n_slots:
        raise ValueError(f"{name} must be [{n_neurons} neurons, {n_slots} slots or more], not {list(block.shape)}")
    if block.size and not cpu.has_contiguous_rows(block):
        raise ValueError(f"{name} must be contiguous along its slots; its strides are {list(block.strides)} bytes")


def _check_writable(array: NDArray[np.generic], name: str) -> None:
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, but would be written: pass a copy")


def _check_labels(positives: NDArray[np.int64], columns: Columns, n_neurons: int) -> None:
    if positives.ndim != 2 or positives.shape[1] != n_neurons or len(positives) < columns.n_labels:
        expected = f"[{columns.n_labels} labels or more, {n_neurons} neurons]"
        raise ValueError(f"positives must be {expected}, not {list(positives.shape)}")

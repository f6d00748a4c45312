"""What packing on a GPU asks of its tensors, each refusal in one sentence; nothing here waits for the device."""

import torch
from torch import Tensor

from actstore.kernels.pack.columns import Columns


def check_rows(values: Tensor, columns: Columns, rows: Tensor | None = None) -> int:
    """The number of neurons. Raises ValueError unless `values` is [row, neuron] with all the rows that the columns name.

    With `rows`, it must have as many rows as those say.
    """
    if rows is not None:
        check_device(rows, "rows", values)
        if rows.dtype != torch.int64 or values.ndim != 2 or rows.shape != values.shape[:1]:
            found = f"{rows.dtype} {list(rows.shape)}"
            raise ValueError(f"rows must be int64, one for each row of values {list(values.shape)}, not {found}")
        return int(values.shape[1])
    if values.ndim != 2 or len(values) < columns.n_rows:
        raise ValueError(f"values must be [row, neuron] with {columns.n_rows} rows or more, not {list(values.shape)}")
    return int(values.shape[1])


def check_device(tensor: Tensor, name: str, values: Tensor) -> None:
    """Raise TypeError unless `tensor` is one, ValueError unless it lies where `values` do."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor on {values.device}, as values are, not {type(tensor).__name__}")
    if tensor.device != values.device:
        raise ValueError(f"{name} must be on {values.device}, as values are, not on {tensor.device}")


def check_block(block: Tensor, name: str, values: Tensor, n_neurons: int, n_slots: int) -> None:
    """Raise ValueError unless `block` is [neuron, slot], large enough and contiguous along its slots, where `values` lie."""
    check_device(block, name, values)
    if block.ndim != 2 or len(block) != n_neurons or block.shape[1] < n_slots:
        raise ValueError(f"{name} must be [{n_neurons} neurons, {n_slots} slots or more], not {list(block.shape)}")
    if block.numel() and block.shape[1] > 1 and block.stride(1) != 1:
        raise ValueError(f"{name} must be contiguous along its slots; its strides are {list(block.stride())}")


def check_statistics(count: Tensor, values: Tensor, n_neurons: int) -> None:
    """Raise ValueError unless statistics with these counts are of as many neurons as `values`, where those lie."""
    check_device(count, "statistics", values)
    if len(count) != n_neurons:
        raise ValueError(f"statistics are of {len(count)} neurons, values of {n_neurons}")


def check_labels(positives: Tensor, columns: Columns, n_neurons: int) -> None:
    """Raise ValueError unless `positives` is [label, neuron] with all the labels that the columns name."""
    if positives.ndim != 2 or positives.shape[1] != n_neurons or len(positives) < columns.n_labels:
        expected = f"[{columns.n_labels} labels or more, {n_neurons} neurons]"
        raise ValueError(f"positives must be {expected}, not {list(positives.shape)}")

"""Activations out of a store into one ordinary file: Parquet, NumPy or safetensors.

Block by block, so that memory stays bounded, and visible under the target's name only once complete.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_name
from actstore.store.storage.atomic import check_room, replacing
from actstore.store.token_tables import TokenTable, companion_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

FORMATS = (".parquet", ".npy", ".safetensors")
MAX_PARQUET_COLUMNS = 10_000
ROWS_READ_ALONE = 8
"""Maximum number of neurons of a layer whose rows are decoded singly; beyond, the whole block is."""


def export_activations(
    capture: Capture,
    target: str | Path,
    *,
    neurons: list[tuple[int, int]],
    site: str = "mlp.post",
    on_block: Callable[[int], None] = lambda block: None,
) -> int:
    """Write the activations of `neurons` [(layer, index)] over all committed tokens; the number of tokens written.

    `.parquet`: the columns of `TokenTable` (each token's text, document, position, labels …), then one float32 column per
    neuron (`L3.N17`), once. The others hold numbers only, and get that table beside them: `layer.tokens.parquet` with
    `layer.npy`, one row per token in the same order.
    `.npy`: float32 [token, neuron].
    `.safetensors`: float32 `activations` [neuron, token], int32 `layer` and `neuron` [neuron], int64 `token` and int32 `id`,
    `document` and `position` [token].
    """
    path = Path(target)
    if path.suffix not in FORMATS:
        raise InvalidInputError(
            f"The export's format is told by its suffix, one of {', '.join(FORMATS)}: found {path.name!r}."
        )
    if not path.parent.is_dir():
        raise InvalidInputError(f"The folder of {path} does not exist. Make it first, or export elsewhere.")
    if not neurons:
        raise InvalidInputError("Nothing to export: pass `neurons`, such as L3.N17,L4.N2, or `layers`.")
    for layer, index in neurons:
        capture.check_neuron(layer, index, site)
    if path.suffix == ".parquet" and len(neurons) > MAX_PARQUET_COLUMNS:
        raise InvalidInputError(
            f"A Parquet export has one column per neuron, at most {MAX_PARQUET_COLUMNS}; found {len(neurons)} neurons. "
            "Export to .npy or .safetensors."
        )
    if not capture.blocks:
        raise InvalidInputError(f"Capture {capture.record.name!r} has no committed block to export. Resume it first.")
    if path.suffix != ".parquet":  # whose size depends on how well the values compress
        n_tokens = sum(capture.used_slots[block] for block in capture.blocks)
        check_room(path, 4 * len(neurons) * n_tokens, "export fewer neurons")
    if path.suffix == ".parquet":
        with replacing(path) as partial:
            return _write_parquet(capture, partial, neurons, site, on_block)
    write = {".npy": _write_npy, ".safetensors": _write_safetensors}[path.suffix]
    with replacing(path) as partial, replacing(companion_of(path)) as beside:
        TokenTable(capture).write(beside)
        return write(capture, partial, neurons, site, on_block)


def _blocks(capture: Capture, neurons: list[tuple[int, int]], site: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(block, values [neuron, token]) of every committed block, padding left out."""
    columns_of: dict[int, list[int]] = {}
    for column, (layer, _) in enumerate(neurons):
        columns_of.setdefault(layer, []).append(column)
    for block in capture.blocks:
        values = np.empty((len(neurons), capture.used_slots[block]), np.float32)
        for layer, columns in columns_of.items():
            indices = [neurons[column][1] for column in columns]
            if len(indices) <= ROWS_READ_ALONE:
                rows = np.stack([capture.block_row(layer, index, block, site) for index in indices])
            else:
                rows = capture.block_values(layer, block, site)[indices]
            values[columns] = rows[:, : values.shape[1]]
        yield block, values


def _write_parquet(
    capture: Capture, path: Path, neurons: list[tuple[int, int]], site: str, on_block: Callable[[int], None]
) -> int:
    tokens, written = TokenTable(capture), 0
    neurons = list(dict.fromkeys(neurons))  # readers refuse two columns of one name
    names = [*tokens.column_names, *(neuron_name(layer, index) for layer, index in neurons)]
    writer: pq.ParquetWriter | None = None
    try:
        for block, values in _blocks(capture, neurons, site):
            rows = tokens.rows(written, values.shape[1])
            table = pa.Table.from_arrays([*rows.columns, *map(pa.array, values)], names)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            written += values.shape[1]
            on_block(block)
    finally:
        if writer is not None:
            writer.close()
    return written


def _write_npy(
    capture: Capture, path: Path, neurons: list[tuple[int, int]], site: str, on_block: Callable[[int], None]
) -> int:
    n_tokens = len(capture.slots())
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (n_tokens, len(neurons))}
        )
        for block, values in _blocks(capture, neurons, site):
            file.write(np.ascontiguousarray(values.T).tobytes())
            on_block(block)
    return n_tokens


def _write_safetensors(
    capture: Capture, path: Path, neurons: list[tuple[int, int]], site: str, on_block: Callable[[int], None]
) -> int:
    tokens = capture.tokens()
    n_neurons, n_tokens = len(neurons), len(tokens)
    small: dict[str, NDArray[Any]] = {
        "layer": np.array([layer for layer, _ in neurons], np.int32),
        "neuron": np.array([index for _, index in neurons], np.int32),
        "id": tokens["id"].to_numpy().astype(np.int32),
        "document": tokens["document"].to_numpy().astype(np.int32),
        "position": tokens["position"].to_numpy().astype(np.int32),
        "token": tokens["token"].to_numpy().astype(np.int64),
    }
    # Written by hand because the library's own writer wants everything in memory.
    header: dict[str, Any] = {"__metadata__": {"site": site, "capture": capture.record.name}}
    offset = 0
    codes = {"int32": "I32", "int64": "I64"}
    for name, array in small.items():
        header[name] = {
            "dtype": codes[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    size = n_neurons * n_tokens * 4
    header["activations"] = {"dtype": "F32", "shape": [n_neurons, n_tokens], "data_offsets": [offset, offset + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in small.values():
            file.write(array.tobytes())
        begin = file.tell()
        file.truncate(begin + size)
        column = 0
        for block, values in _blocks(capture, neurons, site):
            for row, part in enumerate(values):
                file.seek(begin + (row * n_tokens + column) * 4)
                file.write(part.tobytes())
            column += values.shape[1]
            on_block(block)
    return n_tokens

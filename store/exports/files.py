"""Tables and arrays of activations as ordinary files: Parquet, CSV, a data set, NumPy, safetensors."""

from __future__ import annotations

import json
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from actstore.store.neurons import neuron_name
from actstore.store.token_tables import TokenTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.exports.selection import Selection


def _tables(selection: Selection) -> Iterator[pa.Table]:
    """The rows of each block: what is known of each token, then a column per neuron, each once."""
    tokens, written = TokenTable(selection.capture), 0
    neurons = list(dict.fromkeys(selection.neurons))  # readers refuse two columns of one name
    names = [*tokens.column_names, *(neuron_name(layer, index) for layer, index in neurons)]
    for _, values in selection.blocks(neurons):
        rows = tokens.rows(written, values.shape[1])
        yield pa.Table.from_arrays([*rows.columns, *map(pa.array, values)], names)
        written += values.shape[1]


def write_parquet(selection: Selection, path: Path) -> int:
    """Parquet, a row group per block; the number of tokens."""
    n_tokens = 0
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in _tables(selection):
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)
            n_tokens += len(table)
    return n_tokens


def write_csv(selection: Selection, path: Path) -> int:
    """CSV in UTF-8 with a header; the number of tokens. A value that is not there is empty."""
    n_tokens = 0
    with ExitStack() as stack:
        writer: csv.CSVWriter | None = None
        for table in _tables(selection):
            plain = _plain(table)
            writer = writer or stack.enter_context(csv.CSVWriter(path, plain.schema))
            writer.write_table(plain)
            n_tokens += len(table)
    return n_tokens


def write_dataset(selection: Selection, folder: Path) -> int:
    """A folder as `datasets.Dataset.save_to_disk` writes it, for `datasets.load_from_disk`; the number of tokens."""
    name, n_tokens = "data-00000-of-00001.arrow", 0
    folder.mkdir()
    with ExitStack() as stack:
        writer: pa.RecordBatchStreamWriter | None = None
        for table in _tables(selection):
            plain = _plain(table)
            writer = writer or stack.enter_context(pa.ipc.new_stream(str(folder / name), plain.schema))
            writer.write_table(plain)
            n_tokens += len(table)
            schema = plain.schema
    features = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in schema}
    features |= {n: one | {"dtype": "float32"} for n, one in features.items() if one["dtype"] == "float"}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    state: dict[str, Any] = {
        "_data_files": [{"filename": name}], "_fingerprint": selection.capture.record.plan.fingerprint[:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    return n_tokens


def _plain(table: pa.Table) -> pa.Table:
    """With words in the place of numbers of words."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table


def write_npy(selection: Selection, path: Path) -> int:
    """float32 [token, neuron]; the number of tokens."""
    n_tokens = selection.n_tokens
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (n_tokens, len(selection.neurons))}
        )
        for _, values in selection.blocks():
            file.write(np.ascontiguousarray(values.T).tobytes())
    return n_tokens


def write_safetensors(selection: Selection, path: Path) -> int:
    """The tensors that `export_activations` lists; the number of tokens."""
    capture, neurons = selection.capture, selection.neurons
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
    header: dict[str, Any] = {"__metadata__": {"site": selection.site, "capture": capture.record.name}}
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
        for _, values in selection.blocks():
            for row, part in enumerate(values):
                file.seek(begin + (row * n_tokens + column) * 4)
                file.write(part.tobytes())
            column += values.shape[1]
    return n_tokens

"""The data set of activations that SAELens' CacheActivationsRunner saves: a column named by the hook, and `token_ids`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.engine.building.formats.batch import Batch, ReadOptions
from actstore.store.errors import InvalidInputError
from actstore.store.sites import parse_hook

if TYPE_CHECKING:
    from collections.abc import Iterator

IDS: Final = "token_ids"
STATE: Final = "state.json"


def read(source: Any, options: ReadOptions) -> Iterator[Batch]:
    """A batch per record batch of the Arrow files, whose sequences have one length."""
    folder = Path(source)
    for path in _files(folder):
        with pa.memory_map(str(path)) as file:
            try:
                for rows in pa.ipc.open_stream(file):
                    yield _batch(rows, path, options)
            except (pa.ArrowInvalid, json.JSONDecodeError) as error:  # the second of types that datasets registers
                raise InvalidInputError(f"{path} cannot be read as Arrow: {error}. Check the file.") from None


def _files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return [folder / one["filename"] for one in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder} is no data set saved with save_to_disk: {STATE} cannot be read ({error}). Check the path."
        ) from None


def _batch(rows: pa.RecordBatch, path: Path, options: ReadOptions) -> Batch:
    hooks = [name for name in rows.schema.names if parse_hook(name) is not None]
    if not hooks:
        raise InvalidInputError(
            f"{path} has no column named by a hook such as blocks.3.hook_resid_post: found {', '.join(rows.schema.names)}."
        )
    activations = {name: _array(rows.column(name), f"{name} of {path}") for name in hooks}
    ids = _array(rows.column(IDS), f"{IDS} of {path}") if IDS in rows.schema.names else None
    return Batch(activations, ids, [path.name] * rows.num_rows)


def _array(column: pa.Array, what: str) -> np.ndarray[Any, Any]:
    """Nested lists of one length each as one array; `InvalidInputError` where lengths differ."""
    if isinstance(column, pa.ExtensionArray):  # where the library datasets is loaded, which registers its types
        column = column.storage
    shape = [len(column)]
    while (
        pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type)
    ):
        inner = column.flatten()
        length, rest = divmod(len(inner), max(1, len(column)))
        lengths = column.value_lengths() if not pa.types.is_fixed_size_list(column.type) else None
        if column.null_count or rest or (lengths is not None and set(lengths.unique().to_pylist()) - {length}):
            raise InvalidInputError(
                f"The sequences of {what} have different lengths. Save those of one length together."
            )
        shape.append(length)
        column = inner
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)

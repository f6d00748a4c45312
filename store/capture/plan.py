"""The plan on disk: which token lies in which slot of which block, fixed before the model runs.

A window is a sequence that the model reads; its kept positions fill consecutive slots. A block is a whole number of windows,
grouped in batches that run through the model together, and ends in padding slots. Everything streams: one block is in
memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.store.capture.plan_checks import checked_windows
from actstore.store.errors import FormatError
from actstore.store.files.parquet import TableWriter, open_table, undamaged
from actstore.store.files.plain_arrays import ArrayAppender, PlainArray
from actstore.store.layout import PADDING, capture_key, plan_key, table_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from actstore.store.files.records import PlanRecord
    from actstore.store.storage.folder import Folder

CHUNK: Final = 1 << 18
"""Elements of a chunk of the plan's arrays."""
TOKEN_ARRAYS: Final = {"ids": "int32", "position": "int32", "window": "int32", "modality": "uint8"}

WINDOWS = pa.schema(
    [
        ("window", pa.int32()),
        ("document", pa.int32()),
        ("block", pa.int32()),
        ("batch", pa.int32()),
        ("input_start", pa.int64()),
        ("n_inputs", pa.int32()),
        ("slot_start", pa.int64()),
        ("n_slots", pa.int32()),
        ("labels", pa.list_(pa.int32())),
    ],
    metadata={
        "batch": "windows of a block with the same batch run through the model together",
        "input_start": "first element of inputs/ids; n_inputs of them are what the model reads",
        "slot_start": "first token slot; n_slots of them hold the kept positions",
        "labels": "ids of the document's labels, one a label column",
    },
)


@dataclass(frozen=True)
class PlannedWindow:
    """One window, ready to be placed."""

    document: int
    ids: NDArray[np.int32]
    """Token ids the model reads; shape [position]."""
    kept: NDArray[np.int32]
    """Positions that get a slot, ascending."""
    modality: NDArray[np.uint8]
    """What each kept position holds; shape of `kept`."""
    labels: tuple[int, ...]


class _Fingerprint:
    """Adds up a plan, the same way as it is written and as it is read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        self._documents = hashlib.sha256()

    def add_document(self, row: dict[str, Any]) -> None:
        self._documents.update(json.dumps(row, sort_keys=True).encode())

    def add_block(
        self, inputs: NDArray[np.integer[Any]], tokens: dict[str, NDArray[np.integer[Any]]], windows: pa.Table
    ) -> None:
        for values in (inputs, *(tokens[name] for name in TOKEN_ARRAYS)):
            self._digest.update(np.ascontiguousarray(values).tobytes())
        for name in WINDOWS.names:
            column = windows[name].combine_chunks()
            self._digest.update((column.flatten() if name == "labels" else column).to_numpy().tobytes())

    def hexdigest(self, labels: Sequence[tuple[str, str]]) -> str:
        self._digest.update(self._documents.digest() + json.dumps(list(map(list, labels))).encode())
        return self._digest.hexdigest()


class PlanWriter:
    """Writes a plan block by block and ends with its fingerprint."""

    def __init__(self, folder: Folder, capture: str, block_slots: int, settings: dict[str, Any]) -> None:
        """Start over in `capture`; earlier plan files there are replaced."""
        self._block_slots = block_slots
        self._fingerprint = _Fingerprint(settings)
        folder.clear(capture_key(capture), ("inputs", "tokens"))
        self._inputs = ArrayAppender(folder, plan_key(capture, "inputs/ids"), "int32", "input", CHUNK)
        self._tokens = {
            name: ArrayAppender(folder, plan_key(capture, f"tokens/{name}"), dtype, "token", CHUNK)
            for name, dtype in TOKEN_ARRAYS.items()
        }
        self._folder, self._capture = folder, capture
        self._windows = TableWriter(folder, table_key(capture, "windows"), WINDOWS)
        self._documents: TableWriter | None = None
        self._document_rows: list[dict[str, Any]] = []
        self.n_blocks = self.n_windows = self.n_documents = self.n_tokens = 0

    def add_document(self, row: dict[str, Any]) -> int:
        """The index of a new row of the documents table; every row must have the same columns."""
        self._document_rows.append({"document": self.n_documents, **row})
        self._fingerprint.add_document(self._document_rows[-1])
        if len(self._document_rows) == 4096:
            self._flush_documents()
        self.n_documents += 1
        return self.n_documents - 1

    def _flush_documents(self) -> None:
        table = pa.Table.from_pylist(self._document_rows)
        if self._documents is None:
            self._documents = TableWriter(self._folder, table_key(self._capture, "documents"), table.schema)
        self._documents.write(table)
        self._document_rows = []

    def add_block(self, batches: Sequence[Sequence[PlannedWindow]]) -> None:
        """Place the windows of one block, batch after batch, and pad it."""
        slot = self.n_blocks * self._block_slots
        rows: list[dict[str, Any]] = []
        inputs: list[NDArray[Any]] = []
        tokens: dict[str, list[NDArray[Any]]] = {name: [] for name in TOKEN_ARRAYS}

        def add_tokens(ids: NDArray[Any], position: NDArray[Any], window: int, modality: NDArray[Any]) -> None:
            columns = {"ids": ids, "position": position, "window": np.full(len(ids), window), "modality": modality}
            for name, values in columns.items():
                tokens[name].append(values.astype(TOKEN_ARRAYS[name], copy=False))

        n_inputs = self._inputs.length
        for batch, windows in enumerate(batches):
            for window in windows:
                rows.append(
                    {
                        "window": self.n_windows,
                        "document": window.document,
                        "block": self.n_blocks,
                        "batch": batch,
                        "input_start": n_inputs,
                        "n_inputs": len(window.ids),
                        "slot_start": slot,
                        "n_slots": len(window.kept),
                        "labels": list(window.labels),
                    }
                )
                inputs.append(window.ids.astype(np.int32, copy=False))
                add_tokens(window.ids[window.kept], window.kept, self.n_windows, window.modality)
                n_inputs += len(window.ids)
                slot += len(window.kept)
                self.n_windows += 1
                self.n_tokens += len(window.kept)
        n_padding = (self.n_blocks + 1) * self._block_slots - slot
        nothing = np.full(n_padding, -1, np.int32)
        add_tokens(nothing, nothing, -1, np.full(n_padding, PADDING, np.uint8))
        placed = {name: np.concatenate(parts) for name, parts in tokens.items()}
        self._inputs.extend(np.concatenate(inputs))
        for name, values in placed.items():
            self._tokens[name].extend(values)
        # One row group per block, so that a block's windows are read alone.
        table = pa.Table.from_pylist(rows, schema=WINDOWS)
        self._windows.write(table)
        self._fingerprint.add_block(np.concatenate(inputs), placed, table)
        self.n_blocks += 1

    def close(self, labels: Sequence[tuple[str, str]]) -> str:
        """Finish every file; the plan's fingerprint."""
        self._inputs.close()
        for array in self._tokens.values():
            array.close()
        if self._document_rows or self._documents is None:
            self._flush_documents()
        assert self._documents is not None
        for writer in (self._windows, self._documents):
            writer.close()
        return self._fingerprint.hexdigest(labels)

    def abandon(self) -> None:
        """Drop what was written of the tables; the arrays are replaced by the next attempt."""
        for writer in (self._windows, self._documents):
            if writer is not None:
                writer.abandon()


@dataclass(frozen=True)
class BlockPlan:
    """One block's windows and slots."""

    block: int
    windows: dict[str, NDArray[Any]]
    """Columns of the windows table but `labels`; shape [window]."""
    labels: NDArray[np.int32]
    """Label ids; shape [window, label column]."""
    inputs: NDArray[np.int32]
    """What the model reads, all windows one after another; shape [input]."""
    position: NDArray[np.int32]
    """Position in its window of each slot, padding slots left out; shape [token]."""
    modality: NDArray[np.uint8]

    def window_of_slot(self) -> NDArray[np.int64]:
        """The window of each slot, as a row of `windows`; shape [token]."""
        return np.repeat(np.arange(len(self.labels)), self.windows["n_slots"])

    def batches(self) -> list[slice]:
        """The windows of each batch, as slices of the window axis."""
        borders = np.flatnonzero(np.diff(self.windows["batch"])) + 1
        edges = [0, *borders.tolist(), len(self.windows["batch"])]
        return [slice(a, b) for a, b in pairwise(edges)]


class Plan:
    """Reads a finished plan, every part of it checked."""

    def __init__(
        self, folder: Folder, capture: str, record: PlanRecord, files: Mapping[str, str] | None = None
    ) -> None:
        """The plan of a capture; `files` are the `plan_files` of the capture's record, to which arrays and tables are held."""
        self._folder, self._capture, self.record, self._expected = folder, capture, record, files or {}
        # pyarrow's ParquetFile reads for one thread at a time: others make it crash, or find the table damaged.
        self._reading = threading.Lock()

    def _key(self, table: str) -> str:
        return table_key(self._capture, table)

    def _file(self, table: str) -> pq.ParquetFile:
        if table not in self._files:
            file = open_table(self._folder, self._key(table), whole=True, digest=self._digest(f"{table}.parquet"))
            expected = self.record.n_windows if table == "windows" else self.record.n_documents
            if file.metadata.num_rows != expected:
                raise FormatError(
                    f"{self._folder}/{self._key(table)} is damaged: it has {file.metadata.num_rows} rows, expected {expected}."
                )
            self._files[table] = file
        return self._files[table]

    @cached_property
    def _files(self) -> dict[str, pq.ParquetFile]:
        return {}

    def _windows(self, block: int) -> pa.Table:
        with self._reading, undamaged(self._folder, self._key("windows")):
            windows = self._file("windows").read_row_group(block).select(WINDOWS.names)
            return checked_windows(windows, self.record, block)

    def block(self, block: int) -> BlockPlan:
        """What block `block` holds."""
        table = self._windows(block)
        windows = {name: table[name].to_numpy() for name in table.column_names if name != "labels"}
        labels = table["labels"].combine_chunks().flatten().to_numpy().astype(np.int32)
        first = int(windows["input_start"][0])
        n_inputs = int(windows["n_inputs"].sum())
        slot = block * self.record.block_slots
        tokens = slice(slot, slot + int(windows["n_slots"].sum()))
        return BlockPlan(
            block,
            windows,
            labels.reshape(len(windows["window"]), len(self.record.label_columns)),
            self.array("inputs/ids", slice(first, first + n_inputs)),
            self.array("tokens/position", tokens),
            self.array("tokens/modality", tokens),
        )

    def array(self, name: str, selection: slice | int = slice(None)) -> NDArray[Any]:
        """A plan array by name (`inputs/ids`, `tokens/ids`, …), whole or in part."""
        return self._open(name).read(selection)

    def _digest(self, file: str) -> str:
        """What the capture's record has of a file of the plan; empty where it has nothing of the plan's files."""
        if self._expected and file not in self._expected:
            raise FormatError(
                f"The record of capture {self._capture!r} of {self._folder} does not list {file} of its plan."
            )
        return self._expected.get(file, "")

    def _open(self, name: str) -> PlainArray:
        if name not in self._arrays:
            key = plan_key(self._capture, name)
            array = PlainArray(
                self._folder, key, digest=self._digest(name), may_lack_chunks=lambda: self._is_without_chunks
            )
            of_tokens = name.removeprefix("tokens/") in TOKEN_ARRAYS
            shape = (self.record.n_blocks * self.record.block_slots,) if of_tokens else array.shape[:1]
            dtype = TOKEN_ARRAYS.get(name.removeprefix("tokens/"), "int32")
            if array.shape != shape or array.dtype != dtype:
                raise FormatError(
                    f"The metadata of {self._folder}/{key} is damaged: it describes {array.shape} {array.dtype}."
                )
            self._arrays[name] = array
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, PlainArray]:
        return {}

    @cached_property
    def _is_without_chunks(self) -> bool:
        """Whether the plan is whole although an array without checksums lacks chunks: they had the fill value alone."""
        plan = Plan(self._folder, self._capture, self.record)
        plan.__dict__["_is_without_chunks"] = True
        return plan.fingerprint() == self.record.fingerprint

    def table(self, name: str) -> pa.Table:
        """The `windows` or `documents` table."""
        with self._reading, undamaged(self._folder, self._key(name)):
            table = self._file(name).read()
            return checked_windows(table, self.record) if name == "windows" else table

    def used_slots(self) -> NDArray[np.int64]:
        """Slots of each block that hold a token; the rest of a block is padding. Shape [block]."""
        windows = self.table("windows").select(["block", "n_slots"])
        sums = np.bincount(windows["block"], windows["n_slots"], minlength=self.record.n_blocks)
        return sums.astype(np.int64)

    def fingerprint(self) -> str:
        """The fingerprint of what is on disk now, to hold against the record's; reads the whole plan."""
        fingerprint = _Fingerprint(self.record.settings)
        size, first = self.record.block_slots, 0
        for block in range(self.record.n_blocks):
            windows = self._windows(block)
            n_inputs = int(windows["n_inputs"].to_numpy().sum())
            slots = slice(block * size, (block + 1) * size)
            tokens = {name: self.array(f"tokens/{name}", slots) for name in TOKEN_ARRAYS}
            fingerprint.add_block(self.array("inputs/ids", slice(first, first + n_inputs)), tokens, windows)
            first += n_inputs
        with self._reading, undamaged(self._folder, self._key("documents")):
            for batch in self._file("documents").iter_batches():
                for row in batch.to_pylist():
                    fingerprint.add_document(row)
        return fingerprint.hexdigest(self.record.labels)

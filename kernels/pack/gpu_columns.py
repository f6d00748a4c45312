"""A batch's `Columns` as the GPU kernels take them: uploaded once, used by every layer and site.

Uploads go through pinned memory and do not wait for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from actstore.kernels.gpu import upload
from actstore.kernels.pack.columns import Columns

Uploaded = TypeVar("Uploaded")

PIECE = 512
"""The maximum number of tokens of a text window that one program follows.

Few enough that a batch of 4,096 tokens gives a GPU 256 programs at 2,048 neurons; enough that the 32 bytes per neuron that
each leaves to be merged are little beside the 1,024 that it reads."""


@dataclass(frozen=True)
class DeviceColumns:
    """`Columns` on a device. Its windows are cut into pieces of at most `PIECE` tokens, which never span two windows."""

    rows: Tensor
    """[token] int64"""
    slots: Tensor
    """[token] int64"""
    tokens: Tensor
    """[token] int64, token indices"""
    counted: Tensor
    """[token] uint8"""
    labels: Tensor
    """[segment, column] int32"""
    piece_starts: Tensor
    """[piece + 1] int32 offsets into the tokens"""
    piece_segments: Tensor
    """[piece + 1] int32, the window of each piece; -1 at the end"""

    @property
    def n_pieces(self) -> int:
        """The number of pieces."""
        return len(self.piece_starts) - 1


@dataclass(frozen=True)
class DeviceOctets:
    """The rows that fall into each byte of a block's sign bits."""

    first: int
    """The byte of the first slot."""
    rows: Tensor
    """[byte · 8] int64, the row of each slot from byte `first` on; -1 where the batch has none"""
    segments: Tensor
    """[byte · 8] int32, the window of each slot's token; -1 where there is none, or it is not counted"""


@dataclass(frozen=True)
class Routed:
    """The columns of an expert that saw some rows of a batch, in any order; found on the device, without waiting for it."""

    columns: DeviceColumns
    """Of the tokens that it saw, in their order. Its pieces are those of the batch, and may be empty; what follows the last
    piece means nothing."""
    index: Tensor
    """[row + 2] int64, the row of the expert's values that holds each row of the batch; -1 for none, as in the last entry."""

    def octets(self, octets: DeviceOctets) -> Tensor:
        """`DeviceOctets.rows` of the expert's values, of those of the batch."""
        return self.index[octets.rows]  # -1 is the last entry


def columns_on(device: torch.device, columns: Columns, rows: Tensor | None = None) -> DeviceColumns:
    """`columns` on `device`, or with `rows` those of an expert (see `routed_on`); the same object on every call."""
    return _cached(columns, device, _upload_columns) if rows is None else routed_on(device, columns, rows).columns


def octets_on(device: torch.device, columns: Columns) -> DeviceOctets:
    """The bytes that `columns` fall into, on `device`; the same object on every call."""
    return _cached(columns, device, _upload_octets)


def routed_on(device: torch.device, columns: Columns, rows: Tensor) -> Routed:
    """The columns of an expert's values, row i of which is row `rows[i]` of the batch, all on `device`.

    rows: [row] int64, each once. The same object on every call with the same tensor, until another comes: an expert's sites
    follow one another.
    """
    held: tuple[Tensor, Routed] | None = columns.__dict__.get("_routed")
    if held is None or held[0] is not rows:
        held = columns.__dict__["_routed"] = rows, _route(columns_on(device, columns), columns.n_rows, rows)
    return held[1]


def _cached(columns: Columns, device: torch.device, build: Callable[[Columns, torch.device], Uploaded]) -> Uploaded:
    """What `build` made of `columns` on the first call."""
    # Where `cached_property` keeps its own: what was uploaded lives as long as the batch.
    uploads: dict[tuple[object, torch.device], Uploaded] = columns.__dict__.setdefault("_on_device", {})
    if (build, device) not in uploads:
        uploads[build, device] = build(columns, device)
    return uploads[build, device]


def _upload_columns(columns: Columns, device: torch.device) -> DeviceColumns:
    lengths = np.diff(columns.segments)
    # An empty window has no piece.
    n_pieces = -(-lengths // PIECE)
    segments = np.repeat(np.arange(len(lengths)), n_pieces)
    index_in_window = np.arange(len(segments)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    starts = columns.segments[:-1][segments] + index_in_window * PIECE
    return DeviceColumns(
        rows=upload(columns.rows, device),
        slots=upload(columns.slots, device),
        tokens=upload(columns.first_token + columns.slots, device),
        counted=upload(columns.counted.astype(np.uint8), device),
        labels=upload(columns.labels, device),
        piece_starts=upload(np.append(starts, len(columns.rows)).astype(np.int32), device),
        piece_segments=upload(np.append(segments, -1).astype(np.int32), device),
    )


def _route(batch: DeviceColumns, n_rows: int, rows: Tensor) -> Routed:
    """See `routed_on`; n_rows: of the batch's columns. Every size is known on the host."""
    device = rows.device
    index = torch.full((n_rows + 2,), -1, dtype=torch.int64, device=device)
    # Rows that no column names go to the place before the last, which is not read either.
    index.scatter_(0, rows.clamp(max=n_rows), torch.arange(len(rows), device=device))
    in_expert = index[batch.rows]  # [token]
    is_routed = in_expert >= 0
    n_before = torch.nn.functional.pad(torch.cumsum(is_routed, 0), (1, 0))  # [token + 1]
    n_most = min(len(rows), len(batch.rows))
    # Tokens that it did not see go to a place after all others.
    place = torch.where(is_routed, n_before[:-1], n_most)

    def moved(values: Tensor) -> Tensor:
        return values.new_zeros(n_most + 1).scatter_(0, place, values)[:n_most]

    columns = DeviceColumns(
        rows=moved(in_expert),
        slots=moved(batch.slots),
        tokens=moved(batch.tokens),
        counted=moved(batch.counted),
        labels=batch.labels,
        piece_starts=n_before.index_select(0, batch.piece_starts).to(torch.int32),
        piece_segments=batch.piece_segments,
    )
    return Routed(columns, index)


def _upload_octets(columns: Columns, device: torch.device) -> DeviceOctets:
    first = int(columns.slots[0]) // 8 if len(columns.slots) else 0
    indices = columns.slots - first * 8
    n_slots = -(-(columns.n_slots - first * 8) // 8) * 8
    rows, segments = np.full(n_slots, -1, np.int64), np.full(n_slots, -1, np.int32)
    rows[indices] = columns.rows
    segment_of = np.repeat(np.arange(len(columns.segments) - 1), np.diff(columns.segments))
    segments[indices] = np.where(columns.counted, segment_of, -1)
    return DeviceOctets(first, upload(rows, device), upload(segments, device))

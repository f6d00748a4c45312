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


def columns_on(device: torch.device, columns: Columns) -> DeviceColumns:
    """`columns` on `device`; the same object on every call."""
    return _cached(columns, device, _upload_columns)


def octets_on(device: torch.device, columns: Columns) -> DeviceOctets:
    """The bytes that `columns` fall into, on `device`; the same object on every call."""
    return _cached(columns, device, _upload_octets)


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


def _upload_octets(columns: Columns, device: torch.device) -> DeviceOctets:
    first = int(columns.slots[0]) // 8 if len(columns.slots) else 0
    indices = columns.slots - first * 8
    n_slots = -(-(columns.n_slots - first * 8) // 8) * 8
    rows, segments = np.full(n_slots, -1, np.int64), np.full(n_slots, -1, np.int32)
    rows[indices] = columns.rows
    segment_of = np.repeat(np.arange(len(columns.segments) - 1), np.diff(columns.segments))
    segments[indices] = np.where(columns.counted, segment_of, -1)
    return DeviceOctets(first, upload(rows, device), upload(segments, device))

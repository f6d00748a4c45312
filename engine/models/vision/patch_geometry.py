"""Patch geometry: which part of the original image every patch shows, through any chain of resizing, cropping and padding.

A `View` is a raster of pixels that shows a rectangle of the original image; image processors only resize views and cut
rectangles out of them (which pads where the rectangle is larger).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """A raster of `height` × `width` pixels and the rectangle it shows, as shares of the original image.

    The rectangle reaches beyond 0 … 1 where the raster is padded.
    """

    height: int
    width: int
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def resized(self, height: int, width: int) -> View:
        """The same rectangle in other pixels."""
        return View(int(height), int(width), self.left, self.top, self.right, self.bottom)

    def cropped(self, top: int, left: int, height: int, width: int) -> View:
        """The pixels from (top, left) on; padding where they lie outside of the raster."""
        across, down = (self.right - self.left) / self.width, (self.bottom - self.top) / self.height
        return View(
            int(height),
            int(width),
            self.left + left * across,
            self.top + top * down,
            self.left + (left + width) * across,
            self.top + (top + height) * down,
        )

    def centred(self, height: int, width: int) -> View:
        """The middle of the raster, padded where it is smaller, as the library's `center_crop` rounds it."""
        return self.cropped(_centre(self.height, height), _centre(self.width, width), height, width)

    def squared(self) -> View:
        """Padded to the longer side, the image in the middle."""
        side = max(self.height, self.width)
        return self.cropped(-((side - self.height) // 2), -((side - self.width) // 2), side, side)

    def tiles(self, rows: int, columns: int) -> list[View]:
        """Cut into rows × columns of equal pixels, row by row."""
        height, width = self.height // rows, self.width // columns
        return [self.cropped(r * height, c * width, height, width) for r in range(rows) for c in range(columns)]


def _centre(length: int, cropped: int) -> int:
    """The first of the middle `cropped` pixels of `length`; negative where that pads."""
    return (length - cropped) // 2


@dataclass(frozen=True, eq=False)
class Patches:
    """One entry per image position of a part of the model, in the order of its positions.

    `tile`, `row` and `column` are -1 and `box` is NaN where a position shows no part of the image: query tokens, class tokens,
    newline tokens, padding. `box` holds left, top, right and bottom as shares of the original image, without what was cropped
    away. A tile is one picture that the vision tower was given; where the model puts tiles together again, they are one.
    """

    position: NDArray[np.int32]  # [patch]
    tile: NDArray[np.int16]  # [patch]
    row: NDArray[np.int16]  # [patch]
    column: NDArray[np.int16]  # [patch]
    box: NDArray[np.float32]  # [patch, side]

    def __len__(self) -> int:
        return len(self.position)

    @classmethod
    def nowhere(cls, count: int) -> Patches:
        """Positions that show no part of the image."""
        none = np.full(count, -1, np.int16)
        return cls(np.arange(count, dtype=np.int32), none, none, none, np.full((count, 4), np.nan, np.float32))

    @classmethod
    def grid(cls, view: View, rows: int, columns: int, tile: int = 0) -> Patches:
        """The patches of rows × columns over a view, row by row."""
        row, column = (axis.reshape(-1) for axis in np.indices((rows, columns)))
        across, down = (view.right - view.left) / columns, (view.bottom - view.top) / rows
        left, top = view.left + column * across, view.top + row * down
        box = np.stack([left, top, left + across, top + down], axis=1)
        box = np.clip(box, 0.0, 1.0)
        shows = (box[:, 2] - box[:, 0] > 1e-6) & (box[:, 3] - box[:, 1] > 1e-6)
        return cls(
            np.arange(rows * columns, dtype=np.int32),
            np.where(shows, tile, -1).astype(np.int16),
            np.where(shows, row, -1).astype(np.int16),
            np.where(shows, column, -1).astype(np.int16),
            np.where(shows[:, None], box, np.nan).astype(np.float32),
        )

    @classmethod
    def cut(cls, view: View, side: int, tile: int = 0) -> Patches:
        """The whole patches of `side` × `side` pixels in a view, row by row; pixels that remain at the edges are in none."""
        rows, columns = view.height // side, view.width // side
        return cls.grid(view.cropped(0, 0, rows * side, columns * side), rows, columns, tile)

    @classmethod
    def join(cls, parts: Sequence[Patches]) -> Patches:
        """Several runs of positions one after another."""
        parts = [*parts] or [cls.nowhere(0)]
        return cls(
            np.arange(sum(map(len, parts)), dtype=np.int32),
            np.concatenate([part.tile for part in parts]),
            np.concatenate([part.row for part in parts]),
            np.concatenate([part.column for part in parts]),
            np.concatenate([part.box for part in parts]),
        )

    def take(self, order: NDArray[np.int64]) -> Patches:
        """The patches in another order, numbered anew."""
        return Patches(
            np.arange(len(order), dtype=np.int32),
            self.tile[order],
            self.row[order],
            self.column[order],
            self.box[order],
        )

    def arranged(self, order: NDArray[np.int64], tile: int) -> Patches:
        """The patches `order` [row, column] as one picture, row by row."""
        row, column = (axis.reshape(-1) for axis in np.indices(order.shape))
        taken = self.take(order.reshape(-1))
        shows = taken.tile >= 0
        return replace(
            taken,
            tile=np.where(shows, tile, -1).astype(np.int16),
            row=np.where(shows, row, -1).astype(np.int16),
            column=np.where(shows, column, -1).astype(np.int16),
        )

    def at(self, positions: NDArray[np.int64]) -> Patches:
        """The same patches at other positions."""
        return Patches(positions.astype(np.int32), self.tile, self.row, self.column, self.box)

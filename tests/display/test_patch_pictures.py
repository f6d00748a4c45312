"""Pictures of patch maps: image, map and mask where they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from actstore.display.patch_pictures import colours, draw_map
from actstore.engine.multimodal.patch_maps import PatchGrid, PatchMap
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


def grid_of(rows: int, columns: int) -> PatchGrid:
    """The patches of a whole image."""
    row, column = (index.ravel() for index in np.mgrid[:rows, :columns])
    box = np.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], 1)
    return PatchGrid(np.arange(rows * columns), np.zeros(rows * columns, np.int64), row, column, box)


def test_a_picture_shows_image_map_and_mask(tmp_path: Path) -> None:
    values = np.zeros(9)
    values[5] = 1
    patch_map = PatchMap(0, grid_of(3, 3), values, 30, 24)
    image = Image.new("RGB", (30, 24), (10, 200, 30))
    drawn = draw_map(tmp_path / "map.png", patch_map, image, ("a caption", "neurons " * 60))
    assert drawn.with_image
    with Image.open(tmp_path / "map.png") as opened:
        assert opened.format == "PNG"
        picture = np.asarray(opened.convert("RGB")).astype(int)
    scale, margin = 10, 10  # 30 pixels become 300
    panels = [picture[margin : margin + 240, margin + i * 310 : margin + i * 310 + 300] for i in range(3)]
    assert (panels[0] == (10, 200, 30)).all()
    bright = panels[1].sum(axis=2)
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert (row // 80, column // 100) == (1, 2)
    shown = (panels[2] == (10, 200, 30)).all(axis=2)
    assert 0.03 < shown.mean() <= 0.05
    assert shown[80:160, 200:].sum() == shown.sum()
    assert scale * 30 == 300


def test_without_its_image_the_map_is_drawn_alone(tmp_path: Path) -> None:
    patch_map = PatchMap(0, grid_of(2, 2), np.arange(4.0), 2000, 1000)
    assert not draw_map(tmp_path / "map.png", patch_map, None, (), "gone.png no longer exists").with_image
    with Image.open(tmp_path / "map.png") as opened:
        assert opened.size[0] == 2 * 1024 + 3 * 10


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    patch_map = PatchMap(0, grid_of(2, 2), np.arange(4.0), 20, 20)
    with pytest.raises(InvalidInputError, match=r"ends in .png, found 'map.jpg'"):
        draw_map(tmp_path / "map.jpg", patch_map, None)
    with pytest.raises(InvalidInputError, match="does not exist"):
        draw_map(tmp_path / "no" / "map.png", patch_map, None)


def test_colours_of_nothing_are_grey() -> None:
    assert (colours(np.full((2, 2), np.nan)) == 96).all()
    ramp = colours(np.linspace(0, 1, 5)[None]).astype(int).sum(axis=2)[0]
    assert (np.diff(ramp) > 0).all()

"""Maps of neurons over images: right values at the right places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from planted_captions import SIDE, plant_captions

from actstore.engine.multimodal import patch_maps
from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.patch_maps import NeuronSet, PatchGrid, map_neurons, mask_of
from actstore.engine.multimodal.result import FindSettings
from actstore.engine.multimodal.source_images import find_image
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

Planted = tuple["Capture", dict[str, Any]]


def grid_of(rows: int, columns: int, left: float = 0, top: float = 0, right: float = 1, bottom: float = 1) -> PatchGrid:
    row, column = (index.ravel() for index in np.mgrid[:rows, :columns])
    width, height = (right - left) / columns, (bottom - top) / rows
    box = np.stack(
        [left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height], 1
    )
    return PatchGrid(np.arange(rows * columns), np.zeros(rows * columns, np.int64), row, column, box)


def joined(*grids: PatchGrid) -> PatchGrid:
    tiles = np.concatenate([np.full(len(g.slots), i) for i, g in enumerate(grids)])
    columns = (np.concatenate([getattr(g, name) for g in grids]) for name in ("row", "column", "box"))
    return PatchGrid(np.arange(len(tiles)), tiles, *columns)


@pytest.mark.parametrize(
    ("rows", "columns", "size"), [(3, 5, (40, 33)), (4, 4, (64, 64)), (1, 6, (60, 7)), (2, 1, (9, 8))]
)
def test_one_grid_is_resized_as_pillow_does(rows: int, columns: int, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal((rows, columns))
    expected = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    pixels = grid_of(rows, columns).spread(values.ravel(), *size)
    np.testing.assert_allclose(pixels, np.asarray(expected), atol=1e-5)


def test_the_order_of_patches_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    grid, values, order = grid_of(4, 3), rng.standard_normal(12), rng.permutation(12)
    mixed = PatchGrid(grid.slots, grid.tile, grid.row[order], grid.column[order], grid.box[order])
    np.testing.assert_array_equal(mixed.spread(values[order], 20, 20), grid.spread(values, 20, 20))


def test_tiles_fall_into_place_and_nothing_is_made_up_outside() -> None:
    # The whole image coarsely, its right half finely, and a strip at the bottom that no patch shows.
    whole, half = grid_of(2, 2, bottom=0.8), grid_of(4, 4, left=0.5, bottom=0.8)
    pixels = joined(whole, half).spread(np.r_[np.full(4, 1.0), np.full(16, 3.0)], 20, 20)
    np.testing.assert_allclose(pixels[:16, :10], 1)
    np.testing.assert_allclose(pixels[:16, 10:], 2)
    assert np.isnan(pixels[16:]).all()


def test_padding_outside_the_image_is_cut_off() -> None:
    # A square of 4 × 4 patches around an image twice as wide as high: rows 0 and 3 lie outside it.
    grid = grid_of(4, 4, top=-0.5, bottom=1.5)
    values = np.where(grid.row == 1, 5.0, np.where(grid.row == 2, 7.0, 100.0))
    pixels = grid.spread(values, 8, 4)
    np.testing.assert_allclose(pixels[1], 5 + 2 * 0.25)  # a quarter of the way between the two rows' centres
    np.testing.assert_allclose(pixels[2], 5 + 2 * 0.75)


def test_patches_without_a_value_are_left_to_their_neighbours() -> None:
    values = np.ones(9)
    values[4] = np.nan
    np.testing.assert_allclose(grid_of(3, 3).spread(values, 12, 12), 1)
    hole = grid_of(3, 3)
    keep = np.arange(9) != 4
    holed = PatchGrid(hole.slots[keep], hole.tile[keep], hole.row[keep], hole.column[keep], hole.box[keep])
    np.testing.assert_allclose(holed.spread(np.ones(8), 12, 12), 1)


def test_the_mask_is_what_lies_above_the_percentile() -> None:
    pixels = np.arange(400.0).reshape(20, 20)
    pixels[0] = np.nan
    mask = mask_of(pixels)
    assert mask.sum() == 19  # 5 % of 380
    assert mask[-1, 1:].all()
    assert not mask_of(np.zeros((4, 4))).any()
    assert not mask_of(np.full((4, 4), np.nan)).any()


def peak(drawn: NDArray[np.float32], site: str, layer: int) -> NDArray[np.float32]:
    """Neuron i fires at the image's patch i of every document alone, twice as high in layer 1."""
    drawn[:] = 0
    for document in range(3):
        starts = np.cumsum([0, 13 + 10, 13 + 11])  # windows of ten and eleven answer tokens; the third begins a block
        for i in range(min(len(drawn), SIDE**2)):
            drawn[i, starts[document] + 1 + i] = 1 + layer
    return drawn


@pytest.mark.parametrize("alone", [8, 0])
def test_maps_are_means_at_the_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    monkeypatch.setattr(patch_maps, "ROWS_READ_ALONE", alone)
    capture, _ = plant_captions(tmp_path / "store", values=peak)
    sets = {0: [NeuronSet([(0, 2)]), NeuronSet([(0, 1), (1, 1), (1, 7)])], 2: [NeuronSet([(2, 5)])]}
    maps = {(document, which): patch_map for document, which, patch_map in map_neurons(capture, sets)}
    assert list(maps) == [(0, 0), (0, 1), (2, 0)]
    np.testing.assert_array_equal(maps[0, 0].values, np.eye(9)[2])
    np.testing.assert_allclose(maps[0, 1].values, np.eye(9)[1] + np.eye(9)[7] * 2 / 3)
    np.testing.assert_array_equal(maps[2, 0].values, 3 * np.eye(9)[5])  # the vision tower's layer, another block
    pixels = maps[2, 0].pixels()
    assert pixels.shape == (24, 30)
    row, column = np.unravel_index(np.nanargmax(pixels), pixels.shape)
    assert (row * SIDE // 24, column * SIDE // 30) == (1, 2)


def test_maps_of_contributions_weigh_neurons_by_what_they_write(planted: Planted) -> None:
    capture, what = planted
    result = find_multimodal(capture, FindSettings(k=6, nouns="content"))
    tokens = capture.tokens().to_pydict()
    columns = [i for i in range(len(tokens["id"])) if tokens["document"][i] == 0]
    neurons, weights = result.neurons_of(1), result.products_of(1)
    direction = what["unembedding"][result.nouns[1].token] * what["gain"]
    np.testing.assert_allclose(weights, [float(what["layers"][a][b] @ direction) for a, b in neurons], rtol=1e-4)
    products = [weight for i in range(len(result.nouns)) for weight in result.products_of(i)]
    assert min(products) < 0 < max(products)
    ((_, _, patch_map),) = list(map_neurons(capture, {0: [NeuronSet(neurons, weights)]}))
    rows = [what["values"]["mlp.post", a][b, columns] * weight for (a, b), weight in zip(neurons, weights, strict=True)]
    np.testing.assert_allclose(patch_map.values, np.mean(rows, axis=0)[1:10], rtol=1e-5, atol=1e-6)


def test_positions_that_are_not_kept(tmp_path: Path) -> None:
    some, _ = plant_captions(
        tmp_path / "some", kept=lambda n, p: np.r_[0, 2:6, p - 1 : n].astype(np.int32), values=peak
    )
    ((_, _, patch_map),) = list(map_neurons(some, {0: [NeuronSet([(0, 3)])]}))
    assert [(r, c) for r, c in zip(patch_map.grid.row.tolist(), patch_map.grid.column.tolist(), strict=True)] == [
        (0, 1), (0, 2), (1, 0), (1, 1),
    ]  # fmt: skip
    none, _ = plant_captions(tmp_path / "none", kept=lambda n, p: np.arange(p - 1, n, dtype=np.int32))
    with pytest.raises(InvalidInputError, match=r"holds no position of these images.*`positions=\"all\"`"):
        list(map_neurons(none, {0: [NeuronSet([(0, 3)])]}))


def test_an_image_is_found_again_or_the_reason_is_given(tmp_path: Path) -> None:
    image, note = find_image("gone.png", str(tmp_path), (2000, 1000))
    assert image is None
    assert note == "gone.png no longer exists"
    Image.new("RGB", (5, 5)).save(tmp_path / "there.png")
    image, note = find_image("there.png", str(tmp_path / "images.jsonl"), (5, 5))
    assert image is not None
    assert image.size == (5, 5)
    assert not note
    assert find_image("there.png", str(tmp_path), (6, 5))[1].endswith("5 × 5 pixels and had 6 × 5")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "cannot be read" in find_image("broken.png", str(tmp_path), (6, 5))[1]

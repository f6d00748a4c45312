"""Image layouts: for each vision-language family, which patch of which picture each position of its parts holds.

A layout function is given the image processor, the model's configuration, the original image as a `View` and what the
processor made of it; it repeats the processor's geometry with the library's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.models.vision.patch_geometry import Patches, View

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Layout:
    """The patches of one image at the positions of each part, in the part's order."""

    language: Patches  # the image placeholders among the token ids
    vision: Patches  # rows of the vision tower's layers
    projector: Patches  # rows of the projector's layers


LayOut = Callable[[Any, Any, View, Inputs], Layout]
"""`lay_out(image_processor, config, image, inputs)`."""


def _sized(image: View, size: Any) -> View:
    """An image after the library's plain `resize`."""
    from transformers.image_transforms import get_resize_output_image_size
    from transformers.image_utils import ChannelDimension

    if size.get("height") and size.get("width"):
        return image.resized(size["height"], size["width"])
    blank = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
    height, width = get_resize_output_image_size(
        blank, size["shortest_edge"], default_to_square=False, input_data_format=ChannelDimension.FIRST
    )
    return image.resized(height, width)


def _prepared(processor: Any, image: View) -> View:
    """An image after the steps that the image processor does: padding to a square, resizing, cropping."""
    if getattr(processor, "do_pad", None) and hasattr(processor, "pad_to_square"):
        image = image.squared()
    if processor.do_resize:
        image = _sized(image, dict(processor.size))
    if getattr(processor, "do_center_crop", None):
        image = image.centred(processor.crop_size["height"], processor.crop_size["width"])
    return image


def _side(vision: Any) -> int:
    """The side of a tower's patches in pixels."""
    size = vision.patch_size
    return int(size if isinstance(size, int) else size[0])


def _tower(views: list[View], vision: Any, begins: int = 0) -> list[Patches]:
    """The rows of a tower that reads the views one by one: `begins` tokens of its own (a class token), then the patches."""
    side = _side(vision)
    return [Patches.join([Patches.nowhere(begins), Patches.cut(view, side, tile)]) for tile, view in enumerate(views)]


def _lay_out_tiles(views: list[View], config: Any, begins: int, merge: int = 1) -> Layout:
    """Views one after another; the language model reads their patches merged into squares of `merge` × `merge`."""
    side = merge * _side(config.vision_config)
    language = Patches.join([Patches.cut(view, side, tile) for tile, view in enumerate(views)])
    return Layout(language, Patches.join(_tower(views, config.vision_config, begins)), language)


def _n_begins(config: Any) -> int:
    """Number of tokens that the tower of a LLaVA model puts before the patches: CLIP's class token."""
    return 1 if config.vision_config.model_type == "clip_vision_model" else 0


def _selected(tower: Patches, config: Any) -> Patches:
    """The rows of one picture that go on to the projector: all but the first, where the strategy is "default"."""
    begin = 1 if config.vision_feature_select_strategy == "default" else 0
    return tower.take(np.arange(begin, len(tower)))


def lay_out_llava(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """LLaVA: one picture."""
    (tower,) = _tower([_prepared(processor, image)], config.vision_config, _n_begins(config))
    selected = _selected(tower, config)
    return Layout(selected, tower, selected)


def lay_out_any_resolution(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """LLaVA-NeXT and LLaVA-OneVision: the whole picture, then tiles, which are put together again without their padding.

    The language model reads the whole picture (tile 0), then the rows of the others as one picture (tile 1), a newline token
    after each. The projector has the patches of all tiles, padding included.
    """
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.image_utils import ChannelDimension

    size = dict(processor.size)
    side = size.get("height") or size["shortest_edge"]
    best = select_best_resolution((image.height, image.width), processor.image_grid_pinpoints)
    blank = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
    fit: Any = get_patch_output_size
    fitted = image.resized(*fit(blank, best, input_data_format=ChannelDimension.FIRST))
    canvas = fitted.cropped(-((best[0] - fitted.height) // 2), -((best[1] - fitted.width) // 2), *best)
    rows, columns = best[0] // side, best[1] // side
    tower = _tower([image.resized(side, side), *canvas.tiles(rows, columns)], config.vision_config, _n_begins(config))
    selected = [_selected(tile, config) for tile in tower]
    whole = _put_together(selected[1:], canvas, image, config, (rows, columns))
    return Layout(Patches.join([selected[0], whole]), Patches.join(tower), Patches.join(selected))


def _put_together(tiles: list[Patches], canvas: View, image: View, config: Any, grid: tuple[int, int]) -> Patches:
    """The patches of tiles as one picture, without the rows or columns of its padding; a newline token after each row."""
    a_side = math.isqrt(len(tiles[0]))
    blocks = np.arange(len(tiles) * a_side**2).reshape(*grid, a_side, a_side).transpose(0, 2, 1, 3)
    order: NDArray[np.int64] = blocks.reshape(grid[0] * a_side, grid[1] * a_side)
    n_rows, n_columns = len(order), len(order[0])
    # Rounded as the model does, which removes in patches what its processor padded in pixels.
    above = beside = 0
    if image.width / image.height > n_columns / n_rows:
        above = (n_rows - int(round(image.height * (n_columns / image.width), 7))) // 2
    else:
        beside = (n_columns - int(round(image.width * (n_rows / image.height), 7))) // 2
    order = order[above : n_rows - above, beside : n_columns - beside]
    whole = Patches.join(tiles).arranged(order, tile=1)
    rows, columns = len(order), len(order[0])
    max_tiles = getattr(config, "vision_aspect_ratio", None)
    if max_tiles is not None:  # OneVision shrinks pictures of more tiles, by interpolation
        ratio = math.sqrt(rows * columns / (int(max_tiles.removeprefix("anyres_max_")) * a_side**2))
        if ratio > 1.1:
            unpadded = canvas.resized(n_rows, n_columns).cropped(above, beside, rows, columns)
            rows, columns = int(rows // ratio), int(columns // ratio)
            whole = Patches.grid(unpadded, rows, columns, tile=1)
    lines = np.arange(rows * columns).reshape(rows, columns)
    return Patches.join([part for line in lines for part in (whole.take(line), Patches.nowhere(1))])


def lay_out_qwen(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """Qwen2-VL and Qwen2.5-VL: one picture; squares of patches lie together, and in Qwen2.5-VL's tower windows of them."""
    from transformers.vision_utils import get_vision_window_index

    grid = inputs["image_grid_thw"]
    (_, rows, columns), vision, merge = grid[0].tolist(), config.vision_config, config.vision_config.spatial_merge_size
    patches = Patches.grid(image, rows, columns)
    blocks = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    squares = blocks.transpose(0, 2, 1, 3).reshape(-1, merge * merge)
    language = Patches.grid(image, rows // merge, columns // merge)
    order = np.arange(len(language))
    if getattr(vision, "window_size", None):
        order = get_vision_window_index(grid, merge, vision.window_size, vision.patch_size)[0].numpy()
    return Layout(language, patches.take(squares[order].reshape(-1)), language.take(order))


def lay_out_queries(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """InstructBLIP and BLIP-2: query tokens read one picture, so that only the vision tower's rows have a patch."""
    (tower,) = _tower([_prepared(processor, image)], config.vision_config, begins=1)
    queries = Patches.nowhere(config.num_query_tokens)
    return Layout(queries, tower, queries)


def lay_out_idefics(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """Idefics3 and SmolVLM: tiles of the resized picture row by row, then all of it; or one picture, if it is small."""
    side = processor.max_image_size["longest_edge"]
    n_tiles = inputs["pixel_values"].shape[1]
    views = [image.resized(side, side)]
    if n_tiles > 1:
        from transformers.models.idefics3 import image_processing_pil_idefics3 as library

        height, width = image.height, image.width
        if processor.do_resize:
            blank = np.broadcast_to(np.uint8(0), (3, height, width))
            height, width = library.get_resize_output_image_size(blank, processor.size["longest_edge"])
        # As `resize_for_vision_encoder` rounds the longer side first, and the other from it.
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / side)
            rows = math.ceil(int(columns * side / ratio) / side)
        else:
            rows = math.ceil(height / side)
            columns = math.ceil(int(rows * side * ratio) / side)
        views = [*image.resized(rows * side, columns * side).tiles(rows, columns), *views]
    return _lay_out_tiles(views, config, begins=0, merge=config.scale_factor)


def lay_out_paligemma(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """PaliGemma: one picture."""
    return _lay_out_tiles([_prepared(processor, image)], config, begins=0)


def lay_out_gemma(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """Gemma 3: the whole picture, then the crops of pan and scan side by side, where there are any; patches pooled."""
    n_crops = len(inputs["pixel_values"]) - 1
    views = [_prepared(processor, image)]
    if n_crops:
        wide = image.width >= image.height
        height = image.height if wide else math.ceil(image.height / n_crops)
        width = math.ceil(image.width / n_crops) if wide else image.width
        for crop in range(n_crops):
            top, left = (0, crop * width) if wide else (crop * height, 0)
            # The last one ends where the image does.
            cut = image.cropped(top, left, min(height, image.height - top), min(width, image.width - left))
            views.append(_prepared(processor, cut))
    pooled = (
        config.vision_config.image_size // config.vision_config.patch_size // math.isqrt(config.mm_tokens_per_image)
    )
    return _lay_out_tiles(views, config, begins=0, merge=pooled)


def lay_out_internvl(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """InternVL: tiles of the resized picture row by row, then all of it; or one picture, where one tile fits."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    size = processor.size
    views = [image.resized(size["height"], size["width"])]
    if len(inputs["pixel_values"]) > 1:
        columns, rows = get_optimal_tiled_canvas(
            (image.height, image.width), (size["height"], size["width"]), processor.min_patches, processor.max_patches
        )
        views = [*image.resized(rows * size["height"], columns * size["width"]).tiles(rows, columns), *views]
    begins = 1 if config.vision_feature_select_strategy == "default" else 0
    return _lay_out_tiles(views, config, begins, merge=round(1 / config.downsample_ratio))


def lay_out_mllama(processor: Any, config: Any, image: View, inputs: Inputs) -> Layout:
    """mllama: tiles of a padded canvas, seen through cross-attention: only the vision tower's rows have a patch."""
    from transformers.models.mllama import image_processing_pil_mllama as library

    side, max_tiles = processor.size["height"], processor.max_image_tiles
    height, width = library.get_optimal_tiled_canvas(image.height, image.width, max_tiles, side)
    fitted = library.get_image_size_fit_to_canvas(image.height, image.width, height, width, side)
    canvas = image.resized(*fitted).cropped(0, 0, height, width)
    views = canvas.tiles(int(height) // side, int(width) // side)
    tower = _tower(views, config.vision_config, begins=1)
    n_rows = len(tower[0])
    filled = [Patches.join([tile, Patches.nowhere(-n_rows % 8)]) for tile in tower]
    missing = (config.vision_config.max_num_tiles - len(views)) * (n_rows + -n_rows % 8)
    return Layout(Patches.nowhere(1), Patches.join([*filled, Patches.nowhere(missing)]), Patches.nowhere(0))


LAYOUTS: dict[str, LayOut] = {
    "llava": lay_out_llava,
    "llava_next": lay_out_any_resolution,
    "llava_onevision": lay_out_any_resolution,
    "qwen2_vl": lay_out_qwen,
    "qwen2_5_vl": lay_out_qwen,
    "instructblip": lay_out_queries,
    "blip-2": lay_out_queries,
    "idefics3": lay_out_idefics,
    "smolvlm": lay_out_idefics,
    "paligemma": lay_out_paligemma,
    "gemma3": lay_out_gemma,
    "internvl": lay_out_internvl,
    "mllama": lay_out_mllama,
}
"""Model type → layout function."""

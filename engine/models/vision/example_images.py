"""Example images: the smallest window with an image that a vision-language model runs on, for a walk without weights.

The model is made smaller for it, where that leaves its feed-forwards as they are: fewer patches an image. Knows the inputs
of each family; nothing about what a walk looks for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedConfig

_SIDE = 4
"""Patches along a side of an example image."""


@dataclass(frozen=True)
class ExampleImage:
    """What a walk is made with."""

    config: PreTrainedConfig
    ids: Tensor  # [window, position]
    extra: dict[str, Tensor]


Made = tuple[int, dict[str, "Tensor"]]
"""How many image placeholders a window has, and the further inputs of one window."""


def example_image(config: PreTrainedConfig) -> ExampleImage | None:
    """A window with an image for a model of this configuration; None where none is known for its type."""
    make = _EXAMPLES.get(config.model_type)
    if make is None:
        return None
    small = copy.deepcopy(config)
    count, extra = make(small)
    special = {value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))}
    text = next(token for token in range(4, 100) if token not in special)
    image = next(
        (getattr(config, name) for name in ("image_token_id", "image_token_index") if getattr(config, name, None)), 0
    )
    window = [text] * 3 + [image] * count + [text] * 5
    if config.model_type in _TOKEN_KINDS:
        extra[_TOKEN_KINDS[config.model_type]] = torch.tensor([[int(token == image) for token in window]])
    # Two windows, as a walk on text has.
    return ExampleImage(
        small, torch.tensor([window] * 2), {key: torch.cat([value] * 2) for key, value in extra.items()}
    )


_TOKEN_KINDS = {
    "qwen2_vl": "mm_token_type_ids",
    "qwen2_5_vl": "mm_token_type_ids",
    "gemma3": "token_type_ids",
}
"""Types that are told which of their tokens are the image's, and by which input."""


def _small(config: Any) -> int:
    """Make the images of a fixed size few patches; the side in pixels."""
    vision = config.vision_config
    patch = vision.patch_size
    vision.image_size = _SIDE * patch if isinstance(patch, int) else [_SIDE * side for side in patch]
    return _SIDE * (patch if isinstance(patch, int) else patch[0])


def _one_picture(config: Any) -> Made:
    side = _small(config)
    begins = 1 if getattr(config, "vision_feature_select_strategy", None) == "full" and _is_clip(config) else 0
    return _SIDE**2 + begins, {"pixel_values": torch.zeros(1, 3, side, side)}


def _is_clip(config: Any) -> bool:
    return bool(config.vision_config.model_type == "clip_vision_model")


def _any_resolution(config: Any) -> Made:
    side = _small(config)
    config.image_grid_pinpoints = [[side, side]]  # so that two pictures are seen: all of it, and the one tile
    begins = 1 if config.vision_feature_select_strategy == "full" and _is_clip(config) else 0
    extra = {"pixel_values": torch.zeros(1, 2, 3, side, side), "image_sizes": torch.tensor([[side, side]])}
    return _SIDE**2 + begins + _SIDE * (_SIDE + 1), extra


def _qwen(config: Any) -> Made:
    vision = config.vision_config
    depth = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    side = 2 * vision.spatial_merge_size
    return 4, {"pixel_values": torch.zeros(side**2, depth), "image_grid_thw": torch.tensor([[1, side, side]])}


def _queries(config: Any) -> Made:
    side = _small(config)
    extra = {"pixel_values": torch.zeros(1, 3, side, side)}
    if config.model_type == "instructblip":
        # Not as many as there are queries, which tells the two kinds of rows apart.
        extra["qformer_input_ids"] = torch.full((1, config.num_query_tokens + 1), 4)
        extra["qformer_attention_mask"] = torch.ones_like(extra["qformer_input_ids"])
    return config.num_query_tokens, extra


def _idefics(config: Any) -> Made:
    side = config.vision_config.patch_size * 2 * config.scale_factor
    # A picture that is black altogether counts as none.
    return 4, {"pixel_values": torch.ones(1, 1, 3, side, side)}


def _gemma(config: Any) -> Made:
    side = _small(config)
    config.mm_tokens_per_image = 4
    return 4, {"pixel_values": torch.zeros(1, 3, side, side)}


def _internvl(config: Any) -> Made:
    side = _small(config)
    return int(_SIDE * config.downsample_ratio) ** 2, {"pixel_values": torch.zeros(1, 3, side, side)}


def _mllama(config: Any) -> Made:
    side, tiles = _small(config), config.vision_config.max_num_tiles
    seen = torch.zeros(1, 1, tiles, dtype=torch.long)
    seen[..., 0] = 1
    extra = {
        "pixel_values": torch.zeros(1, 1, tiles, 3, side, side),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": seen,
    }
    return 1, extra


_EXAMPLES: dict[str, Callable[[Any], Made]] = {
    "llava": _one_picture,
    "llava_next": _any_resolution,
    "llava_onevision": _any_resolution,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "instructblip": _queries,
    "blip-2": _queries,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "paligemma": _one_picture,
    "gemma3": _gemma,
    "internvl": _internvl,
    "mllama": _mllama,
}
"""By model type: what makes the configuration small, and returns the example."""

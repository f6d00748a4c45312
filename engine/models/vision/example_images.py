"""Example images: the smallest window with an image that a vision-language model runs on, for a walk without weights.

The model is made smaller for it where that does not change its feed-forwards: fewer patches per image.
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
"""Number of patches along a side of an example image."""


@dataclass(frozen=True)
class ExampleImage:
    """The configuration and inputs of a walk."""

    config: PreTrainedConfig
    ids: Tensor  # [window, position]
    extra: dict[str, Tensor]


ExampleInputs = tuple[int, dict[str, "Tensor"]]
"""The number of image placeholders in a window, and the further inputs of one window."""


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
"""Model type → the input that marks the tokens of the image."""


def _small(config: Any) -> int:
    """Reduce the fixed size of images to a few patches; returns the side in pixels."""
    vision = config.vision_config
    patch = vision.patch_size
    vision.image_size = _SIDE * patch if isinstance(patch, int) else [_SIDE * side for side in patch]
    return _SIDE * (patch if isinstance(patch, int) else patch[0])


def _one_picture(config: Any) -> ExampleInputs:
    side = _small(config)
    begins = 1 if getattr(config, "vision_feature_select_strategy", None) == "full" and _is_clip(config) else 0
    return _SIDE**2 + begins, {"pixel_values": torch.zeros(1, 3, side, side)}


def _is_clip(config: Any) -> bool:
    return bool(config.vision_config.model_type == "clip_vision_model")


def _any_resolution(config: Any) -> ExampleInputs:
    side = _small(config)
    config.image_grid_pinpoints = [[side, side]]  # so that two pictures are seen: all of it, and the one tile
    begins = 1 if config.vision_feature_select_strategy == "full" and _is_clip(config) else 0
    extra = {"pixel_values": torch.zeros(1, 2, 3, side, side), "image_sizes": torch.tensor([[side, side]])}
    return _SIDE**2 + begins + _SIDE * (_SIDE + 1), extra


def _qwen(config: Any) -> ExampleInputs:
    vision = config.vision_config
    depth = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    side = 2 * vision.spatial_merge_size
    return 4, {"pixel_values": torch.zeros(side**2, depth), "image_grid_thw": torch.tensor([[1, side, side]])}


def _queries(config: Any) -> ExampleInputs:
    side = _small(config)
    extra = {"pixel_values": torch.zeros(1, 3, side, side)}
    if config.model_type == "instructblip":
        # Another number than that of the queries, so that the two kinds of rows can be told apart.
        extra["qformer_input_ids"] = torch.full((1, config.num_query_tokens + 1), 4)
        extra["qformer_attention_mask"] = torch.ones_like(extra["qformer_input_ids"])
    return config.num_query_tokens, extra


def _idefics(config: Any) -> ExampleInputs:
    side = config.vision_config.patch_size * 2 * config.scale_factor
    # An image that is all zero counts as padding.
    return 4, {"pixel_values": torch.ones(1, 1, 3, side, side)}


def _gemma(config: Any) -> ExampleInputs:
    side = _small(config)
    config.mm_tokens_per_image = 4
    return 4, {"pixel_values": torch.zeros(1, 3, side, side)}


def _internvl(config: Any) -> ExampleInputs:
    side = _small(config)
    return int(_SIDE * config.downsample_ratio) ** 2, {"pixel_values": torch.zeros(1, 3, side, side)}


def _mllama(config: Any) -> ExampleInputs:
    side, tiles = _small(config), config.vision_config.max_num_tiles
    seen = torch.zeros(1, 1, tiles, dtype=torch.long)
    seen[..., 0] = 1
    extra = {
        "pixel_values": torch.zeros(1, 1, tiles, 3, side, side),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": seen,
    }
    return 1, extra


_EXAMPLES: dict[str, Callable[[Any], ExampleInputs]] = {
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
"""Model type → the function that makes the configuration small and returns the example."""

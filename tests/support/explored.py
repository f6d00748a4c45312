"""Walks over models without weights, made once for models that are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig, PreTrainedModel

    Explore = Callable[[type[PreTrainedModel], PreTrainedConfig], Any]


def once_each(explore: Explore) -> Explore:
    """`explore`, which gives again what it gave for the same class and configuration."""
    explored: dict[Any, Any] = {}

    def explore_once(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Any:
        parts = config, *(getattr(config, name, None) for name in config.sub_configs)
        attention = tuple(getattr(part, "_attn_implementation", None) for part in parts)
        key = kind, config.to_json_string(use_diff=False), attention
        if key not in explored:
            explored[key] = explore(kind, config)
        return explored[key]

    return explore_once

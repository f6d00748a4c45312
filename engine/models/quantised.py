"""Weights of number types that are refused: quantised ones, and float64.

What runs on quantised weights is a kernel on packed integers, which shows no neuron's activation. float64 activations would be
rounded to float32 without a word, as no precision of a capture holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from actstore.engine.models.names import NUMBER_TYPES
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from transformers import PreTrainedConfig

_FIELDS: Final = ("quantization_config", "compression_config")
_FILES: Final = ("quantize_config.json", "quant_config.json", "quantization_config.json")
"""What older tools write next to the weights instead."""


def one_of(names: Sequence[str]) -> str:
    """Names for a message: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def refuse_float64(name: str, dtype: str) -> None:
    """Raise `ModelError` where the weights of a model to be loaded are float64, and are not converted as they are loaded."""
    if dtype not in NUMBER_TYPES:
        raise ModelError(
            f"expected weights in {one_of(NUMBER_TYPES)}, and those of {name!r} are {dtype}, which no precision of a capture"
            ' stores: pass `dtype="float32"`'
        )


def refuse_quantised_checkpoint(name: str, config: PreTrainedConfig) -> None:
    """Raise `ModelError` where a configuration, or a file next to it, says that the weights are quantised."""
    method = next(_methods(config), None)
    if method is None:
        method = next((file for file in _FILES if (Path(name) / file).is_file()), None)
    if method is not None:
        raise ModelError(
            f"expected plain weights in {name!r}, and they are quantised ({method}), which is not supported: name the"
            " checkpoint that they were made from, or save a dequantised copy (model.dequantize().save_pretrained(folder))"
        )


def _methods(config: PreTrainedConfig) -> Iterator[str]:
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "model_type"))]
    for part in parts:
        for field in _FIELDS:
            recorded: Any = getattr(part, field, None)
            if recorded:
                settings = recorded if isinstance(recorded, dict) else vars(recorded)
                method = settings.get("quant_method") or field
                yield str(getattr(method, "value", method))


def refuse_number_types(model: nn.Module) -> None:
    """Raise `ModelError` where a model in memory holds weights in anything else than one of `NUMBER_TYPES`."""
    for name, weight in model.named_parameters():
        if weight.dtype == torch.float64:
            raise ModelError(
                f"expected weights in {one_of(NUMBER_TYPES)}, and {name} of this {type(model).__name__} holds float64, which no"
                " precision of a capture stores: convert the model first, model.float()"
            )
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ModelError(
                f"expected weights in {one_of(NUMBER_TYPES)}, and {name} of this {type(model).__name__} holds"
                f" {str(weight.dtype).removeprefix('torch.')}: quantised weights are not supported, so load the model without"
                " quantisation, or pass what model.dequantize() returns"
            )
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"expected plain weights, and this {type(model).__name__} is quantised, which is not supported: load the model"
            " without quantisation, or pass what model.dequantize() returns"
        )

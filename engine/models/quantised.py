"""Quantised checkpoints, which are refused: what runs is a kernel on packed integers, and shows no neuron's activation.

Knows what transformers records of a quantisation; nothing about any one method.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedConfig

_FIELDS: Final = ("quantization_config", "compression_config")
_FILES: Final = ("quantize_config.json", "quant_config.json", "quantization_config.json")
"""What older tools write beside the weights instead."""


def refuse_quantised_checkpoint(name: str, config: PreTrainedConfig) -> None:
    """Raise `ModelError` where a configuration, or a file beside it, says that the weights are quantised."""
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
            found: Any = getattr(part, field, None)
            if found:
                settings = found if isinstance(found, dict) else vars(found)
                method = settings.get("quant_method") or field
                yield str(getattr(method, "value", method))


def refuse_quantised_weights(model: nn.Module) -> None:
    """Raise `ModelError` where a model in memory holds weights of integers, or of floating-point numbers of one byte."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ModelError(
                f"expected weights in float32, float16 or bfloat16, and {name} of this {type(model).__name__} holds"
                f" {str(weight.dtype).removeprefix('torch.')}: quantised weights are not supported, so load the model without"
                " quantisation, or pass what model.dequantize() returns"
            )
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"expected plain weights, and this {type(model).__name__} is quantised, which is not supported: load the model"
            " without quantisation, or pass what model.dequantize() returns"
        )

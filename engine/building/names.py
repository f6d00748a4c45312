"""The layouts that are imported, as a table that loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS: Final[Mapping[str, str]] = {
    "hooks": "tensors by hook name of TransformerLens, in safetensors files",
    "hidden-states": "a safetensors file per sample with hidden_states and token_ids, as of vLLM and speculators",
    "saelens": "the data set of activations that SAELens caches",
}

"""What stands between the write vectors of a layer and the residual stream at each token, and what a capture lacks of it.

Where a norm follows the feed-forward, or a mixture weights what its experts return, a neuron of activation a adds `a · s · w`
to the stream: s is one number per position and layer, which a capture keeps beside the activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import LayerRecord

UNKNOWN: Final = "unknown"
"""Of layers whose neurons reach the stream through something that no number per position stands for."""
NORMED_TYPES: Final = frozenset((
    "gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "olmo_hybrid", "flex_olmo", "glm4", "exaone4", "hyperclovax", "lfm3",
    "afmoe", "axk1", "kolibri1",
))  # fmt: skip
"""Types with a norm after the feed-forward of which there may be stores whose records do not say so."""
_FACTORS: Final = {
    "norm": "the norm after the feed-forward",
    "weight": "the routing weight or gate",
    "weight,norm": "the routing weight and the norm after it",
}
SUMMED: Final = "scaled_layers"
"""The setting of captures that added up contributions while the model ran: the layers whose scales are in the sums."""


def block_scale(capture: Capture, layer: int, block: int) -> NDArray[np.float32] | None:
    """What each slot of a block multiplies the write vectors of a layer with [token]; None for 1, or where it is not stored.

    0 where an expert did not see the token, and where the number is not finite.
    """
    if layer not in capture.record.write_scale:
        return None
    scale = capture.write_scale(layer, block)
    return np.where(np.isfinite(scale), scale, np.float32(0))


def scale_sentences(capture: Capture, layers: Iterable[int] | None = None, *, summed: bool = False) -> list[str]:
    """What whoever reads contributions of a capture's neurons should know, in sentences: layers whose scale it lacks, and why.

    Of all captured layers that write to the logits, unless named; `summed`: of sums that were made while the model ran.
    """
    captured = capture.record.layers("mlp.post") if "mlp.post" in capture.record.sites else {}
    chosen = captured if layers is None else layers
    by_remedy: dict[str, list[int]] = {}
    for layer in capture.store.model.head_layers:
        if layer.layer in chosen and (remedy := _remedy(capture, layer, summed=summed)) is not None:
            by_remedy.setdefault(remedy, []).append(layer.layer)
    return [
        f"Contributions of {_named(numbers)} of capture {capture.record.name!r} are approximate: {remedy}"
        for remedy, numbers in by_remedy.items()
    ]


def _remedy(capture: Capture, layer: LayerRecord, *, summed: bool) -> str | None:
    """What is missing of a layer, and what to do; None where nothing is."""
    scaled_by, model = layer.scaled_by, capture.store.model
    if scaled_by == "":
        return None
    if scaled_by == UNKNOWN:
        return f"between their write vectors and the logits {model.name} has more than norms and weights, which is left out."
    if scaled_by is None:
        text = model.config.get("text_config") or {}
        is_normed = not NORMED_TYPES.isdisjoint((model.model_type, text.get("model_type")))
        if not is_normed and (layer.expert is None or layer.layer in capture.record.write_scale):
            return None
        what = "the norm after the feed-forward" if is_normed else "routing weights"
        return f"the store is of an earlier version, which did not keep {what}. Capture again, into a new store."
    stored = capture.record.settings.get(SUMMED, ()) if summed else capture.record.write_scale
    if layer.layer in stored:
        return None
    return (
        f"the capture does not hold what {_FACTORS[scaled_by]} multiplies them with at each position. Capture again with "
        "values, under another `name`."
    )


def _named(layers: list[int]) -> str:
    """Layers in words: one, or the first and last of several."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    is_range = layers == list(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if is_range else f"{len(layers)} layers ({layers[0]} to {layers[-1]})"

"""Normalisation of activations by a capture's own statistics, which count every token but special ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.kernels.token_rows.api import Decoding
    from actstore.store.capture.reader import Capture


def normalised(decoding: Decoding, capture: Capture, layer: int, site: str, normalize: str | None) -> Decoding:
    """The decoding of a layer's values, with what `normalize` makes of them: a key of `settings.NORMALISATIONS`, or None.

    A neuron that never varies is shifted and not scaled. `norm` is the form in which sparse autoencoders are trained
    (Templeton et al. 2024); values of experts to which a token was not routed count as 0 in it.
    """
    if normalize is None:
        return decoding
    statistics = capture.layer_statistics(layer, site)
    count, mean = statistics.count, statistics.mean
    variance = statistics.m2 / np.maximum(count, 1)
    if normalize == "neuron":
        std = np.sqrt(variance).astype(np.float32)
        varies = std > np.finfo(np.float32).tiny
        factor = np.divide(1, std, out=np.ones_like(std), where=varies)
        return replace(decoding, shift=mean.astype(np.float32), factor=factor)
    total = int((count + statistics.non_finite).max(initial=0))
    mean_square = float((count * (variance + mean**2)).sum()) / max(total, 1)
    if mean_square <= 0:
        raise InvalidInputError(
            f"Expected activations of layer {layer} at {site} of capture {capture.record.name!r} whose norms are not all 0, to "
            "normalise by. Leave `normalize` out."
        )
    return replace(decoding, factor=np.full(len(mean), np.sqrt(len(mean) / mean_square), np.float32))

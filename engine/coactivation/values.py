"""Blocks of activations as the kernel takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from actstore.kernels.floats import FloatArray
    from actstore.store.reader import Capture


def read_values(capture: Capture, layer: int, block: int, site: str) -> FloatArray:
    """A block of activations [neuron, slot] in a format that kernels take, without a copy in float32 where it has one.

    What `half` stores as infinite for being too large is ±65,504.
    """
    if capture.record.encoding.decode_parameters:
        return cast("FloatArray", capture.block_values(layer, block, site, saturated=True))
    return cast("FloatArray", capture.raw_block(layer, block, site, saturated=True))

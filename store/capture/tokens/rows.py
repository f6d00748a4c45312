"""Blocks of a capture as rows of one token each, and what makes floats of them.

Apart from `reader`, because it loads the compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.kernels.token_rows.api import Decoding, decode_rows, scatter_rows
from actstore.store.capture.overflow import LARGEST
from actstore.store.capture.statistics.exemplars import SCALE
from actstore.store.errors import NotFoundError
from actstore.store.files.token_shards import TokenShard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from actstore.kernels.floats import FloatArray
    from actstore.store.capture.reader import Capture

NEURONS_AT_ONCE: Final = 128
"""Neurons of a block that are decoded before they are transposed: with fewer, what is written of a row is shorter than what
the memory takes at once; more leave the cache."""


TOKENS_AT_ONCE: Final = 256
"""Tokens that are decoded before they are put into their rows, of a block that lies token by token."""


def raw_token_rows(
    capture: Capture,
    layer: int,
    block: int,
    target: NDArray[np.int64],
    out: NDArray[Any],
    *,
    site: str = "mlp.post",
    column: int = 0,
    neurons: NDArray[np.integer[Any]] | None = None,
) -> None:
    """Put a block's values as they are stored into `out` [row, neuron]: those of slot s into row `target[s]`, from `column` on.

    target: [slot], -1 where a slot is left out; no two have the same row. `neurons`, ascending: only these [all]. Every value
    that is put there is held against its checksum.
    """
    shard = capture.values_shard(layer, block, site)
    if neurons is not None and len(neurons):
        capture.check_neuron(layer, int(neurons[0]), site)
        capture.check_neuron(layer, int(neurons[-1]), site)
    if isinstance(shard, TokenShard) and neurons is None:
        shard.scatter(target, out, column)
        return
    if isinstance(shard, TokenShard):
        for first, values in shard.tokens(TOKENS_AT_ONCE):
            rows, chosen = target[first : first + len(values)], values[:, neurons]
            part = out[:, column : column + chosen.shape[1]]
            if (is_wanted := rows >= 0).all():
                part[rows] = chosen
            else:
                part[rows[is_wanted]] = chosen[is_wanted]
        return
    for first, values in shard.parts(NEURONS_AT_ONCE):
        if neurons is None:
            scatter_rows(values, target, out, column + first)
            continue
        begin, end = np.searchsorted(neurons, (first, first + len(values))).tolist()
        if begin < end:
            scatter_rows(values[neurons[begin:end] - first], target, out, column + begin)


def decoding_of(
    capture: Capture, layer: int, blocks: Sequence[int], site: str = "mlp.post", *, saturated: bool = False
) -> Decoding:
    """What makes floats of the stored values of a layer: of blocks with scales, row i of them is that of `blocks[i]`.

    With `saturated`, values that are infinite because the format could not hold them are ±65,504.
    """
    width = capture.record.layers(site)[layer]
    scales = None
    if capture.record.encoding.decode_parameters == (SCALE,):
        scales = np.array([block_scales(capture, layer, block, site) for block in blocks], np.float32).reshape(
            -1, width
        )
    limit = np.full(width, np.inf, np.float32)
    if saturated and capture.overflow:
        limit[capture.has_overflow(layer, site)] = LARGEST
    return Decoding(scales, limit, np.zeros(width, np.float32), np.ones(width, np.float32))


def block_scales(capture: Capture, layer: int, block: int, site: str = "mlp.post") -> NDArray[np.float32]:
    """The scales of a block's int8 steps, as they are stored; shape [neuron]."""
    return capture.block_parameter(SCALE, layer, block, site)


def token_values(
    capture: Capture,
    layer: int,
    block: int,
    out: FloatArray,
    *,
    site: str = "mlp.post",
    neurons: NDArray[np.integer[Any]] | None = None,
    saturated: bool = False,
) -> None:
    """Fill `out` [token, neuron] with the values of a block's slots, padding included, in the format of `out`.

    `out` may have fewer rows than the block has slots: it then gets the first ones. It is float32, float16 or, as bits in
    uint16, bfloat16. `neurons`, ascending: only these [all]. The same values as `Capture.block_values`, and much faster.
    """
    decoding = decoding_of(capture, layer, [block], site, saturated=saturated)
    if neurons is not None:
        scales = None if decoding.scales is None else decoding.scales[:, neurons]
        decoding = Decoding(scales, decoding.limit[neurons], decoding.shift[neurons], decoding.factor[neurons])
    n_slots = capture.record.plan.block_slots
    target = np.arange(n_slots)
    target[len(out) :] = -1
    dtype = stored_dtype(capture)
    is_direct = decoding.is_plain and dtype == out.dtype and out.flags.c_contiguous
    raw = out if is_direct else np.empty(out.shape, dtype)
    raw_token_rows(capture, layer, block, target, raw, site=site, neurons=neurons)
    if not is_direct:
        decode_rows(raw, np.zeros(len(raw), np.int32), decoding, out)


def stored_dtype(capture: Capture) -> np.dtype[Any]:
    """The dtype of stored values; `NotFoundError` where a capture keeps none."""
    form = capture.record.encoding.stored_format
    if form is None:
        raise NotFoundError(
            f"Capture {capture.record.name!r} keeps statistics only (precision none), no values. "
            "Capture again with another `precision`."
        )
    return form.dtype

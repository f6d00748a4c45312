"""The sharded arrays of a capture, as its record has them, and a block of one as the pieces of its shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store import layout
from actstore.store.files.arrays import BlockArraySpec
from actstore.store.files.chunks import TokenRows
from actstore.store.files.shards import shard_parts, shard_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.files.chunks import Rows
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.pieces import Bytes


def encoded_parts(spec: BlockArraySpec, values: Rows, block: int) -> Iterator[Bytes]:
    """A block's `values` [neuron, column] of an array as the pieces of their shard, as of `shard_parts`."""
    rows: Rows = TokenRows(np.asarray(values)) if spec.order == "token" else values
    return shard_parts(rows, spec.grid, spec.compression, shard_seed(spec.identity, spec.key, block))


def block_arrays(record: CaptureRecord) -> Iterator[BlockArraySpec]:
    """Every sharded array that a capture of this record has."""
    slots = record.plan.block_slots
    encoding = record.encoding
    form = encoding.stored_format
    for site in record.sites if form else ():
        assert form is not None
        for layer, width in record.layers(site).items():
            bound = _bound(record, layer, site)
            yield BlockArraySpec(
                layout.values_key(record.name, site, layer),
                width,
                slots,
                form.dtype,
                form.fill_value,
                "token",
                {"value_dtype": form.name, "precision": record.precision, **_how_to_decode(record, site, layer)},
                encoding.compression,
                order=record.order.get(site, layout.ORDERS[0]),
                **bound,
            )
            for name, dtype in encoding.parameters.items():
                key = layout.block_parameters_key(record.name, site, layer, name)
                yield BlockArraySpec(key, width, 1, np.dtype(dtype), 0, "block", **bound)
    widths = record.layers("mlp.post") if "mlp.post" in record.sites else {}
    for layer in record.gate_sign:
        key = layout.gate_sign_key(record.name, layer)
        yield BlockArraySpec(
            key, widths[layer], slots // 8, np.dtype("uint8"), 0, "token_byte", {"bit_order": "little"},
            encoding.sign_compression, **_bound(record, layer, layout.GATE_SIGN),
        )  # fmt: skip
    for layer in record.write_scale:
        key, bound = layout.write_scale_key(record.name, layer), _bound(record, layer, layout.WRITE_SCALE)
        yield BlockArraySpec(key, 1, slots, np.dtype("float32"), np.nan, "position", **bound)


def _how_to_decode(record: CaptureRecord, site: str, layer: int) -> dict[str, str]:
    """For whoever opens the array with Zarr alone, where an element is not the value: readers of ours do not need it."""
    form = record.encoding.stored_format
    if form is not None and form.name == "int8":
        scale = layout.block_parameters_key(record.name, site, layer, "scale")
        rule = f"element * scale[neuron, block], block = token // {record.plan.block_slots}; -128 is no value"
        return {"elements_are": "steps, not values", "decode": rule, "scale": scale}
    if form is not None and form.name == "bfloat16":
        return {"elements_are": "bits, not values", "decode": "the upper half of the bits of a float32"}
    return {}


def _bound(record: CaptureRecord, layer: int, site: str) -> dict[str, Any]:
    """What an array has of its capture."""
    title = f"capture {record.name!r}, layer {layer} ({site})"
    return {"identity": record.identity, "title": title, "bundled": record.bundled}

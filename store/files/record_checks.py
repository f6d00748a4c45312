"""What the fields of records may be: numbers within their ranges, names that are names, counts that agree.

A record's checksum says that it is as it was written, not that what was written can be. Whoever reads a record may take its
numbers for sizes of arrays, and its names for parts of keys.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import FormatError
from actstore.store.layout import ORDERS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# No model and no capture comes near: an array of this many items could not be made anyway.
MAX_LAYERS: Final = 1 << 20
MAX_NEURONS: Final = 1 << 24
"""Of one layer; also the largest width of a residual stream."""
MAX_EXEMPLARS: Final = 10_000
MAX_COUNT: Final = (1 << 31) - 1
"""Documents, windows and blocks: they are numbered in int32."""
MAX_BLOCK_SLOTS: Final = 1 << 24
"""A block has some 16,384 slots, or as many as one window of the model has positions."""

DTYPES: Final = ("float32", "float16", "bfloat16")
"""The formats of values before they are encoded."""

ATTRIBUTION_SITES: Final = ("attribution.ig", "attribution.gradient")
NEURON_SITES: Final = ("mlp.post", "mlp.gate", "mlp.up", *ATTRIBUTION_SITES)
"""Sites with a value for each neuron of a layer; others are as wide as some residual stream."""
STREAM_SITES: Final = ("resid.pre", "resid.mid", "resid.post", "attn.out")
"""Sites of the residual stream, whose axis is `d_model`: what is read there is a token's vector, not a neuron."""

_CHECKSUM: Final = re.compile("[0-9a-f]{8}")


def check_number(where: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `FormatError` unless `value` lies in low…high."""
    if not low <= value <= high:
        raise FormatError(f"{where}: {name} should lie between {low:,} and {high:,}, found {value!r:.80}.")


def check_one_of(where: str, name: str, value: object, known: Collection[object]) -> None:
    """Raise `FormatError` unless `value` is one of those known."""
    if value not in known:
        raise FormatError(f"{where}: {name} should be one of {', '.join(map(str, known))}, found {value!r:.80}.")


def is_name(name: str) -> bool:
    """Whether a string is one part of a key, and can be the name of a folder."""
    return bool(name) and not name.startswith(".") and not any(c in name for c in "/\\\0")


def check_name(where: str, name: str, value: str) -> None:
    """Raise `FormatError` unless `value` can be one part of a key."""
    if not is_name(value):
        raise FormatError(f"{where}: {name} should be a name without path separators, found {value!r:.80}.")


def check_files(where: str, name: str, files: Mapping[str, tuple[int, str]]) -> None:
    """Raise `FormatError` unless `files` are keys, which stay below their folder, each with a size and a CRC-32C."""
    for key, (nbytes, checksum) in files.items():
        if not all(map(is_name, key.split("/"))):
            raise FormatError(f"{where}: {name} should name files below it, found {key!r:.80}.")
        check_number(where, f"{name}, the size of {key},", nbytes, 0)
        if not _CHECKSUM.fullmatch(checksum):
            raise FormatError(
                f"{where}: {name}, the checksum of {key}, should be eight hexadecimal digits, found {checksum!r:.80}."
            )


def check_plan(plan: Any, where: str) -> None:  # a PlanRecord, whose module imports this one
    """Raise `FormatError` unless the counts of a plan can be true together."""
    for name in ("n_documents", "n_windows", "n_blocks"):
        check_number(where, name, getattr(plan, name), 0, MAX_COUNT)
    check_number(where, "block_slots", plan.block_slots, 1, MAX_BLOCK_SLOTS)
    check_number(where, "n_tokens", plan.n_tokens, 0, plan.n_blocks * plan.block_slots)
    # Every block holds a window.
    check_number(where, "n_blocks", plan.n_blocks, min(1, plan.n_windows), plan.n_windows)
    for column, _ in plan.labels:
        check_one_of(where, "the column of a label", column, plan.label_columns)


def check_capture(capture: Any, where: str) -> None:  # a CaptureRecord
    """Raise `FormatError` unless a capture's record can be of some model; see also `check_of_model`."""
    check_name(where, "name", capture.name)
    check_one_of(where, "dtype", capture.dtype, DTYPES)
    check_one_of(where, "float_dtype", capture.float_dtype, (None, *DTYPES))
    if capture.keep is not None:
        check_number(where, "keep", capture.keep, 0, 1)
    check_number(where, "n_exemplars", capture.n_exemplars, 0, MAX_EXEMPLARS)
    for site, layers in capture.sites.items():
        check_name(where, "the name of a site", site)
        if not layers:
            raise FormatError(f"{where}: site {site} should have a layer at least, found none.")
        for layer, width in layers.items():
            if not (layer.isascii() and layer.isdigit() and str(int(layer[:20])) == layer and int(layer) < MAX_LAYERS):
                raise FormatError(f"{where}: a layer of site {site} should be a number, found {layer!r:.80}.")
            check_number(where, f"the width of layer {layer} at {site}", width, 1, MAX_NEURONS)
    of_post = capture.sites.get("mlp.post", {})
    for layer in capture.gate_sign:
        check_one_of(where, "a layer of gate_sign", str(layer), of_post)
    if capture.gate_sign and capture.plan.block_slots % 8:
        raise FormatError(f"{where}: block_slots should be a multiple of 8, found {capture.plan.block_slots}.")
    check_distinct(where, "gate_sign", capture.gate_sign)
    for layer in capture.write_scale:
        check_one_of(where, "a layer of write_scale", str(layer), of_post)
    check_distinct(where, "write_scale", capture.write_scale)
    check_distinct(where, "statistics", capture.statistics)
    for site, order in capture.order.items():
        check_one_of(where, "a site of order", site, capture.sites)
        check_one_of(where, f"the order of site {site}", order, ORDERS)
    probes = capture.settings.get("probes", {})
    if not isinstance(probes, dict):
        raise FormatError(f"{where}: the setting `probes` should be an object, found {type(probes).__name__}.")


def check_distinct(where: str, name: str, values: Collection[object]) -> None:
    """Raise `FormatError` where a value occurs twice."""
    if len(set(values)) != len(values):
        raise FormatError(f"{where}: {name} should hold everything once, found {str(list(values))[:80]}.")


def check_model(model: Any, where: str) -> None:  # a ModelRecord
    """Raise `FormatError` unless the layers of a model are numbered and sized as layers are."""
    check_number(where, "d_model", model.d_model, 1, MAX_NEURONS)
    check_number(where, "n_vocabulary", model.n_vocabulary or 0, 0, MAX_COUNT)
    if not model.layers:
        raise FormatError(f"{where}: layers should hold at least one layer, found none.")
    for number, layer in enumerate(model.layers):
        check_number(where, "the number of a layer, which counts them,", layer.layer, number, number)
        check_number(where, f"the neurons of layer {number}", layer.neurons, 1, MAX_NEURONS)
    check_names(where, "a site", model.sites)
    check_names(where, "a part of the weights", model.weights)


def check_names(where: str, what: str, names: Iterable[str]) -> None:
    """Raise `FormatError` unless all can be one part of a key."""
    for name in names:
        check_name(where, f"the name of {what}", name)


def check_of_model(sites: Mapping[str, Mapping[str, int]], model: Any, where: str) -> None:  # of a ModelRecord
    """Raise `FormatError` unless layers and widths of a capture's sites are those of the store's model."""
    # Attributions are as wide as what they are of: where there are no neurons, another site.
    others = [] if "mlp.post" in sites else [layers for site, layers in sites.items() if site not in NEURON_SITES]
    for site, layers in sites.items():
        for layer, width in layers.items():
            check_number(where, f"a layer of site {site}", int(layer), 0, len(model.layers) - 1)
            if site in ATTRIBUTION_SITES and others:
                expected = others[0].get(layer, 0)
                check_number(where, f"the width of layer {layer} at {site}", width, expected, expected)
            elif site in NEURON_SITES:
                neurons = model.layers[int(layer)].neurons
                check_number(where, f"the width of layer {layer} at {site}", width, neurons, neurons)

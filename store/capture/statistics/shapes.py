"""The shapes that a capture's statistics have by its record: known, and compared, before anything is read into memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from actstore.kernels.pack.statistics import N_BINS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from actstore.store.files.records import CaptureRecord


class Shaped(Protocol):
    """An array, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""


def statistics_shapes(record: CaptureRecord, names: Sequence[str]) -> dict[tuple[str, int], dict[str, tuple[int, ...]]]:
    """(site, layer) → statistic → shape of its array, of those in `names`; nothing is allocated."""
    lengths = _lengths(record)
    return {
        (site, layer): {
            name: tuple((lengths | {"neuron": width})[dimension] for dimension in STATISTICS[name].dimensions)
            for name in names
        }
        for site in record.sites
        for layer, width in record.layers(site).items()
    }


def statistics_nbytes(record: CaptureRecord, names: Sequence[str]) -> int:
    """The most bytes that `CaptureStatistics.encode` takes before it is compressed, with room for what a later version adds."""
    shapes = [shape for of_layer in statistics_shapes(record, names).values() for shape in of_layer.values()]
    widths = record.layers("mlp.post") if record.gate_sign else {}
    n_labels = len(record.plan.labels) + 1
    n_values = sum(map(math.prod, shapes)) + n_labels * (1 + sum(widths[layer] for layer in record.gate_sign))
    # An entry of the header of safetensors, per array, has a name, a dtype, a shape and two offsets.
    return 4 * (8 * n_values + 256 * (len(shapes) + len(record.gate_sign) + 2)) + (1 << 16)


def check_shapes(arrays: Mapping[str, Shaped], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError where a statistic has another shape, or holds no numbers."""
    for name, array in arrays.items():
        if array.shape != expected[name] or array.dtype.kind not in "iuf":
            raise ValueError(f"{name} is {array.shape} {array.dtype}, expected {expected[name]}")


def check_labels(record: CaptureRecord, gates: Mapping[int, Shaped], labels: Shaped) -> None:
    """Raise ValueError where a count by label is not one for each label of the capture."""
    n_labels, widths = len(record.plan.labels) + 1, record.layers("mlp.post") if gates else {}
    arrays = {f"gate_sign/{layer}/positives": positives for layer, positives in gates.items()}
    expected: dict[str, tuple[int, ...]] = {
        f"gate_sign/{layer}/positives": (n_labels, widths[layer]) for layer in gates
    }
    check_shapes(arrays | {"label_tokens": labels}, expected | {"label_tokens": (n_labels,)})


def site_shape(record: CaptureRecord, site: str, name: str) -> tuple[int, ...]:
    """The shape of a finished statistic of a site, the neurons of all its layers together."""
    lengths = _lengths(record) | {"neuron": sum(record.layers(site).values())}
    return tuple(lengths[dimension] for dimension in STATISTICS[name].dimensions)


def _lengths(record: CaptureRecord) -> dict[str, int]:
    return {"label": len(record.plan.labels) + 1, "bin": N_BINS, "k": record.n_exemplars}

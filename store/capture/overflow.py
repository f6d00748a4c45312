"""Which values of a capture are stored as infinite because its format could not hold them.

float16 ends at 65,504; what lies beyond it is rounded to ±∞, as IEEE 754 says. Statistics count such values before they are
stored. In captures of earlier versions they are not counted, but the extremes, which are exact, show most neurons that have
some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord

LARGEST: Final = 65504
"""The largest float16."""
_LIMIT: Final = 65520
"""The smallest magnitude that float16 rounds to infinity."""
OVERFLOW_COLUMNS: Final = ("site", "layer", "min", "max", "overflow")


def can_overflow(record: CaptureRecord) -> bool:
    """Whether a capture's values are stored in a format whose range is smaller than that of what the model computes in."""
    return record.encoding.can_overflow


@dataclass(frozen=True)
class Overflow:
    """Which of a site's stored values are infinite where the model's were finite."""

    neurons: dict[int, NDArray[np.bool_]]
    """Layer → whether a neuron has such values; shape [neuron]."""
    counts: dict[int, NDArray[np.int64]] | None
    """Layer → how many, special tokens included; [neuron]. None in captures of earlier versions, which did not count them."""

    @property
    def names(self) -> list[str]:
        """`L3.N17` of each neuron that has such values."""
        return [neuron_name(layer, i) for layer, has in self.neurons.items() for i in np.flatnonzero(has).tolist()]

    @property
    def n_values(self) -> int | None:
        """How many such values there are; None where they were not counted."""
        return None if self.counts is None else sum(int(counts.sum()) for counts in self.counts.values())

    def of(self, neurons: Iterable[tuple[int, int]]) -> Overflow:
        """The overflow of some neurons (layer, index) alone."""
        mask = {layer: np.zeros(len(has), np.bool_) for layer, has in self.neurons.items()}
        for layer, index in neurons:
            mask[layer][index] = True
        counts = self.counts and {layer: np.where(mask[layer], n, 0) for layer, n in self.counts.items()}
        return Overflow({layer: has & mask[layer] for layer, has in self.neurons.items()}, counts)


def find_overflow(table: pa.Table, record: CaptureRecord) -> dict[str, Overflow]:
    """Site → its overflow, by a table of neurons with at least the `OVERFLOW_COLUMNS` that the capture has."""
    return {site: _of_site(table, record, site) for site in record.sites}


def _of_site(table: pa.Table, record: CaptureRecord, site: str) -> Overflow:
    rows = table.filter(pa.array(table["site"].cast(pa.string()).to_numpy(zero_copy_only=False) == site))
    lowest, highest = (rows[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("min", "max"))
    has, counts = (lowest <= -_LIMIT) | (highest >= _LIMIT), None  # NaN, over no value, is neither
    layers = rows["layer"].to_numpy()
    if "overflow" in rows.column_names and not rows["overflow"].null_count:
        n = rows["overflow"].to_numpy()
        has, counts = has | (n > 0), {layer: n[layers == layer] for layer in record.layers(site)}
    return Overflow({layer: has[layers == layer] for layer in record.layers(site)}, counts)


def saturate(values: NDArray[Any], has_overflow: NDArray[np.bool_]) -> NDArray[Any]:
    """`values` [neuron, …] with ±65,504 for the infinities of the neurons that have some from overflow.

    A copy where there are such neurons. In them, values that were infinite in the model already cannot be told apart and are
    replaced too.
    """
    rows = np.flatnonzero(has_overflow)
    if not len(rows):
        return values
    values = values.copy()
    values[rows] = np.clip(values[rows], -LARGEST, LARGEST)  # NaN stays
    return values

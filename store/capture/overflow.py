"""Which values of a capture are stored as infinite because its format could not hold them, and what is said of that.

float16 ends at 65,504; what lies beyond it is rounded to ±∞, as IEEE 754 says. Statistics count such values before they are
stored. In captures of earlier versions they are not counted, but the extremes, which are exact, show most neurons that have
some. Knows nothing about how values are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.store.files.parquet import open_table
from actstore.store.layout import table_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import CaptureRecord

LARGEST: Final = 65504
"""The largest float16."""
_LIMIT: Final = 65520
"""The smallest magnitude that float16 rounds to infinity."""
_COLUMNS: Final = ("site", "layer", "min", "max", "overflow")
_NAMED: Final = 3
"""Neurons that a sentence names."""


def can_overflow(record: CaptureRecord) -> bool:
    """Whether a capture's values are stored in a format whose range is smaller than that of what the model computes in."""
    return record.precision == "half" and record.held_dtype != "float16"


@dataclass(frozen=True)
class Overflow:
    """What of a site's stored values is infinite where the model's were finite."""

    neurons: dict[int, NDArray[np.bool_]]
    """Layer → whether a neuron has such values; shape [neuron]."""
    counts: dict[int, NDArray[np.int64]] | None
    """Layer → how many, special tokens included; [neuron]. None in captures of earlier versions, which did not count them."""

    @property
    def names(self) -> list[str]:
        """`L3.N17` of each neuron that has such values."""
        return [f"L{layer}.N{i}" for layer, has in self.neurons.items() for i in np.flatnonzero(has).tolist()]

    @property
    def n_values(self) -> int | None:
        """How many such values there are; None where they were not counted."""
        return None if self.counts is None else sum(int(counts.sum()) for counts in self.counts.values())

    def of(self, chosen: Iterable[tuple[int, int]]) -> Overflow:
        """That of some neurons (layer, index) alone."""
        mask = {layer: np.zeros(len(has), np.bool_) for layer, has in self.neurons.items()}
        for layer, index in chosen:
            mask[layer][index] = True
        counts = self.counts and {layer: np.where(mask[layer], n, 0) for layer, n in self.counts.items()}
        return Overflow({layer: has & mask[layer] for layer, has in self.neurons.items()}, counts)


def read_overflow(capture: Capture) -> dict[str, Overflow]:
    """Site → its overflow, over the committed blocks; nothing where the capture's format cannot overflow."""
    record = capture.record
    if not can_overflow(record):
        return {}
    if capture.is_finished:
        file = open_table(capture.folder, table_key(record.name, "neurons"))
        table = file.read(columns=[name for name in _COLUMNS if name in file.schema_arrow.names])
    else:
        table = capture.neurons()
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

    A copy where there is one. What such a neuron's model gave as infinite cannot be told from it, and is taken likewise.
    """
    rows = np.flatnonzero(has_overflow)
    if not len(rows):
        return values
    values = values.copy()
    values[rows] = np.clip(values[rows], -LARGEST, LARGEST)  # NaN stays
    return values


def saturated_maxima(
    capture: Capture, layer: int, site: str, has_overflow: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """The largest finite activation of each neuron of a layer, as far as stored values can show it; shape [neuron].

    The statistics' own, which is exact, but where values overflowed 65,504: a share of it is then reached by stored values.
    `has_overflow` [neuron] says where that is, if not in this capture.
    """
    maxima = capture.layer_statistics(layer, site).maximum
    if has_overflow is None:
        has_overflow = capture.has_overflow(layer, site)
    return np.where(has_overflow, np.minimum(maxima, np.float32(LARGEST)), maxima)


def overflows_in_any(captures: Sequence[Capture], layer: int, site: str) -> NDArray[np.bool_]:
    """Which neurons of a layer have values that one of some captures stores as infinite; shape [neuron]."""
    overflows: NDArray[np.bool_] = np.any([capture.has_overflow(layer, site) for capture in captures], axis=0)
    return overflows


def overflow_sentence(capture: Capture, site: str, found: Overflow, consequence: str) -> str | None:
    """What to tell who uses the values of a site of which `found` overflowed; None where none did."""
    if not (names := found.names):
        return None
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    neurons = f"{len(names):,} neuron{'' if len(names) == 1 else 's'} ({shown})"
    one = found.n_values == 1
    what = "Activations" if found.n_values is None else f"{found.n_values:,} activation{'' if one else 's'}"
    return (
        f"{what} of {neurons} at {site} of capture {capture.record.name!r} {'lies' if one else 'lie'} beyond {LARGEST:,}, "
        f"the largest float16, and {'is' if one else 'are'} stored as infinite: {consequence}. Capture with --precision exact "
        "to keep every value."
    )


COUNTED_AS: Final = f"such a value counts as {LARGEST:,} here"
"""What readers that compute with `saturated` values make of them."""


def overflow_sentences(
    capture: Capture,
    sites: Collection[str] | None = None,
    consequence: str = COUNTED_AS,
    neurons: Sequence[tuple[int, int]] | None = None,
) -> list[str]:
    """`overflow_sentence` of each of some sites that has something to say; of all sites, and all neurons, unless named."""
    found = {site: of for site, of in capture.overflow.items() if sites is None or site in sites}
    if neurons is not None:
        found = {site: of.of(neurons) for site, of in found.items()}
    sentences = (overflow_sentence(capture, site, of, consequence) for site, of in found.items())
    return [sentence for sentence in sentences if sentence is not None]

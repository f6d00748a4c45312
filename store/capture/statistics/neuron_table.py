"""The table of neurons: what a capture's statistics say of each neuron, in columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.kernels.pack.statistics import STATISTICS, quantiles
from actstore.store.capture.statistics.capture_statistics import layer_offsets, write_finished_arrays
from actstore.store.capture.tables import read_capture_table, write_capture_table
from actstore.store.errors import FIND_DAMAGE, FormatError
from actstore.store.files.table_columns import group_rows
from actstore.store.layout import committed_key, folded_statistics_key, table_key
from actstore.store.neurons import neuron_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from actstore.kernels.pack.statistics import Statistics
    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.capture.tables import OpenCapture
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def write_finished(folder: Folder, record: CaptureRecord, total: CaptureStatistics) -> None:
    """Write the arrays of all sites, then the table of neurons, which says that they are complete.

    Of a capture that is not finished, or by `unfinish` not any more.
    """
    write_finished_arrays(folder, record, total)
    write_capture_table(folder, record, "neurons", neuron_table(record, total), neuron_groups(record))


def neuron_groups(record: CaptureRecord) -> list[int]:
    """The rows of each row group of a table with a row per site and neuron."""
    return group_rows(width for site in record.sites for width in record.layers(site).values())


def read_neuron_row(
    capture: OpenCapture, table: str, site: str, layer: int, neuron: int, columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """One neuron's row of a table of a finished capture with a row per site and neuron: some columns, or all.

    `FormatError` where it is another neuron's.
    """
    record, opened = capture.record, capture.table(table)
    sites = [*record.sites]
    row = sum(sum(record.layers(other).values()) for other in sites[: sites.index(site)])
    row += layer_offsets(record, site)[layer].start + neuron
    found: dict[str, Any] = (opened.rows(row, row + 1, columns).to_pylist() or [{}])[0]
    if (found.get("site"), found.get("layer"), found.get("neuron")) != (site, layer, neuron):
        raise FormatError(
            f"{capture.folder}/{table_key(record.name, table)} is damaged: row {row} should be neuron {neuron} of layer "
            f"{layer} at {site}.",
            FIND_DAMAGE,
        )
    return found


def read_finished_table(folder: Folder, record: CaptureRecord) -> pa.Table:
    """The table of neurons of a finished capture; `FormatError` where it has not one row per site and neuron."""
    table = read_capture_table(folder, record, "neurons", ("site", "layer", "neuron", "name"))
    expected = sum(sum(record.layers(site).values()) for site in record.sites)
    if table.num_rows != expected:
        raise FormatError(
            f"{folder}/{table_key(record.name, 'neurons')} is damaged: it has {table.num_rows} rows, expected {expected}."
        )
    return table


def unfinish(folder: Folder, capture: str) -> None:
    """Remove what says that a capture is finished; the index first, for readers that have it look no further."""
    folder.delete(committed_key(capture))
    folder.delete(table_key(capture, "neurons"))


def remove_finished(folder: Folder, capture: str) -> None:
    """Remove what says that a capture is finished, first, and what is added up of its blocks, of which some are to change."""
    unfinish(folder, capture)
    for table in ("exemplars", "prompts", "queries"):
        folder.delete(table_key(capture, table))
    folder.delete(folded_statistics_key(capture))


def neuron_table(record: CaptureRecord, total: CaptureStatistics) -> pa.Table:
    """One row per site and neuron: moments, quantiles, shares of positive values, the top exemplar.

    Quantiles are estimates from the histogram; `quantile_error` bounds how far any of a neuron's may be from the true one.
    A statistic that the capture lacks has no column.
    """
    layers = (
        _layer_table(_Layer(record, total, site, layer, statistics))
        for (site, layer), statistics in total.sites.items()
    )
    return pa.concat_tables(layers).unify_dictionaries()


@dataclass(frozen=True)
class _Layer:
    """What the columns of one layer's neurons at a site are made of."""

    record: CaptureRecord
    total: CaptureStatistics
    site: str
    layer: int
    statistics: Statistics

    @cached_property
    def n_neurons(self) -> int:
        return len(self.statistics.count)

    @cached_property
    def n_values(self) -> NDArray[np.int64]:
        """Finite values per neuron, at least 1: a divisor."""
        return np.maximum(self.statistics.count, 1)

    def defined(self, array: NDArray[Any]) -> pa.Array:
        """A column that is null for neurons without a finite value."""
        return pa.array(array, mask=self.statistics.count == 0)

    def shares_by_label(self, positives: NDArray[np.int64]) -> pa.Array:
        """Label → share of its tokens; positives: [label, neuron], the last row over all tokens."""
        names = [f"{column}={value}" for column, value in self.record.plan.labels]
        shares = positives[:-1] / np.maximum(self.total.label_tokens[:-1, None], 1)
        offsets = np.arange(self.n_neurons + 1, dtype=np.int32) * len(names)
        return pa.MapArray.from_arrays(
            offsets, pa.array(names * self.n_neurons, pa.string()), pa.array(shares.T.ravel())
        )


_Columns = dict[str, Any]
"""Name of a column → its values, as `pa.table` takes them."""


def _quantile_columns(layer: _Layer) -> _Columns:
    statistics = layer.statistics
    values = quantiles(statistics.histogram, list(QUANTILES), statistics.minimum, statistics.maximum)
    error = np.maximum(values.estimate - values.low, values.high - values.estimate).max(axis=1)
    columns = {f"q{round(q * 100):02d}": layer.defined(values.estimate[:, i]) for i, q in enumerate(QUANTILES)}
    return columns | {"quantile_error": layer.defined(error)}


def _positive_columns(layer: _Layer) -> _Columns:
    positives = layer.statistics.positives
    gate = layer.total.gate_positives.get(layer.layer) if layer.site == "mlp.post" else None
    columns = {
        "positive": layer.defined(positives[-1] / layer.n_values),
        "positive_by_label": layer.shares_by_label(positives),
    }
    if gate is None:
        return columns | {
            "gate_positive": pa.nulls(layer.n_neurons, pa.float64()),
            "gate_positive_by_label": pa.nulls(layer.n_neurons, pa.map_(pa.string(), pa.float64())),
        }
    return columns | {
        "gate_positive": pa.array(gate[-1] / max(int(layer.total.label_tokens[-1]), 1)),
        "gate_positive_by_label": layer.shares_by_label(gate),
    }


def _top_exemplar_columns(layer: _Layer) -> _Columns:
    values, tokens = layer.statistics.exemplar_values, layer.statistics.exemplar_tokens
    if tokens.shape[1] == 0:
        top_token, top_value = np.full(layer.n_neurons, -1, np.int64), layer.statistics.maximum
    else:
        top_token, top_value = tokens[:, 0], values[:, 0]
    return {"top_value": pa.array(top_value, mask=top_token < 0), "top_token": pa.array(top_token, mask=top_token < 0)}


_COLUMNS: Final[dict[str, Callable[[_Layer], _Columns]]] = {
    "mean": lambda layer: {"mean": layer.defined(layer.statistics.mean)},
    "m2": lambda layer: {"std": layer.defined(np.sqrt(layer.statistics.m2 / layer.n_values))},
    "minimum": lambda layer: {"min": layer.defined(layer.statistics.minimum)},
    "maximum": lambda layer: {"max": layer.defined(layer.statistics.maximum)},
    "histogram": _quantile_columns,
    "positives": _positive_columns,
    "exemplar_tokens": _top_exemplar_columns,
}
"""Statistic → its columns; one of a single number per neuron that is not named here is a column of its own name."""


def _layer_table(layer: _Layer) -> pa.Table:
    n = layer.n_neurons
    columns: _Columns = {
        "site": pa.array([layer.site] * n).dictionary_encode(),
        "layer": pa.array(np.full(n, layer.layer, np.int32)),
        "neuron": pa.array(np.arange(n, dtype=np.int32)),
        "name": pa.array(neuron_names([layer.layer] * n, range(n))),
    }
    for name, array in layer.statistics.arrays().items():
        if name in _COLUMNS:
            columns |= _COLUMNS[name](layer)
        elif STATISTICS[name].dimensions == ("neuron",):
            columns[name] = array
    return pa.table(columns)

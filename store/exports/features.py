"""Neurons as SAEDashboard describes features for Neuronpedia: JSON with exemplars, promoted tokens, correlated neurons.

The field names are those of its `NeuronpediaDashboardBatch` and `NeuronpediaDashboardFeature`. What a store does not know of a
neuron is an empty list: alignments of a decoder, histograms of logits.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.kernels.pack.statistics import HISTOGRAM_EDGES
from actstore.store.model.root import read_neurons
from actstore.store.neuron import Neuron
from actstore.store.neurons import NeuronIndex, neuron_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.store.exports.selection import Selection

PER_BATCH: Final = 128
EXEMPLARS: Final = 20
CONTEXT: Final = 24
N_TOKENS: Final = 10
"""Promoted and suppressed tokens of a neuron."""
TOP: Final = -1
"""What bounds and share of the group of largest activations are, in this layout."""


def write_batches(selection: Selection, folder: Path) -> int:
    """A file `batch-N.json` per 128 neurons of a layer; the number of tokens."""
    folder.mkdir()
    capture, described = selection.capture, _described(selection)
    number = 0
    for layer in sorted({layer for layer, _ in selection.neurons}):
        indices = sorted({index for one, index in selection.neurons if one == layer})
        for first in range(0, len(indices), PER_BATCH):
            neurons = indices[first : first + PER_BATCH]
            batch = {
                "model_id": capture.store.model.name,
                "layer": layer,
                "sae_set": f"{layer}-{selection.site}",
                "features": [described(layer, index) for index in neurons],
            }
            text = json.dumps(batch, ensure_ascii=False, allow_nan=False)
            (folder / f"batch-{number}.json").write_text(text, encoding="utf-8")
            number += 1
    _tell(selection)
    return selection.n_tokens


def write_lines(selection: Selection, path: Path) -> int:
    """A line per neuron, with its name, layer and site; the number of tokens."""
    described = _described(selection)
    with path.open("w", encoding="utf-8") as file:
        for layer, index in dict.fromkeys(selection.neurons):
            line = {"name": neuron_name(layer, index), "layer": layer, "site": selection.site} | described(layer, index)
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    _tell(selection)
    return selection.n_tokens


def _tell(selection: Selection) -> None:
    for block in selection.capture.blocks:
        selection.on_block(block)


class _described:
    """Gives what the layout says of a neuron."""

    def __init__(self, selection: Selection) -> None:
        self._selection, self._capture = selection, selection.capture
        model = self._capture.store.model
        self._index = NeuronIndex({layer.layer: layer.neurons for layer in model.layers})
        columns = [f"{side}_{what}" for side in ("top", "bottom") for what in ("texts", "products")]
        table = read_neurons(self._capture.folder)
        has_tokens = selection.site == "mlp.post" and set(columns) <= set(table.column_names)
        self._tokens = table.select(columns) if has_tokens else None
        lengths = self._capture.windows()["n_inputs"].to_numpy()
        self._n_positions = int(lengths.max(initial=0))

    def __call__(self, layer: int, index: int) -> dict[str, Any]:
        capture, site = self._capture, self._selection.site
        neuron = Neuron(capture.store, layer, index)  # type: ignore[arg-type]  # the root of a capture is a store
        name = capture.record.name
        statistics = neuron.statistics(name, site)
        values, heights = _bars(neuron.histogram(name, site)[0])
        others = (self._selection.correlated or {}).get((layer, index), ())
        return {
            "feature_index": index,
            "neuron_alignment_indices": [],
            "neuron_alignment_values": [],
            "neuron_alignment_l1": [],
            "correlated_neurons_indices": [other for other, _ in others],
            "correlated_neurons_l1": [],
            "correlated_neurons_pearson": [round(float(pearson), 6) for _, pearson in others],
            "correlated_features_indices": [],
            "correlated_features_l1": [],
            "correlated_features_pearson": [],
            **self._promoted(layer, index),
            "frac_nonzero": _number(statistics.get("positive")),
            "freq_hist_data_bar_values": values,
            "freq_hist_data_bar_heights": heights,
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            "n_prompts_total": capture.record.plan.n_windows,
            "n_tokens_in_prompt": self._n_positions,
            "dataset": capture.record.plan.corpus,
            "decoder_weights_dist": [],
            "activations": [_activation(row) for row in neuron.exemplars(EXEMPLARS, name, site, CONTEXT).to_pylist()],
        }

    def _promoted(self, layer: int, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self._tokens is not None:
            row = self._tokens.slice(self._index.number(layer, index), 1).to_pylist()[0]
        names = {
            "pos_str": "top_texts",
            "pos_values": "top_products",
            "neg_str": "bottom_texts",
            "neg_values": "bottom_products",
        }
        return {ours: (row.get(theirs) or [])[:N_TOKENS] for ours, theirs in names.items()}


def _bars(counts: np.ndarray[Any, Any]) -> tuple[list[float], list[int]]:
    """Middles and heights of the bins of values above zero that are not empty."""
    lower, upper = HISTOGRAM_EDGES[:-1], HISTOGRAM_EDGES[1:]
    chosen = (lower > 0) & np.isfinite(upper) & (counts > 0)
    return ((lower[chosen] + upper[chosen]) / 2).astype(float).round(6).tolist(), counts[chosen].astype(int).tolist()


def _activation(exemplar: Mapping[str, Any]) -> dict[str, Any]:
    """An exemplar; a value that is not stored is that of the exemplar at its token, and 0 elsewhere."""
    n, pivot = len(exemplar["tokens"]), exemplar["pivot"]
    values = [_number(value) for value in exemplar["activations"] or [0.0] * n]
    values[pivot] = _number(exemplar["value"])
    return {
        "bin_min": TOP, "bin_max": TOP, "bin_contains": TOP, "tokens": exemplar["tokens"], "values": values,
        "qualifying_token_index": pivot,
    }  # fmt: skip


def _number(value: Any) -> float:
    return round(float(value), 6) if value is not None and math.isfinite(value) else 0.0

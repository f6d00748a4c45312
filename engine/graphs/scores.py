"""How well firing was predicted: counts for each neuron, means over neurons. Knows nothing about what predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEASURES = ("precision", "recall", "f1", "correlation")


class Score(NamedTuple):
    """One neuron over its test windows."""

    hits: int
    """Tokens at which it fires and is predicted to."""
    predicted: int
    fires: int
    correlation: float
    """Of predicted and true activations; NaN where the true ones do not vary, 0 where only the predicted ones do not."""


def score(predicted: NDArray[np.bool_], value: NDArray[Any], truth: NDArray[np.float32], share: float) -> Score:
    """What a prediction is worth at some tokens.

    predicted: [token] whether the neuron is said to fire. value: [token] its predicted activation. truth: [token] its
    activation, in shares of its maximum; tokens where it is not finite are left out.
    """
    known = np.isfinite(truth)
    predicted, value, truth = predicted[known], value[known].astype(np.float64), truth[known]
    fires = truth >= np.float32(share)
    true = truth.astype(np.float64)
    x, y = value - value.mean() if len(value) else value, true - true.mean() if len(true) else true
    spread, needed = float(np.sqrt((x * x).sum() * (y * y).sum())), float((y * y).sum())
    correlation = float((x * y).sum()) / spread if spread > 0 else (0.0 if needed > 0 else np.nan)
    return Score(int((predicted & fires).sum()), int(predicted.sum()), int(fires.sum()), correlation)


@dataclass
class Tally:
    """The scores of many neurons by one method on one kind of test windows."""

    scores: list[Score] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)

    def add(self, layer: int, found: Score, *, failed: bool = False) -> None:
        """Count a neuron of a layer; one whose graph failed scores 0."""
        self.scores.append(found)
        self.layers.append(layer)
        self.failed.append(failed)

    def measures(self) -> NDArray[np.float64]:
        """Precision, recall, F1 and correlation of each neuron; shape [measure, neuron].

        Where nothing fires and nothing is predicted, the first three are NaN. Where only one of the two is so, all are 0.
        """
        rows = np.array(self.scores, np.float64).reshape(-1, 4)
        hits, predicted, fires, correlation = rows.T
        empty = predicted + fires == 0
        with np.errstate(invalid="ignore"):
            all_three = [hits / np.maximum(n, 1) for n in (predicted, fires, (predicted + fires) / 2)]
        found = np.array([*(np.where(empty, np.nan, m) for m in all_three), correlation])
        found[:, np.array(self.failed, bool)] = 0.0
        return found

    def summary(self) -> dict[str, Any]:
        """Means over the neurons for which a measure is defined, in all and by layer.

        `undefined` counts neurons that neither fire in their test windows nor are predicted to: no mean has them.
        """
        measures, layers = self.measures(), np.array(self.layers, np.int64)
        by_layer = [{"layer": int(layer), **_means(measures[:, layers == layer])} for layer in np.unique(layers)]
        return {**_means(measures), "by_layer": by_layer}


def _means(measures: NDArray[np.float64]) -> dict[str, Any]:
    defined = np.isfinite(measures)
    means = [float(row[d].mean()) if d.any() else None for row, d in zip(measures, defined, strict=True)]
    return {**dict(zip(MEASURES, means, strict=True)), "undefined": int((~defined[2]).sum())}

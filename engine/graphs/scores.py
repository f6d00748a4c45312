"""How well firing was predicted: counts per neuron, and means over neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEASURES: Final = ("precision", "recall", "f1", "correlation")
"""The measures of a prediction, in the order of `ScoreList.measures`."""


class Score(NamedTuple):
    """The counts of one neuron over its test windows."""

    hits: int
    """Number of tokens at which it fires and is predicted to fire."""
    predicted: int
    fires: int
    correlation: float
    """Of predicted and true activations; NaN where the true ones are constant, 0 where only the predicted ones are."""


def score(predicted: NDArray[np.bool_], value: NDArray[np.floating], truth: NDArray[np.float32], share: float) -> Score:
    """The score of a prediction at some tokens.

    predicted: [token] whether the neuron is predicted to fire. value: [token] its predicted activation. truth: [token] its
    activation, as a share of its maximum; tokens where it is not finite are left out.
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
class ScoreList:
    """The scores of many neurons by one method on one kind of test windows."""

    scores: list[Score] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)

    def add(self, layer: int, score: Score, *, failed: bool = False) -> None:
        """Add the score of a neuron of a layer; the measures of a failed graph are 0."""
        self.scores.append(score)
        self.layers.append(layer)
        self.failed.append(failed)

    def measures(self) -> NDArray[np.float64]:
        """Precision, recall, F1 and correlation of each neuron; shape [measure, neuron].

        Precision, recall and F1 are NaN where the neuron neither fires nor is predicted to; they are 0 where only one is so.
        """
        rows = np.array(self.scores, np.float64).reshape(-1, 4)
        hits, predicted, fires, correlation = rows.T
        empty = predicted + fires == 0
        with np.errstate(invalid="ignore"):
            ratios = [hits / np.maximum(n, 1) for n in (predicted, fires, (predicted + fires) / 2)]
        measures = np.array([*(np.where(empty, np.nan, ratio) for ratio in ratios), correlation])
        measures[:, np.array(self.failed, bool)] = 0.0
        return measures

    def summary(self) -> dict[str, Any]:
        """The mean of each measure over the neurons for which it is defined, in total and by layer.

        `undefined` is the number of neurons that neither fire in their test windows nor are predicted to.
        """
        measures, layers = self.measures(), np.array(self.layers, np.int64)
        by_layer = [{"layer": int(layer), **_means(measures[:, layers == layer])} for layer in np.unique(layers)]
        return {**_means(measures), "by_layer": by_layer}


def _means(measures: NDArray[np.float64]) -> dict[str, Any]:
    defined = np.isfinite(measures)
    means = [float(row[d].mean()) if d.any() else None for row, d in zip(measures, defined, strict=True)]
    return {**dict(zip(MEASURES, means, strict=True)), "undefined": int((~defined[2]).sum())}

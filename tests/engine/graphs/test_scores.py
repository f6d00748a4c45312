"""Scores and their means, compared with counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.graphs.scores import Score, ScoreList, score


def test_counts_and_correlation_of_one_neuron() -> None:
    truth = np.array([1.0, 0.5, 0.49, -0.2, np.nan, np.inf, 0.7], np.float32)
    predicted = np.array([True, False, True, False, True, True, True])
    value = np.array([0.9, 0.0, 0.6, 0.0, 0.9, 0.9, 0.8], np.float32)
    result = score(predicted, value, truth, 0.5)
    known = [0, 1, 2, 3, 6]
    assert result[:3] == (2, 3, 3)
    assert result.correlation == pytest.approx(np.corrcoef(value[known], truth[known])[0, 1])


def test_a_prediction_that_does_not_vary_says_nothing() -> None:
    truth = np.array([1.0, 0.0], np.float32)
    assert score(np.zeros(2, bool), np.zeros(2), truth, 0.5).correlation == 0
    assert math.isnan(score(np.zeros(2, bool), np.array([0.0, 1.0]), np.zeros(2, np.float32), 0.5).correlation)
    assert math.isnan(score(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.float32), 0.5).correlation)


def test_nothing_to_find_and_nothing_found_is_in_no_mean_and_a_failed_neuron_in_every_one() -> None:
    score_list = ScoreList()
    score_list.add(0, Score(3, 4, 6, 0.5))
    score_list.add(0, Score(0, 0, 0, math.nan))
    score_list.add(2, Score(0, 5, 0, math.nan))
    score_list.add(2, Score(0, 0, 5, 0.0))
    score_list.add(2, Score(0, 0, 0, math.nan), failed=True)
    summary = score_list.summary()
    assert [row["layer"] for row in summary["by_layer"]] == [0, 2]
    first, second = summary["by_layer"]
    assert (first["precision"], first["recall"], first["f1"]) == (0.75, 0.5, 0.6)
    assert (first["undefined"], second["undefined"], summary["undefined"]) == (1, 0, 1)
    assert second["f1"] == second["precision"] == second["recall"] == second["correlation"] == 0
    assert summary["f1"] == pytest.approx(0.6 / 4)
    assert summary["correlation"] == pytest.approx(0.5 / 3)


def test_the_means_of_nothing_are_none() -> None:
    assert ScoreList().summary() == {
        "precision": None, "recall": None, "f1": None, "correlation": None, "undefined": 0, "by_layer": [],
    }  # fmt: skip


@given(st.integers(1, 60), st.integers(0, 99))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random(n) < 0.4, rng.random(n).astype(np.float32)
    score_list = ScoreList()
    score_list.add(0, score(predicted, rng.random(n), truth, 0.6))
    precision, recall, f1, _ = score_list.measures()[:, 0]
    if not predicted.any() and not (truth >= np.float32(0.6)).any():
        assert math.isnan(f1)
    elif precision + recall == 0:
        assert f1 == 0
    else:
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))

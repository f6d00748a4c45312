"""Thresholds of neurons against F1 counted position by position."""

from __future__ import annotations

import numpy as np

from actstore.engine.graphs.thresholds import choose_thresholds
from actstore.kernels.suffix_trie.api import N_BINS

CANDIDATES = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65]


def test_a_threshold_is_the_nearest_to_the_default_of_those_that_are_good_enough() -> None:
    rng = np.random.default_rng(0)
    bins = np.zeros((60, N_BINS, 2), np.int64)
    expected = []
    for counts in bins:
        twentieths = rng.integers(0, N_BINS, 40)
        fires = rng.random(40) < np.clip(twentieths / 20 + rng.normal(0, 0.3), 0, 1)
        np.add.at(counts, (twentieths, fires.astype(int)), 1)
        f1 = {}
        for threshold in CANDIDATES:
            predicted = twentieths / 20 >= threshold - 1e-9
            f1[threshold] = 2 * (predicted & fires).sum() / max(predicted.sum() + fires.sum(), 1)
        good = [threshold for threshold in CANDIDATES if f1[threshold] >= max(f1.values()) - 0.01]
        expected.append(min(good, key=lambda threshold: round(abs(threshold - 0.4), 6)))
    chosen = choose_thresholds(bins)
    assert chosen.dtype == np.float32
    assert len(set(expected)) > 5
    np.testing.assert_allclose(chosen, np.array(expected, np.float32), rtol=1e-6)


def test_without_evidence_the_threshold_is_the_default() -> None:
    assert choose_thresholds(np.zeros((2, N_BINS, 2), np.int64)).tolist() == [np.float32(0.4)] * 2

"""An interpolated Kneser-Ney n-gram model, the baseline for the demo model's held-out loss.

Counts are sorted integer keys (the symbols of an n-gram packed into one int64), so a model of ten million
symbols needs only a few `np.unique` calls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]


def pack_ngrams(symbols: Keys, order: int, bits: int) -> Keys:
    """Every n-gram of `symbols` as one integer, the last symbol in the lowest bits; shape [symbol - order + 1]."""
    n_grams = len(symbols) - order + 1
    keys = np.zeros(n_grams, np.int64)
    for offset in range(order):
        keys = (keys << bits) | symbols[offset : offset + n_grams]
    return keys


class KneserNey:
    """Interpolated Kneser-Ney of a given order with one absolute discount per order (Chen & Goodman 1999, eq. 18-20)."""

    def __init__(self, symbols: Keys, order: int, bits: int) -> None:
        """Count `symbols` (integers below 2**bits); `order * bits` must stay under 63."""
        if order * bits > 62:
            raise ValueError(f"order * bits must be at most 62 to fit one int64, found {order * bits}")
        self.order, self.bits = order, bits
        keys, counts = np.unique(pack_ngrams(symbols, order, bits), return_counts=True)
        self._levels = [self._level(keys, counts)]
        for level in range(order - 1, 0, -1):
            # The lower orders count in how many distinct left contexts an n-gram was seen, not how often.
            keys, counts = np.unique(keys & ((1 << (bits * level)) - 1), return_counts=True)
            self._levels.insert(0, self._level(keys, counts))

    def _level(self, keys: Keys, counts: Keys) -> tuple[Keys, Keys, Keys, Keys, Keys, float]:
        contexts, start = np.unique(keys >> self.bits, return_index=True)
        totals = np.add.reduceat(counts, start)
        distinct = np.diff(np.append(start, len(keys)))
        ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
        discount = ones / (ones + 2 * twos) if ones else 0.5
        return keys, counts, contexts, totals, distinct, discount

    def probabilities(self, symbols: Keys) -> NDArray[np.float64]:
        """P(symbol | its `order - 1` predecessors) for each symbol from index `order - 1` on."""
        n_scored = len(symbols) - self.order + 1
        p = np.full(n_scored, 1.0 / (1 << self.bits))
        for level, (keys, counts, contexts, totals, distinct, discount) in enumerate(self._levels, start=1):
            grams = pack_ngrams(symbols, level, self.bits)[-n_scored:]
            position = np.minimum(np.searchsorted(keys, grams), len(keys) - 1)
            count = np.where(keys[position] == grams, counts[position], 0)
            position = np.minimum(np.searchsorted(contexts, grams >> self.bits), len(contexts) - 1)
            known = contexts[position] == grams >> self.bits
            total = np.where(known, totals[position], 1)
            discounted = np.maximum(count - discount, 0) / total
            p = np.where(known, discounted + discount * distinct[position] / total * p, p)
        return p

"""From which probability on a graph predicts that its neuron fires: chosen for each neuron from the evidence.

Every position of the evidence is predicted by all the others. Neurons whose contexts decide little are predicted better from a
lower probability on, those of which a few contexts mislead from a higher one on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.kernels.suffix_trie.api import N_BINS

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT: Final = 0.4
"""The threshold of neurons whose evidence prefers no other."""
TOLERANCE: Final = 0.01
"""F1 by which another threshold must be better than those nearer to `DEFAULT`: less is chance where a neuron fires rarely."""
_TWENTIETHS: Final = np.arange(4, 14)
"""The thresholds to choose from, 0.2 to 0.65."""


def choose_thresholds(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """[neuron] the threshold nearest to `DEFAULT` whose leave-one-out F1 is at most `TOLERANCE` below the best.

    bins: [neuron, bin, 2] the positions that do not fire, and those that do, by leave-one-out probability, as
    `kernels.suffix_trie` counts them. `DEFAULT` where nothing is predicted at any threshold.
    """
    # [neuron, bin] positions from each bin on: those that a threshold at its lower edge predicts to fire.
    silent, hits = np.moveaxis(np.cumsum(bins[:, ::-1], axis=1)[:, ::-1], 2, 0)
    f1 = (2 * hits / np.maximum(hits + silent + hits[:, :1], 1))[:, _TWENTIETHS]
    candidates = (_TWENTIETHS / (N_BINS - 1)).astype(np.float32)
    near_enough = f1 >= f1.max(axis=1, keepdims=True) - TOLERANCE
    distance = np.where(near_enough, np.abs(_TWENTIETHS / (N_BINS - 1) - DEFAULT), np.inf)
    chosen: NDArray[np.float32] = candidates[np.argmin(np.round(distance, 6), axis=1)]
    return chosen

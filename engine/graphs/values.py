"""The mean activation of a neuron where it does not fire, per token, which is a part of the value of a path.

The value of a path is p · mean activation where the neuron fires + (1 − p) · mean activation where it does not. The latter
differs more between tokens than between neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie.api import Nodes

PSEUDO_COUNT = 1.0
"""Number of positions as which the mean over all tokens counts in the mean of one token."""


def silent_means(
    ids: NDArray[np.integer],
    values: NDArray[np.floating],
    silent: NDArray[np.bool_],
    tokens: NDArray[np.integer],
    rest: float,
) -> NDArray[np.float64]:
    """The mean activation of one neuron at the occurrences of each of `tokens` at which it does not fire; shape of `tokens`.

    ids, values: [position] the tokens and the neuron's activations. silent: [position] whether it is evidence and does not
    fire. rest: the mean over all of these, which counts as `PSEUDO_COUNT` further positions. Values that are not finite are
    left out.
    """
    n_tokens = int(max(ids.max(initial=-1), tokens.max(initial=-1))) + 1
    is_listed = np.zeros(n_tokens, np.bool_)
    is_listed[tokens] = True
    positions = np.flatnonzero(is_listed[ids] & silent)  # few: a neuron fires on a small part of the vocabulary
    ids, values = ids[positions], values[positions].astype(np.float64)
    known = np.isfinite(values)
    counts, sums = np.bincount(ids[known], minlength=n_tokens), np.bincount(ids[known], values[known], n_tokens)
    means: NDArray[np.float64] = (sums[tokens] + PSEUDO_COUNT * rest) / (counts[tokens] + PSEUDO_COUNT)
    return means


def values_with(
    nodes: Nodes,
    offsets: NDArray[np.int64],
    tokens: NDArray[np.integer],
    silent: NDArray[np.floating],
    rest: NDArray[np.float64],
) -> NDArray[np.float32]:
    """[node] the values of paths, with `silent` of their activating token in place of the neuron's `rest`.

    offsets: [neuron + 1] the events of each neuron. tokens, silent: [event] the token, and its `silent_means`. Nodes at which
    no path ends keep their values.
    """
    if not len(nodes.token):
        return nodes.value
    neuron = np.repeat(np.arange(len(rest)), np.diff(nodes.offsets))
    of_event = np.repeat(np.arange(len(rest)), np.diff(offsets))
    keys, first = np.unique(of_event << 32 | tokens.astype(np.int64), return_index=True)
    # Nodes are stored depth first: the root of a node is the last one before it.
    root = np.maximum.accumulate(np.where(nodes.depth == 0, np.arange(len(nodes.token)), 0))
    token_silent = silent[first[np.searchsorted(keys, neuron << 32 | nodes.token[root].astype(np.int64))]]
    changed = nodes.value + (1 - nodes.probability) * (token_silent - rest[neuron])
    return np.where(nodes.ends, changed, nodes.value).astype(np.float32)

"""What a neuron does on average where it does not fire, token by token: part of what its graph's paths are worth.

A path's value is p · mean activation where it fires + (1 - p) · mean activation where it does not. The latter differs more
between tokens than between neurons. Knows nothing about which paths there are and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie.api import Nodes

PSEUDO_COUNT = 1.0
"""Positions that a neuron's mean over all tokens counts for in that of one."""


def silent_means(
    ids: NDArray[np.integer[Any]],
    values: NDArray[np.floating[Any]],
    silent: NDArray[np.bool_],
    wanted: NDArray[np.integer[Any]],
    rest: float,
) -> NDArray[np.float64]:
    """[wanted] the mean activation of one neuron where it does not fire at each of the wanted tokens.

    ids, values, silent: [position] the tokens, the neuron's activations, and where it does not fire and that is evidence.
    `rest`, its mean over all of these, counts as `PSEUDO_COUNT` positions more. What is not finite is left out.
    """
    n_tokens = int(max(ids.max(initial=-1), wanted.max(initial=-1))) + 1
    is_wanted = np.zeros(n_tokens, np.bool_)
    is_wanted[wanted] = True
    at = np.flatnonzero(is_wanted[ids] & silent)  # few: of the other tokens nobody asks
    ids, values = ids[at], values[at].astype(np.float64)
    known = np.isfinite(values)
    counts, sums = np.bincount(ids[known], minlength=n_tokens), np.bincount(ids[known], values[known], n_tokens)
    means: NDArray[np.float64] = (sums[wanted] + PSEUDO_COUNT * rest) / (counts[wanted] + PSEUDO_COUNT)
    return means


def values_with(
    nodes: Nodes,
    offsets: NDArray[np.int64],
    fired: NDArray[np.integer[Any]],
    silent: NDArray[np.floating[Any]],
    rest: NDArray[np.float64],
) -> NDArray[np.float32]:
    """[node] the values of paths with `silent`, the mean of their activating token, in the place of the neuron's `rest`.

    offsets: [neuron + 1] each neuron's events; fired, silent: [event] token and `silent_means`. Nodes that end no path keep
    what they have.
    """
    if not len(nodes.token):
        return nodes.value
    neuron = np.repeat(np.arange(len(rest)), np.diff(nodes.offsets))
    of_event = np.repeat(np.arange(len(rest)), np.diff(offsets))
    keys, first = np.unique(of_event << 32 | fired.astype(np.int64), return_index=True)
    # Nodes lie depth first: a node's root is the latest before it.
    root = np.maximum.accumulate(np.where(nodes.depth == 0, np.arange(len(nodes.token)), 0))
    own = silent[first[np.searchsorted(keys, neuron << 32 | nodes.token[root].astype(np.int64))]]
    changed = nodes.value + (1 - nodes.probability) * (own - rest[neuron])
    return np.where(nodes.ends, changed, nodes.value).astype(np.float32)

"""The shared suffix trie of a corpus, the tries of single neurons, and how the latter are built; plain numpy.

A context is read backwards: the token of the position itself at depth 0, the token `d` positions earlier at depth `d`,
and `BOUNDARY` at every depth before the window's first token. Sorted by their contexts, positions have ranks, and a
node of the shared trie, which is the contexts that begin alike, is an interval of ranks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORE, BOUNDARY = -1, -2
"""Tokens of a node that stand for any token, and for what comes before a window's first token."""

NEAR, N_NEAR = 2, 3
"""First and number of the depths whose tokens are kept by rank."""

MAX_DEPTH = 12
"""Tokens before the activating one that a trie looks back, unless told."""


class Trie(NamedTuple):
    """All contexts of a corpus. Node 0 is the root; nodes of a depth follow one another, siblings ascend by token.

    A node has children unless it holds one position, ends in `BOUNDARY` or lies at the largest depth. 16 bytes per node, some
    2 nodes per position; beside, 25 bytes per position and 4 per input token.
    """

    start: NDArray[np.int32]
    """[node] first rank of the node's interval."""
    stop: NDArray[np.int32]
    """[node] the rank after its last."""
    token: NDArray[np.int32]
    """[node] the token at the node's depth."""
    children: NDArray[np.int32]
    """[node + 1] the children of node `i` are `children[i]:children[i + 1]`."""
    order: NDArray[np.int32]
    """[rank] the position of each rank."""
    input_index: NDArray[np.int64]
    """[rank] the index in `ids` of the position's token; the tokens before it in the window lie before it."""
    reach: NDArray[np.uint8]
    """[rank] how many of them there are, at most the largest depth."""
    ids: NDArray[np.int32]
    """[input] what the model read, window after window."""
    near: NDArray[np.int32]
    """[depth - NEAR, rank] tokens of a few depths once more, side by side: what looks past the next token reads them all."""


class Settings(NamedTuple):
    """What decides which nodes a neuron's trie keeps."""

    kappa: float = 1.0
    """Pseudo-count of the parent's probability in a node's."""
    gain: float = 0.25
    """Nats of expected log likelihood that a node must add to be kept; below 0 all are kept."""
    max_depth: int = MAX_DEPTH
    """Maximum number of tokens before the activating one."""
    max_skip: int = 3
    """Maximum number of tokens that may be ignored between a node and the next."""
    margin: float = 5.0
    """Nats by which a branching over ignored tokens must be better than the one at the next token, subtree included."""
    nodes: int = 0
    """Maximum number of nodes; 0 is no limit."""


class Nodes(NamedTuple):
    """The tries of neurons one after another; nodes of a neuron depth first, children by token."""

    offsets: NDArray[np.int64]
    """[neuron + 1] the nodes of each neuron."""
    parent: NDArray[np.int32]
    """[node] counted from the neuron's first node; -1 at depth 0."""
    token: NDArray[np.int32]
    """[node] the token at the node's depth, or `IGNORE`, or `BOUNDARY`."""
    depth: NDArray[np.uint8]
    """[node] how many tokens before the position."""
    ends: NDArray[np.bool_]
    """[node] whether a path may end here."""
    probability: NDArray[np.float32]
    """[node] of firing where the path ends here; NaN where it does not end."""
    value: NDArray[np.float32]
    """[node] expected activation, as a fraction of the neuron's maximum, where the path ends here; NaN where it does not."""
    count: NDArray[np.int32]  # type: ignore[assignment]  # of no use in a tuple of arrays
    """[node] positions whose context has the path."""
    fires: NDArray[np.int32]
    """[node] how many of them fire."""


def make_trie(
    ids: NDArray[np.int32], input_index: NDArray[np.int64], reach: NDArray[np.int64], max_depth: int = MAX_DEPTH
) -> Trie:
    """The shared trie of the positions whose tokens are `ids[place]`, with `reach` tokens before them in their window.

    One stable sort a depth, of the positions whose contexts are not told apart yet. Takes about 60 bytes per position beside
    the result.
    """
    n, width = len(input_index), int(ids.max(initial=-1)) + 3
    order = np.arange(n, dtype=np.int32)
    level = (np.zeros(1, np.int64), np.full(1, n, np.int64), np.full(1, IGNORE, np.int64))
    levels, n_children = [_narrowed(level)], []
    for depth in range(max_depth + 1):
        start, stop, token = level
        has_children = (stop - start >= (1 if depth == 0 else 2)) & (token != BOUNDARY)
        counts = np.zeros(len(start), np.int64)
        start, size = start[has_children], (stop - start)[has_children]
        ends = np.cumsum(size)
        node = np.repeat(np.arange(len(start)), size)  # [position to be sorted], as all that follows
        ranks = np.arange(len(node)) + np.repeat(start - ends + size, size)
        positions = order[ranks]
        token = np.where(
            reach[positions] >= depth, ids[np.maximum(input_index[positions] - depth, 0)], np.int32(BOUNDARY)
        )
        # Node first, then token: one sort orders all nodes of the depth; stable, so that ties go to the earlier position.
        key = node * width + (token - BOUNDARY)
        # Freed as soon as possible: they are as long as the positions.
        del node, token
        sort = np.argsort(key, kind="stable")
        order[ranks], key = positions[sort], key[sort]
        del positions, sort
        first = np.flatnonzero(np.diff(key, prepend=-1))
        last = np.append(first[1:], len(key)) - 1
        counts[has_children] = np.bincount(key[first] // width, minlength=len(start))
        n_children.append(counts)
        level = (ranks[first], ranks[last] + 1, key[first] % width + BOUNDARY) if len(first) else _NOTHING
        levels.append(_narrowed(level))
    n_children.append(np.zeros(len(level[0]), np.int64))
    starts, stops, tokens = (np.concatenate(columns) for columns in zip(*levels, strict=True))
    children = np.cumsum(np.concatenate([[1], *n_children])).astype(np.int32)
    input_index, reaches = input_index[order], np.minimum(reach, max_depth).astype(np.uint8)[order]
    near = np.empty((max(0, min(N_NEAR, max_depth + 1 - NEAR)), n), np.int32)
    for row, tokens_at_depth in enumerate(near):
        tokens_at_depth[:] = np.where(
            reaches >= NEAR + row, ids[np.maximum(input_index - NEAR - row, 0)], np.int32(BOUNDARY)
        )
    return Trie(starts, stops, tokens, children, order, input_index, reaches, np.ascontiguousarray(ids, np.int32), near)


def _narrowed(level: tuple[NDArray[np.int64], ...]) -> tuple[NDArray[np.int32], ...]:
    return tuple(column.astype(np.int32) for column in level)


_NOTHING = (np.empty(0, np.int64),) * 3

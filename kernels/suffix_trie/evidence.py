"""What is known of one neuron while its trie grows, and the scratch memory of the thread that grows it."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.suffix_trie.stack import Integer, Posterior
from actstore.kernels.suffix_trie.trie import Trie

FIRES, HELD_OUT = 1, 2
"""What `Scratch.marks` says of a rank."""

FRAME = np.dtype(
    [
        ("p", "f8"),
        ("without_firing", "f8"),
        ("without_silent", "f8"),
        ("value", "f8"),
        ("index", "i8"),
        ("skip", "i8"),
        ("listed", "i8"),
        ("next", "i8"),
        ("stop", "i8"),
        ("event", "i8"),
        ("event_stop", "i8"),
        ("held_out", "i8"),
        ("held_out_stop", "i8"),
        ("node", "i8"),
    ]
)
"""A node whose children are being grown: where it is on the stack, the posterior there, how many tokens are ignored; then
its children to come, which are nodes of the shared trie with their events and held-out ranks, or parts of a list of ranks."""

Frame: TypeAlias = Any
"""A record of `FRAME`: numpy has no type for one."""


class Scratch(NamedTuple):
    """Scratch memory of one thread, used for one neuron after another."""

    marks: NDArray[np.uint8]
    """[rank] FIRES, HELD_OUT or 0; 0 between neurons."""
    ranks: NDArray[np.int32]
    """[rank] the lists of ranks that frames point into; those below a frame are parts of its own."""
    keys: NDArray[np.int64]
    """[rank] keys to sort by, or the tokens that were met."""
    counts: NDArray[np.int32]
    """[token, 2] positions and events of each token; 0 between uses."""
    frames: NDArray[Any]
    """[depth] of `FRAME`: the nodes whose children are being grown, one below the other."""
    top: NDArray[np.int64]
    """[2] the number of nodes on the stack, and 1 if one did not fit: then all starts again on a larger one."""


class Evidence(NamedTuple):
    """What is known of one neuron, and scratch memory to sort and count its positions in."""

    events: NDArray[np.int32]
    """[event] ranks that fire, ascending."""
    sums: NDArray[np.float64]
    """[event + 1] their activations added up."""
    held_out: NDArray[np.int32]
    """[held-out position] ranks left out, ascending."""
    rest: float
    """Mean activation where it does not fire."""
    scratch: Scratch


@jit
def open_frame(frame: Frame, index: int, posterior: Posterior, listed: int) -> None:
    """Begin a frame for the node `index` of the stack."""
    frame.p, frame.value = posterior.p, posterior.value
    frame.without_firing, frame.without_silent = posterior.without_firing, posterior.without_silent
    frame.index, frame.skip, frame.listed = index, 0, listed


@jit
def weigh_interval(
    trie: Trie,
    evidence: Evidence,
    node: Integer,
    e: Integer,
    e_stop: Integer,
    h: Integer,
    h_stop: Integer,
    kappa: float,
) -> tuple[float, float]:
    """As `naive._weigh`, of the interval of `node` with events `e` and held-out ranks `h`, by its children."""
    weighed_n, weighed_f = 0.0, 0.0
    for child in range(trie.children[node], trie.children[node + 1]):
        limit = np.int64(trie.stop[child])
        e_next, h_next = find(evidence.events, limit, e, e_stop), find(evidence.held_out, limit, h, h_stop)
        n, f = limit - trie.start[child] - (h_next - h), e_next - e
        weighed_n += kappa * n / (n + kappa)
        weighed_f += kappa * f / (n + kappa)
        e, h = e_next, h_next
    return weighed_n, weighed_f


@jit
def find(ranks: NDArray[np.int32], limit: Integer, first: Integer, stop: Integer) -> Integer:
    """The first index from `first` to `stop` at which `ranks` [event], ascending, is not below `limit`; `stop` if none.

    Steps that double, then a binary search between the last two: mostly it is near `first`.
    """
    if first == stop or ranks[first] >= limit:  # most intervals hold none
        return first
    step = 1
    while first + step < stop and ranks[first + step] < limit:
        first += step
        step *= 2
    low, high = first + 1, min(stop, first + step)
    while low < high:
        middle = (low + high) // 2
        if ranks[middle] < limit:
            low = middle + 1
        else:
            high = middle
    return low

"""Tries of neurons from the contexts in which they fire, and what tries predict: checks and dispatch.

A neuron's trie is read backwards from a position; where it ends, it knows the probability that the neuron fires there
and the activation to be expected. It is found in the corpus's shared trie, of which few nodes hold events of one
neuron.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import default_threads
from actstore.kernels.suffix_trie import cpu, match
from actstore.kernels.suffix_trie.match import Predictions
from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, MAX_DEPTH, Nodes, Settings, Trie, make_trie

__all__ = [
    "BOUNDARY",
    "IGNORE",
    "MAX_DEPTH",
    "Nodes",
    "Predictions",
    "Settings",
    "Trie",
    "build",
    "make_trie",
    "predict",
    "suffix_trie",
]


DEFAULT = Settings()


def suffix_trie(ids: NDArray[Any], place: NDArray[Any], reach: NDArray[Any], max_depth: int = MAX_DEPTH) -> Trie:
    """The shared trie of the contexts of some positions.

    ids: [input] tokens, 0 or more, window after window. place: [position] where each position's token lies in `ids`.
    reach: [position] how many tokens its window has before it. Ties of ranks go to the earlier position.
    """
    ids, place, reach = np.asarray(ids), np.asarray(place), np.asarray(reach)
    if ids.ndim != 1 or place.ndim != 1 or place.shape != reach.shape:
        raise ValueError(
            f"ids must be a list, place and reach lists of one length, not {ids.shape}, {place.shape}, {reach.shape}"
        )
    if not 0 <= max_depth <= 255:
        raise ValueError(f"max_depth must be from 0 to 255, not {max_depth}")
    if ids.min(initial=0) < 0 or len(place) >= 2**31:
        raise ValueError("ids must be 0 or more, and positions fewer than 2^31")
    if place.min(initial=0) < 0 or place.max(initial=-1) >= len(ids) or (reach < 0).any() or (reach > place).any():
        raise ValueError(f"place must be from 0 to {len(ids) - 1}, and reach from 0 to place")
    return make_trie(ids.astype(np.int32), place.astype(np.int64), reach.astype(np.int64), max_depth)


def build(
    trie: Trie,
    offsets: NDArray[np.int64],
    events: NDArray[np.int32],
    values: NDArray[np.float32],
    *,
    rest: NDArray[np.float64] | None = None,
    held_out: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None,
    settings: Settings = DEFAULT,
    threads: int | None = None,
) -> Nodes:
    """The tries of neurons that fire at some positions of a corpus.

    A node is a context of which all positions are counted: n, of which f fire. Its probability of firing is
    `p = (f + kappa · p_parent) / (n + kappa)`, from the share of all positions that fire on. The same with one position
    left out, all the way from the root, gives the leave-one-out likelihood by which nodes are chosen: a child is kept if
    telling its positions from those of all children not kept adds more than `gain` nats; and what all of them add must be
    more than nothing. Others are, to begin with, all children, the silent ones, or those that always fire, whichever ends
    best. Where a line ends it stands for the contexts of no kept child, and its probability is theirs, from
    the node's on. Its value is `p · mean firing activation + (1 - p) · rest`. A branching over `IGNORE`, which costs a
    node for each token ignored, replaces one that it beats by more than `margin` nats before anything grows below it; only
    nodes are asked whose events would promise that if nothing silent shared their tokens.
    Tokens at depth 0 that never fire have no node.

    trie: of the corpus. offsets: [neuron + 1], events: [event] ranks in the trie at which each neuron fires, ascending;
    values: [event] activations there, in shares of the neuron's maximum. rest: [neuron] mean of the activations at which it
    does not fire, 0 unless given. held_out: offsets [neuron + 1] and ranks, ascending, of positions that are not looked at.
    """
    n_neurons, n_ranks = len(offsets) - 1, len(trie.place)
    _check_ranks("events", offsets, events, n_ranks)
    if values.shape != events.shape or not np.isfinite(values).all():
        raise ValueError(f"values must be a finite number for each of {len(events)} events, not {list(values.shape)}")
    held_offsets, held = held_out or (np.zeros(n_neurons + 1, np.int64), np.empty(0, np.int32))
    _check_ranks("held_out", held_offsets, held, n_ranks)
    if len(held_offsets) != n_neurons + 1:
        raise ValueError(f"held_out must be of {n_neurons} neurons, not of {len(held_offsets) - 1}")
    rest = np.zeros(n_neurons) if rest is None else np.ascontiguousarray(rest, np.float64)
    if rest.shape != (n_neurons,):
        raise ValueError(f"rest must be a number for each of {n_neurons} neurons, not {list(rest.shape)}")
    if not settings.kappa > 0 or not 0 <= settings.max_depth <= 255 or settings.max_skip < 0 or settings.margin < 0:
        raise ValueError(
            f"kappa must be above 0, max_depth from 0 to 255, max_skip and margin 0 or more, not {settings}"
        )
    if n_neurons == 0:
        return _none(np.zeros(1, np.int64))
    offsets, events, values = _left_in(offsets, events, values, held_offsets, held)
    arguments = (
        np.ascontiguousarray(events, np.int32), np.ascontiguousarray(values, np.float32),
        np.ascontiguousarray(held_offsets, np.int64), np.ascontiguousarray(held, np.int32),
    )  # fmt: skip
    return cpu.build(
        trie, np.ascontiguousarray(offsets, np.int64), *arguments, rest, settings, threads or default_threads()
    )


def predict(
    nodes: Nodes, ids: NDArray[Any], begins: NDArray[Any] | None = None, threads: int | None = None
) -> Predictions:
    """What the tries predict at every position: the longest line that matches and ends, an exact token before `IGNORE`.

    ids: [position] tokens. begins: ascending from 0: where each window begins; one window unless given.
    """
    ids = np.ascontiguousarray(ids, np.int32)
    begins = np.zeros(1, np.int64) if begins is None else np.ascontiguousarray(begins, np.int64)
    if ids.ndim != 1 or ids.min(initial=0) < 0:
        raise ValueError(f"ids must be a list of tokens, 0 or more, not {list(ids.shape)}")
    ascends = begins.ndim == 1 and len(begins) > 0 and begins[0] == 0 and (np.diff(begins) >= 0).all()
    if not ascends or begins[-1] > len(ids):
        raise ValueError(f"begins must ascend from 0 to at most {len(ids)}, the number of tokens")
    return match.predict(nodes, ids, begins, threads or default_threads())


def _none(offsets: NDArray[np.int64]) -> Nodes:
    dtypes = (np.int32, np.int32, np.uint8, np.bool_, np.float32, np.float32, np.int32, np.int32)
    return Nodes(offsets, *(np.empty(0, dtype) for dtype in dtypes))  # type: ignore[arg-type]


def _check_ranks(name: str, offsets: NDArray[Any], ranks: NDArray[Any], n_ranks: int) -> None:
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(ranks) or (np.diff(offsets) < 0).any():
        raise ValueError(f"the offsets of {name} must ascend from 0 to their number, {len(ranks)}")
    if ranks.dtype.kind not in "iu" or ranks.min(initial=0) < 0 or ranks.max(initial=-1) >= n_ranks:
        raise ValueError(f"{name} must be ranks from 0 to {n_ranks - 1}")
    ascends = np.diff(ranks) > 0
    borders = offsets[(offsets > 0) & (offsets < len(ranks))]
    ascends[borders - 1] = True
    if not ascends.all():
        raise ValueError(f"the ranks of {name} must ascend within a neuron, each once")


def _left_in(
    offsets: NDArray[np.int64], events: NDArray[np.int32], values: NDArray[np.float32], held_offsets: NDArray[np.int64],
    held: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:  # fmt: skip
    """The events at positions that are not held out."""
    if not len(held):
        return offsets, events, values
    neurons = np.arange(len(offsets) - 1)
    of_event = np.repeat(neurons, np.diff(offsets)) << 32 | events
    of_held = np.repeat(neurons, np.diff(held_offsets)) << 32 | held
    left = ~np.isin(of_event, of_held, assume_unique=True, kind="sort")
    kept = np.concatenate([[0], np.cumsum(left, dtype=np.int64)])
    return kept[offsets], events[left], values[left]

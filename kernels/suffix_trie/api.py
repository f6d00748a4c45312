"""Tries of neurons from the contexts in which they fire, and what tries predict: checks and dispatch.

A neuron's trie is read backwards from a position; where it ends, it knows the probability that the neuron fires there
and the activation to be expected. It is found in the corpus's shared trie, of which few nodes hold events of one
neuron.
"""

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


def suffix_trie(
    ids: NDArray[np.integer], input_index: NDArray[np.integer], reach: NDArray[np.integer], max_depth: int = MAX_DEPTH
) -> Trie:
    """The shared trie of the contexts of some positions.

    ids: [input] tokens, 0 or more, window after window. input_index: [position] the index in `ids` of each position's token.
    reach: [position] how many tokens its window has before it. Ties of ranks go to the earlier position.
    """
    ids, input_index, reach = np.asarray(ids), np.asarray(input_index), np.asarray(reach)
    if ids.ndim != 1 or input_index.ndim != 1 or input_index.shape != reach.shape:
        raise ValueError(
            "ids must be a list, input_index and reach lists of one length, "
            f"not {ids.shape}, {input_index.shape}, {reach.shape}"
        )
    if not 0 <= max_depth <= 255:
        raise ValueError(f"max_depth must be from 0 to 255, not {max_depth}")
    if ids.min(initial=0) < 0 or len(input_index) >= 2**31:
        raise ValueError("ids must be 0 or more, and positions fewer than 2^31")
    if (
        input_index.min(initial=0) < 0
        or input_index.max(initial=-1) >= len(ids)
        or (reach < 0).any()
        or (reach > input_index).any()
    ):
        raise ValueError(f"input_index must be from 0 to {len(ids) - 1}, and reach from 0 to input_index")
    return make_trie(ids.astype(np.int32), input_index.astype(np.int64), reach.astype(np.int64), max_depth)


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
    `p = (F + kappa · p_parent) / (N + kappa)`, from the share of all positions that fire on. F and N are f and n where all
    positions fire or none; else sums over the tokens before them, with `kappa · f / (n + kappa)` and `kappa · n / (n + kappa)`
    for those at which n positions have the same. Of every position the longest context says with which probability it would
    fire if it occurred again; as often as contexts were seen once, one that was not is to be expected, of which its parent's p
    is known. A node is kept if telling its positions from those of all children not kept adds more than `gain` nats to the log
    likelihood to be expected then, and all of them together must add more than nothing. Others are, to begin with, all
    children, the silent ones, or those that always fire, whichever ends best. Where a path ends it stands for the contexts of
    no kept child, and its probability is the mean of theirs, unseen ones among them. Its value is
    `p · mean firing activation + (1 - p) · rest`. A branching over `IGNORE`, which costs a node for each token ignored,
    replaces one that it beats by more than `margin` nats before anything grows below it. This is by leave-one-out likelihood:
    p of each position as if it had not been seen, from the root on, where each counts as one. Only nodes are asked whose events
    would promise that if nothing silent shared their tokens. Of a trie with more than `nodes` nodes, unless that is 0, leaves
    that add least are removed one by one.
    Tokens at depth 0 that never fire have no node.

    trie: of the corpus. offsets: [neuron + 1], events: [event] ranks in the trie at which each neuron fires, ascending;
    values: [event] activations there, as fractions of the neuron's maximum. rest: [neuron] mean of the activations at which it
    does not fire, 0 unless given. held_out: offsets [neuron + 1] and ranks, ascending, of positions that are not looked at.
    """
    n_neurons, n_ranks = len(offsets) - 1, len(trie.input_index)
    _check_ranks("events", offsets, events, n_ranks)
    if values.shape != events.shape or not np.isfinite(values).all():
        raise ValueError(f"values must be a finite number for each of {len(events)} events, not {list(values.shape)}")
    held_out_offsets, held_out_ranks = held_out or (np.zeros(n_neurons + 1, np.int64), np.empty(0, np.int32))
    _check_ranks("held_out", held_out_offsets, held_out_ranks, n_ranks)
    if len(held_out_offsets) != n_neurons + 1:
        raise ValueError(f"held_out must be of {n_neurons} neurons, not of {len(held_out_offsets) - 1}")
    rest = np.zeros(n_neurons) if rest is None else np.ascontiguousarray(rest, np.float64)
    if rest.shape != (n_neurons,):
        raise ValueError(f"rest must be a number for each of {n_neurons} neurons, not {list(rest.shape)}")
    if (
        not settings.kappa > 0
        or not 0 <= settings.max_depth <= 255
        or min(settings.max_skip, settings.margin, settings.nodes) < 0
    ):
        raise ValueError(
            f"kappa must be above 0, max_depth from 0 to 255, max_skip, margin and nodes 0 or more, not {settings}"
        )
    if n_neurons == 0:
        return _no_nodes(np.zeros(1, np.int64))
    offsets, events, values = _without_held_out(offsets, events, values, held_out_offsets, held_out_ranks)
    arguments = (
        np.ascontiguousarray(events, np.int32), np.ascontiguousarray(values, np.float32),
        np.ascontiguousarray(held_out_offsets, np.int64), np.ascontiguousarray(held_out_ranks, np.int32),
    )  # fmt: skip
    return cpu.build(
        trie, np.ascontiguousarray(offsets, np.int64), *arguments, rest, settings, threads or default_threads()
    )


def predict(
    nodes: Nodes, ids: NDArray[np.integer], begins: NDArray[np.integer] | None = None, threads: int | None = None
) -> Predictions:
    """What the tries predict at every position: the longest path that matches and ends, an exact token before `IGNORE`.

    ids: [position] tokens. begins: ascending from 0: where each window begins; one window unless given.
    """
    tokens = np.ascontiguousarray(ids, np.int32)
    starts = np.zeros(1, np.int64) if begins is None else np.ascontiguousarray(begins, np.int64)
    if tokens.ndim != 1 or tokens.min(initial=0) < 0:
        raise ValueError(f"ids must be a list of tokens, 0 or more, not {list(tokens.shape)}")
    ascends = starts.ndim == 1 and len(starts) > 0 and starts[0] == 0 and (np.diff(starts) >= 0).all()
    if not ascends or starts[-1] > len(tokens):
        raise ValueError(f"begins must ascend from 0 to at most {len(tokens)}, the number of tokens")
    return match.predict(nodes, tokens, starts, threads or default_threads())


def _no_nodes(offsets: NDArray[np.int64]) -> Nodes:
    dtypes = (np.int32, np.int32, np.uint8, np.bool_, np.float32, np.float32, np.int32, np.int32)
    return Nodes(offsets, *(np.empty(0, dtype) for dtype in dtypes))  # type: ignore[arg-type]


def _check_ranks(name: str, offsets: NDArray[np.integer], ranks: NDArray[np.integer], n_ranks: int) -> None:
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(ranks) or (np.diff(offsets) < 0).any():
        raise ValueError(f"the offsets of {name} must ascend from 0 to their number, {len(ranks)}")
    if ranks.dtype.kind not in "iu" or ranks.min(initial=0) < 0 or ranks.max(initial=-1) >= n_ranks:
        raise ValueError(f"{name} must be ranks from 0 to {n_ranks - 1}")
    ascends = np.diff(ranks) > 0
    borders = offsets[(offsets > 0) & (offsets < len(ranks))]
    ascends[borders - 1] = True
    if not ascends.all():
        raise ValueError(f"the ranks of {name} must ascend within a neuron, each once")


def _without_held_out(
    offsets: NDArray[np.int64], events: NDArray[np.int32], values: NDArray[np.float32], held_out_offsets: NDArray[np.int64],
    held_out: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:  # fmt: skip
    """The events at positions that are not held out."""
    if not len(held_out):
        return offsets, events, values
    neurons = np.arange(len(offsets) - 1)
    event_keys = np.repeat(neurons, np.diff(offsets)) << 32 | events
    held_out_keys = np.repeat(neurons, np.diff(held_out_offsets)) << 32 | held_out
    is_kept = ~np.isin(event_keys, held_out_keys, assume_unique=True, kind="sort")
    n_kept = np.concatenate([[0], np.cumsum(is_kept, dtype=np.int64)])
    return n_kept[offsets], events[is_kept], values[is_kept]

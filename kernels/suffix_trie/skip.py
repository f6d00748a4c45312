"""Branching over ignored tokens: whether it is better than what a node has, and the lists of ranks it makes; compiled."""

import math

import numpy as np

from actstore.kernels.jit import jit
from actstore.kernels.suffix_trie.evidence import FIRES, HELD_OUT, Evidence, Frame, Scratch, open_frame
from actstore.kernels.suffix_trie.naive import LOWEST, SKIP_FIRES
from actstore.kernels.suffix_trie.stack import Node, Posterior, Stack, left_out_score, push, push_known
from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, NEAR, Settings, Trie


@jit
def may_skip(node: Node, posterior: Posterior, settings: Settings) -> bool:
    """Whether ignoring tokens could be better: not where even telling all that fire from all that do not is not."""
    if settings.max_skip < 1 or node.fires < SKIP_FIRES or settings.gain < 0 or node.depth + 2 > settings.max_depth:
        return False
    # Each firing position predicted by all other firing ones alone: no branching does better.
    best = min(
        (node.fires - 1 + settings.kappa * posterior.without_firing) / (node.fires - 1 + settings.kappa), 1 - LOWEST
    )
    return bool(node.left_out + settings.margin < node.fires * math.log(best))


@jit
def skip_tokens(
    trie: Trie, evidence: Evidence, stack: Stack, settings: Settings, frame: Frame, posterior: Posterior
) -> bool:
    """Whether branching over ignored tokens is better than what a node has; if so, its frame begins again with that."""
    scratch, node = evidence.scratch, stack[frame.index]
    top, best_score, best_skip = scratch.top[0], node.left_out + settings.margin, 0
    for skip in range(1, min(settings.max_skip, settings.max_depth - node.depth - 1) + 1):
        depth, cost = node.depth + 1 + skip, skip * settings.gain
        if (
            _promise(trie, evidence, settings, frame, node.fires, depth, posterior) - cost
            > node.left_out + settings.margin
        ):
            if not frame.listed:
                _list_ranks(trie, scratch, frame)
            score = _look(trie, evidence, stack, settings, frame, depth, posterior) - cost
            # What `_look` has pushed was only to be scored.
            scratch.top[0] = top
            if score > best_score:
                best_skip, best_score = skip, score
    if not best_skip or scratch.top[1]:
        return False
    scratch.top[0] = frame.index + 1
    # One node per ignored token; the children come below the last.
    for skip in range(best_skip):
        push(stack, scratch.top, IGNORE, node.depth + 1 + skip, node.count, node.fires, node.total)
    frame.skip, frame.next, frame.stop = best_skip, frame.event, frame.event_stop
    sort_list(trie, scratch, frame.next, frame.stop, node.depth + 1 + best_skip)
    return True


@jit
def _promise(
    trie: Trie, evidence: Evidence, settings: Settings, frame: Frame, n_fires: int, depth: int, posterior: Posterior
) -> float:
    """The score of telling a frame's events apart by their tokens at `depth` if nothing silent had these tokens.

    An upper bound, from the events alone, which are few: the list of all ranks is made only where it promises enough.
    """
    scratch, counts, tokens = evidence.scratch, evidence.scratch.counts, evidence.scratch.keys
    n_tokens = 0
    # The events of an interval are the last ones that its children were given.
    first, stop = (frame.event, frame.event_stop) if frame.listed else (frame.event_stop - n_fires, frame.event_stop)
    for i in range(first, stop):
        rank = scratch.ranks[i] if frame.listed else evidence.events[i]
        if frame.listed and scratch.marks[rank] != FIRES:
            continue
        token = token_at(trie, rank, depth) - BOUNDARY
        if counts[token, 1] == 0:
            tokens[n_tokens] = token
            n_tokens += 1
        counts[token, 1] += 1
    score = 0.0
    for token in tokens[:n_tokens]:
        f = np.int64(counts[token, 1])
        # 0 again for the next use: clearing the whole table would take longer than filling it.
        counts[token, 1] = 0
        p = (f - 1 + settings.kappa * posterior.without_firing) / (f - 1 + settings.kappa)
        score += f * math.log(min(max(p, LOWEST), 1 - LOWEST))
    return score


@jit
def _list_ranks(trie: Trie, scratch: Scratch, frame: Frame) -> None:
    """Make an interval's frame that of a list of its ranks, to be begun with."""
    n_listed = 0
    for rank in range(trie.start[frame.node], trie.stop[frame.node]):
        if scratch.marks[rank] != HELD_OUT:
            scratch.ranks[n_listed] = rank
            n_listed += 1
    frame.listed, frame.event, frame.event_stop = 1, 0, n_listed


@jit
def _look(
    trie: Trie, evidence: Evidence, stack: Stack, settings: Settings, frame: Frame, depth: int, posterior: Posterior
) -> float:
    """The score of telling a frame's list apart by the tokens at `depth`, with nothing below; leaves nodes on the stack."""
    scratch = evidence.scratch
    counts, marks, ranks, tokens, top = scratch.counts, scratch.marks, scratch.ranks, scratch.keys, scratch.top
    first, f, n_tokens = top[0], np.int64(0), 0  # f in 64 bits, as positions are counted
    for i in range(frame.event, frame.event_stop):
        rank = ranks[i]
        token = token_at(trie, rank, depth) - BOUNDARY
        fires = np.int64(marks[rank] == FIRES)
        if counts[token, 0] == 0:
            tokens[n_tokens] = token
            n_tokens += 1
        counts[token, 0] += 1
        counts[token, 1] += fires
        f += fires
    for token in tokens[:n_tokens]:
        n_child, f_child = np.int64(counts[token, 0]), np.int64(counts[token, 1])
        weights = (float(n_child), float(f_child))  # of no effect on what one left out would say
        push_known(stack, top, token + BOUNDARY, depth, n_child, f_child, 0.0, posterior, 0.0, settings.kappa, weights)
        counts[token, 0], counts[token, 1] = 0, 0
    return left_out_score(stack, first, top[0], np.int64(frame.event_stop - frame.event), f, posterior, settings)


@jit
def push_lists(trie: Trie, evidence: Evidence, stack: Stack, settings: Settings, frame: Frame, below: Frame) -> bool:
    """`cpu._push_children` of a list of ranks, which is sorted by the tokens that tell its parts apart."""
    scratch, events, sums = evidence.scratch, evidence.events, evidence.sums
    ranks, marks = scratch.ranks, scratch.marks
    posterior = Posterior(frame.p, frame.without_firing, frame.without_silent, frame.value)
    depth = stack[frame.index].depth + 1 + frame.skip
    start = frame.next
    while start < frame.stop:
        token = token_at(trie, ranks[start], depth)
        stop, f, total = start, 0, 0.0
        while stop < frame.stop and token_at(trie, ranks[stop], depth) == token:
            if marks[ranks[stop]] == FIRES:
                # Ranks of a list are in no order of events; sums are by event.
                event = np.searchsorted(events, ranks[stop])
                total += sums[event + 1] - sums[event]
                f += 1
            stop += 1
        n = stop - start
        is_mixed, weights = 0 < f < n and depth < settings.max_depth and token != BOUNDARY, (float(n), float(f))
        if is_mixed:
            sort_list(trie, scratch, start, stop, depth + 1)
            weights = _weigh_list(trie, scratch, start, stop, depth + 1, settings.kappa)
        index, child_posterior = push_known(
            stack, scratch.top, token, depth, n, f, total, posterior, evidence.rest, settings.kappa, weights
        )
        if is_mixed and index >= 0:
            open_frame(below, index, child_posterior, 1)
            below.next, below.stop = start, stop
            # The list once more, to begin again if tokens are to be ignored.
            below.event, below.event_stop = start, stop
            frame.next = stop
            return True
        start = stop
    frame.next = start
    return False


@jit
def _weigh_list(trie: Trie, scratch: Scratch, start: int, stop: int, depth: int, kappa: float) -> tuple[float, float]:
    """As `naive._weigh`, of `ranks[start:stop]`, which are sorted by their tokens at `depth`."""
    weighed_n, weighed_f = 0.0, 0.0
    while start < stop:
        token, n, f = token_at(trie, scratch.ranks[start], depth), 0, 0
        while start < stop and token_at(trie, scratch.ranks[start], depth) == token:
            f += scratch.marks[scratch.ranks[start]] == FIRES
            n += 1
            start += 1
        weighed_n += kappa * n / (n + kappa)
        weighed_f += kappa * f / (n + kappa)
    return weighed_n, weighed_f


@jit
def sort_list(trie: Trie, scratch: Scratch, a: int, b: int, depth: int) -> None:
    """Sort `ranks[a:b]` by their tokens at `depth`, then by rank."""
    keys = scratch.keys[a:b]
    for i in range(a, b):
        keys[i - a] = np.int64(token_at(trie, scratch.ranks[i], depth) - BOUNDARY) << 32 | np.int64(scratch.ranks[i])
    # One integer each, token first: ranks that are told apart are sorted with the tokens that do it.
    keys.sort()
    for i in range(a, b):
        scratch.ranks[i] = keys[i - a] & 0x7FFFFFFF


@jit
def token_at(trie: Trie, rank: int, depth: int) -> np.int64:
    """The token `depth` tokens before the position of a rank; `BOUNDARY` before its window."""
    # Side by side by rank: most of what is asked for lies there.
    if NEAR <= depth < NEAR + trie.near.shape[0]:
        return np.int64(trie.near[depth - NEAR, rank])
    return np.int64(trie.ids[trie.input_index[rank] - depth]) if trie.reach[rank] >= depth else np.int64(BOUNDARY)

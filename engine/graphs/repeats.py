"""In-context neurons: those that fire on a token because it occurred before in the same window.

From stored activations, one block of one layer in memory at a time; neither graphs nor a model are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store.capture.saturation import saturated_maxima
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.forest import Forest
from actstore.store.graphs.nodes import column
from actstore.store.layout import GENERATED, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Repeats:
    """How often neurons fire on repeated tokens and on first occurrences; each column has shape [neuron]."""

    layer: NDArray[np.int32]
    neuron: NDArray[np.int32]
    repeated: NDArray[np.float64]
    """P(fires | the token occurred before in the window)."""
    first: NDArray[np.float64]
    """P(fires | it is the token's first occurrence)."""
    fires_repeated: NDArray[np.int64]
    fires_first: NDArray[np.int64]
    same_repeated: NDArray[np.float64]
    """`repeated` with each token compared with itself: the mean, with the weights of Mantel and Haenszel, over the tokens on
    which the neuron fires and that occur in both ways. NaN where there is no such token."""
    same_first: NDArray[np.float64]
    """`first` in the same way."""
    score: NDArray[np.float64]
    """Lower bound of the factor by which repetition of a token raises the probability of firing: the Mantel-Haenszel ratio of
    the two, less two standard errors of its logarithm. NaN where there is no such token."""
    n_repeated: int
    """Number of positions whose token occurred before in the window."""
    n_first: int
    """Number of positions whose token occurs for the first time."""

    def ranked(self, least_fires: int = 10) -> NDArray[np.int64]:
        """Rows of the neurons that fired at `least_fires` or more positions, largest score first, ties to the smaller row."""
        rows = np.flatnonzero((self.fires_repeated + self.fires_first >= least_fires) & (self.score == self.score))
        return rows[np.lexsort((rows, -self.score[rows]))]


def measure_repeats(capture: Capture, *, site: str = "mlp.post", share: float = 0.5) -> Repeats:
    """How often every neuron fires on tokens that occurred before in their window, and on those that did not.

    Firing is an activation of at least `share` of the neuron's maximum over the capture. Frequent tokens are repeated more
    often than rare ones, so a neuron that fires on "the" fires on repeated tokens without looking back: `same_repeated` and
    `same_first` compare each token with itself only. Special tokens are not evidence.
    Memory: one block of one layer, and 16 bytes per pair of a neuron of the layer and a token that it fires on.
    """
    if not 0 < share <= 1:
        raise InvalidInputError(f"`share` must be above 0 and at most 1, found {share}.")
    if site not in capture.record.sites:
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has no site {site!r}. Its sites are: {', '.join(capture.record.sites)}."
        )
    blocks = [_Block.of(capture, block) for block in capture.blocks]
    n_tokens = 1 + max((int(block.ids.max(initial=0)) for block in blocks), default=0)
    n_by_token = sum((block.counts(n_tokens) for block in blocks), np.zeros((2, n_tokens), np.int64))
    parts = []
    for layer, width in sorted(capture.record.layers(site).items()):
        keys, counts = _count_layer(capture, site, layer, blocks, share, n_tokens)
        parts.append(_compare(layer, width, keys, counts, n_by_token))
    columns: list[NDArray[Any]] = [np.concatenate(column) for column in zip(*parts, strict=True)]
    names = [item.name for item in fields(Repeats)][: len(columns)]
    totals = {"n_repeated": int(n_by_token[1].sum()), "n_first": int(n_by_token[0].sum())}
    return Repeats(**dict(zip(names, columns, strict=True)), **totals)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Block:
    """The positions of a block that are evidence."""

    block: int
    slots: NDArray[np.int64]
    ids: NDArray[np.int64]
    repeated: NDArray[np.bool_]

    @classmethod
    def of(cls, capture: Capture, block: int) -> _Block:
        plan = capture.block_plan(block)
        n_inputs = plan.windows["n_inputs"].astype(np.int64)
        window = np.repeat(np.arange(len(n_inputs)), n_inputs)
        keys = window * (int(plan.inputs.max(initial=0)) + 1) + plan.inputs
        repeated = np.ones(len(keys), bool)
        repeated[np.unique(keys, return_index=True)[1]] = False
        begins = np.cumsum(n_inputs) - n_inputs
        index = np.repeat(begins, plan.windows["n_slots"]) + plan.position
        slots = np.flatnonzero((plan.modality == TEXT) | (plan.modality == GENERATED))
        return cls(block, slots, plan.inputs[index[slots]].astype(np.int64), repeated[index[slots]])

    def counts(self, n_tokens: int) -> NDArray[np.int64]:
        """First and repeated occurrences of each token; shape [2, token]."""
        counts = np.bincount(self.repeated * n_tokens + self.ids, minlength=2 * n_tokens).astype(np.int64)
        return counts.reshape(2, n_tokens)


def _count_layer(
    capture: Capture, site: str, layer: int, blocks: list[_Block], share: float, n_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys neuron · n_tokens + token, ascending, and the number of firings at first and at repeated occurrences [2, key]."""
    maximum = saturated_maxima(capture, layer, site)
    # A neuron whose maximum is not above zero never fires.
    limit = np.where(np.isfinite(maximum) & (maximum > 0), share * maximum, np.inf)[:, None].astype(np.float32)
    keys, counts = np.empty(0, np.int64), np.empty((2, 0), np.int64)
    for block in blocks:
        values = capture.block_values(layer, block.block, site, saturated=True)
        neuron, column_index = np.nonzero(values[:, block.slots] >= limit)
        all_keys = np.concatenate([keys, neuron * n_tokens + block.ids[column_index]])
        repeated = block.repeated[column_index]
        weights = np.concatenate([counts, np.stack([~repeated, repeated]).astype(np.int64)], axis=1)
        keys, key_index = np.unique(all_keys, return_inverse=True)
        counts = np.stack([np.bincount(key_index, row, minlength=len(keys)) for row in weights]).astype(np.int64)
    return keys, counts


def _compare(
    layer: int, width: int, keys: NDArray[np.int64], fires: NDArray[np.int64], n_by_token: NDArray[np.int64]
) -> Iterator[NDArray[Any]]:
    """The columns of `Repeats` for one layer, in the order of its fields."""
    n_tokens = n_by_token.shape[1]
    neuron, token = keys // n_tokens, keys % n_tokens
    total = n_by_token.sum(axis=1)

    def by_neuron(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(neuron, values, minlength=width).astype(np.float64)

    n_first, n_repeated = n_by_token[:, token].astype(np.float64)
    n = n_first + n_repeated
    both = (n_first > 0) & (n_repeated > 0)
    weights = by_neuron(np.where(both, n_first * n_repeated / n, 0.0))
    # Sums over tokens of the firings of one kind, weighted by the share of the other kind (Greenland and Robins 1985).
    repeated, first = by_neuron(both * fires[1] * n_first / n), by_neuron(both * fires[0] * n_repeated / n)
    spread = by_neuron(both * (fires.sum(axis=0) * n_first * n_repeated / n**2 - fires[0] * fires[1] / n))
    # A pseudo-count of one token that occurs once in each way and fires half of the time keeps ratios of rare events near 1.
    r, s = repeated + 0.25, first + 0.25
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(weights > 0, r / s * np.exp(-2 * np.sqrt((spread + 0.125) / (r * s))), np.nan)
        same_repeated, same_first = repeated / weights, first / weights
        of_repeated, of_first = by_neuron(fires[1]) / total[1], by_neuron(fires[0]) / total[0]
    yield np.full(width, layer, np.int32)
    yield np.arange(width, dtype=np.int32)
    yield of_repeated
    yield of_first
    yield by_neuron(fires[1]).astype(np.int64)
    yield by_neuron(fires[0]).astype(np.int64)
    yield same_repeated
    yield same_first
    yield score


def path_shares(graphs: Graphs) -> dict[tuple[int, int], float]:
    """(layer, neuron) → of the firings explained by its paths, the share of those in which the activating token occurs twice.

    Neurons without a path that predicts firing are left out.
    """
    forest = Forest.of(graphs)
    token, is_root = forest.nodes["token"], forest.nodes["depth"] == 0
    recurs = forest.below((token == token[forest.root]) & ~is_root)
    paths = np.flatnonzero(forest.fires)
    explained = forest.nodes["probability"][paths] * forest.own_fires[paths]
    n_neurons = len(graphs)
    total = np.bincount(forest.neuron[paths], explained, minlength=n_neurons)
    repeated = np.bincount(forest.neuron[paths], explained * recurs[paths], minlength=n_neurons)
    layers, neurons = column(graphs.neurons, "layer"), column(graphs.neurons, "neuron")
    return {
        (int(layers[row]), int(neurons[row])): float(repeated[row] / total[row])
        for row in np.flatnonzero(total).tolist()
    }

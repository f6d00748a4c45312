"""Which neurons write a token: contributions of all neurons to target tokens, from stored activations and weights.

The contribution of a neuron to a token at a position is its direct additive term in that token's logit there,
`a · s · (w · (γ ⊙ u)) / rms` (Pan et al. 2024, arXiv 2311.07470, who leave out s, γ and rms): activation, scale of the layer's
output there, write vector, final norm's gain, unembedding. The sum over all neurons, with what attention and embedding add, is
the logit; what later layers make of a neuron is not in it. Where the final norm centres, so are the write vectors. s is 1, but
where a norm follows the feed-forward (w then has its gain) and in mixtures. A cap on logits (Gemma 2) comes after.

Layers stream, and within a layer the blocks of the capture: one layer's weights and one block of activations are in memory
at a time; on a GPU three blocks. Workers take layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.engine.contributions.next_tokens import Place, find_slot
from actstore.engine.contributions.ranking import Ranking
from actstore.engine.contributions.source import SITE, ContributionQuery, Source
from actstore.engine.contributions.spellings import spelling_sentences, spellings
from actstore.engine.contributions.targets import Target, find_target
from actstore.engine.devices.device import HOST, Device, find_device
from actstore.engine.workers.scan import HERE, Scan, executor_of
from actstore.kernels.contribution.api import ContributionSums, Targets, contribution, sum_contributions
from actstore.store.arguments import argument, given_fields
from actstore.store.capture.tokens.write_scale import scale_sentences
from actstore.store.capture.unfinished import logger
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import check_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.contributions.next_tokens import Slot
    from actstore.engine.workers.executor import Executor
    from actstore.store.reader import Store

__all__ = ["Answer", "ContributionQuery", "rank_contributions"]


class Answer:
    """Rankings of neurons: one row for every target and label, or one for all next tokens together."""

    def __init__(self, rows: Sequence[tuple[Target | None, str | None]], ranking: Ranking, where: Slot | None) -> None:
        self.rows, self.ranking, self.where = tuple(rows), ranking, where
        self.warnings: tuple[str, ...] = ()
        """What makes its scores approximate, in sentences."""

    def table(self) -> pa.Table:
        """One row per neuron, best first, ranking after ranking.

        Columns: target (its text) and token (its id), null where each position had its own; label, null without one; name,
        layer, neuron; score, the mean contribution over the `tokens` positions looked at; total, their sum.
        """
        columns: dict[str, list[Any]] = {name: [] for name in TABLE.names}
        for (target, label), ranked in zip(self.rows, self.ranking.rows(), strict=True):
            n = len(ranked.scores)
            columns["target"] += [target.text if target else None] * n
            columns["token"] += [target.token if target else None] * n
            columns["label"] += [label] * n
            columns["name"] += ranked.names()
            columns["layer"] += ranked.layers.tolist()
            columns["neuron"] += ranked.neurons.tolist()
            columns["score"] += ranked.scores.tolist()
            columns["total"] += ranked.totals.tolist()
            columns["tokens"] += [ranked.n_tokens] * n
        return pa.table(columns, TABLE)


TABLE = pa.schema(
    [
        ("target", pa.string()),
        ("token", pa.int32()),
        ("label", pa.string()),
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("neuron", pa.int32()),
        ("score", pa.float64()),
        ("total", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


def rank_contributions(
    store: Store,
    targets: Sequence[str | int],
    query: ContributionQuery,
    executor: Executor = HERE,
    device: Device = HOST,
) -> Answer:
    """The neurons that contribute most to each target, over all captured layers together, by signed score.

    `targets` are texts or ids of single tokens. At a place (`asked.at`), none means the token that comes there. Over a
    capture, a target's score is the mean over the positions that it follows: those that predicted it. None means that each
    position counts for its own next token, summed by label. Special tokens enter no mean. NaN and infinite
    activations are left out; of an expert, a position not routed to it counts as a contribution of 0. Ties go to the
    smaller neuron.

    `InvalidInputError` for a target that is not one token, or that follows nowhere; `NotFoundError` for a place, a label, a
    layer's values or weights that the store does not hold.
    """
    if query.k < 1:
        raise InvalidInputError(f"At least one neuron must be asked for, found {query.k}. Pass `k` of 1 or more.")
    if query.logits and not query.gain:
        raise InvalidInputError(
            "`logits` needs the final norm's gain, which `paper_form` (in Python `gain=False`) leaves out. Pass only one."
        )
    check_part(store.folder, "unembedding")  # first: without a head, there is nothing to ask in a better way
    target_tokens = [find_target(store, target) for target in targets]
    capture = store.capture(query.capture)
    if capture.record.of_tower:
        raise InvalidInputError(
            f"Contributions are to a token's logit, but capture {capture.record.name!r} is of {capture.record.part}, whose "
            "neurons do not write to it. Name a capture of the language model with `capture`."
        )
    source = Source(store, capture, query, device)
    answer = _answer(source, target_tokens, executor)
    if query.gain:
        is_sum = query.at is None and not query.everywhere and not target_tokens and source.is_summed
        answer.warnings = tuple(scale_sentences(capture, source.layers, summed=is_sum))
    if target_tokens and query.at is None and not query.everywhere:
        answer.warnings += tuple(spelling_sentences(source, target_tokens))
    return answer


def _answer(source: Source, target_tokens: list[Target], executor: Executor) -> Answer:
    query, store = source.query, source.store
    if query.at is not None:
        return _at_place(source, target_tokens, query.at)
    if query.everywhere:
        if not target_tokens:
            raise InvalidInputError("`everywhere` is over all positions, for a target: name one with `target`.")
        return _everywhere(source, target_tokens, executor)
    if store.model.kind == "encoder":
        raise InvalidInputError(
            f"{store.model.name} is an encoder, whose positions do not predict a next token. Look at one with `at`, or at "
            "all with `everywhere=True`."
        )
    return _over_next_tokens(source, target_tokens, executor)


def _at_place(source: Source, targets: list[Target], at: str | Place) -> Answer:
    if source.query.by is not None or source.query.everywhere:
        raise InvalidInputError(
            "One position has no labels and is not everywhere: leave out `at`, or `by` and `everywhere`."
        )
    slot = find_slot(source.capture, Place.parse(at) if isinstance(at, str) else at)
    if not targets:
        if slot.next_token < 0:
            raise InvalidInputError(
                f"No token is known to come after position {slot.position} of document {slot.document}: name a `target`."
            )
        targets = [find_target(source.store, slot.next_token)]
    unembedding = source.unembedding(targets)
    ranking = Ranking(source.query.k, np.ones(len(targets), np.int64))
    for layer in source.layers:
        vectors = source.directions.vectors(layer)
        of_layer = source.scale(layer, slot.block)
        scale = None if of_layer is None else np.repeat(of_layer[slot.offset], len(targets))
        factors = Targets(unembedding, gain=source.directions.gain, scale=scale)
        values = np.ascontiguousarray(source.values(layer, slot.block)[:, slot.offset, None])
        scores = contribution(np.repeat(values, len(targets), axis=1), vectors, factors).T.astype(np.float64)
        ranking.add(layer, np.where(np.isfinite(scores), scores, np.nan))
    return Answer([(target, None) for target in targets], ranking, slot)


def _over_next_tokens(source: Source, targets: list[Target], executor: Executor) -> Answer:
    """Every position against its own next token; with targets, those alone that one of them follows."""
    layers = source.layers
    if not targets and (summed := source.summed_while_capturing()) is not None:
        if not any(sums.count.any() for sums in summed.values()):
            raise InvalidInputError(_nowhere(source, targets))
        return _ranked(source, targets, ((layer, summed[layer]) for layer in layers))
    sum_layer = _LayerSums(source, tuple(targets))
    if not sum_layer.blocks:
        raise InvalidInputError(_nowhere(source, targets))
    return _ranked(source, targets, zip(layers, Scan(executor, "layer")(sum_layer, layers), strict=True))


def _ranked(source: Source, targets: list[Target], layer_sums: Iterable[tuple[int, ContributionSums]]) -> Answer:
    ranking: Ranking | None = None
    layers = source.layers
    for layer, sums in layer_sums:
        ranking = ranking or Ranking(source.query.k, sums.count)
        n_summed = np.broadcast_to(sums.count[:, None], sums.total.shape)
        _add_means(ranking, layer, sums.total, n_summed if layers[layer] else n_summed - sums.non_finite)
    assert ranking is not None
    return Answer(_rows(source, targets), ranking, None)


@dataclass(frozen=True)
class _LayerSums:
    """What adds up the contributions of a layer over all blocks, here or in a worker."""

    source: Source
    targets: tuple[Target, ...]

    def __call__(self, layer: int) -> ContributionSums:
        source = self.source
        vectors = source.device.put(source.directions.vectors(layer))
        sums = ContributionSums.empty(self._n_groups, len(vectors))
        for block, values in zip(self.blocks, source.stream(layer, self.blocks), strict=True):
            rows, groups = self._of_block(block)
            factors = Targets(self._directions, rows, source.directions.gain, source.scale(layer, block))
            sums.merge(sum_contributions(values, vectors, factors, groups, self._n_groups))
        return sums

    @cached_property
    def blocks(self) -> list[int]:
        """The blocks with a position that counts."""
        return [block for block in self.source.capture.blocks if (self._of_block(block)[1] >= 0).any()]

    @property
    def _n_groups(self) -> int:
        return max(1, len(self.targets)) * self.source.n_labels

    @cached_property
    def _directions(self) -> Tensor:
        directions: Tensor = self.source.device.put(self.source.unembedding(self.targets))
        return directions

    @cached_property
    def _of_block(self) -> Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return lru_cache(maxsize=16)(self._read_block)

    def _read_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every slot the row of its target among the directions, and its group, -1 for none."""
        source, ids = self.source, np.array([target.token for target in self.targets], np.int64)
        size = source.capture.record.plan.block_slots
        rows, groups = np.zeros(size, np.int64), np.full(size, -1, np.int64)
        following = source.next_tokens.of_block(block)
        labels, counted = source.slot_labels(block)
        if self.targets:
            order = np.argsort(ids, kind="stable")
            target_of_slot = order[np.minimum(np.searchsorted(ids, following, sorter=order), len(ids) - 1)]
            is_summed = counted & (ids[target_of_slot] == following)
            rows[: len(following)], labels = (
                np.where(is_summed, target_of_slot, 0),
                target_of_slot * source.n_labels + labels,
            )
        else:
            is_summed = counted & (following >= 0)
            rows[: len(following)] = np.where(is_summed, following, 0)
        groups[: len(following)] = np.where(is_summed, labels, -1)
        return rows, groups

    def __reduce__(self) -> tuple[type[_LayerSums], tuple[Source, tuple[Target, ...]]]:
        return _LayerSums, (self.source, self.targets)  # a worker has caches of its own


def _nowhere(source: Source, targets: list[Target]) -> str:
    name = source.capture.record.name
    if not source.capture.blocks:
        return f"Capture {name!r} has no committed block yet: there is nothing to sum."
    if not targets:
        return f"No position of capture {name!r} has a next token: its windows keep their last position only."
    texts = ", ".join(repr(target.text) for target in targets)
    others = [(one.other, one.n_other) for one in spellings(source, targets)]
    hint = "".join(f" {other.text!r} follows {n:,}." for other, n in others if other is not None and n)
    return (
        f"{texts} follows no position of text that capture {name!r} keeps.{hint} Look at all positions with "
        "`everywhere=True`, or at one with `at`."
    )


def _everywhere(source: Source, targets: list[Target], executor: Executor) -> Answer:
    """One direction for all positions: what differs between them, the activations, is summed first."""
    factors = Targets(source.unembedding(targets), gain=source.directions.gain)
    ranking: Ranking | None = None
    layers = source.layers
    scan = Scan(HERE if all(_is_in_statistics(source, layer) for layer in layers) else executor, "layer")
    layer_sums = scan(partial(_sum_activations, source), layers)
    for layer, (sums, n_summed, n_tokens) in zip(layers, layer_sums, strict=True):
        vectors = source.directions.vectors(layer)
        if layers[layer]:
            n_summed = np.broadcast_to(n_tokens[:, None], sums.shape)
        ranking = ranking or Ranking(source.query.k, np.tile(n_tokens, len(targets)))
        products = contribution(np.ones((len(vectors), len(targets)), np.float32), vectors, factors).astype(np.float64)
        total = (products.T[:, None] * sums[None]).reshape(-1, len(vectors))
        _add_means(ranking, layer, total, np.tile(n_summed, (len(targets), 1)))
    assert ranking is not None
    return Answer(_rows(source, targets), ranking, None)


def _is_in_statistics(source: Source, layer: int) -> bool:
    """Whether the statistics of the capture hold the sums of a layer's activations, whatever the precision of its values."""
    return source.query.by is None and not source.is_scaled(layer)


def _sum_activations(source: Source, layer: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The sum of the finite activations of each label [label, neuron], how many they are, and the label's tokens [label]."""
    capture = source.capture
    if _is_in_statistics(source, layer):
        statistics = capture.layer_statistics(layer, SITE)
        count = statistics.count.astype(np.int64)
        sums = np.where(count > 0, statistics.mean * count, 0)
        return sums[None], count[None], capture.statistics().label_tokens[-1:]
    width = capture.record.layers(SITE)[layer]
    sums, count = np.zeros((source.n_labels, width)), np.zeros((source.n_labels, width), np.int64)
    n_tokens = np.zeros(source.n_labels, np.int64)
    for block in capture.blocks:
        labels, counted = source.slot_labels(block)
        weights = (labels == np.arange(source.n_labels)[:, None]) & counted
        scale = source.scale(layer, block)
        values = capture.block_values(layer, block, saturated=True)[:, : len(labels)]
        for first in range(0, width, 256):  # in float64, a few neurons at a time
            neurons = slice(first, first + 256)
            chunk = values[neurons].astype(np.float64)
            finite = np.isfinite(chunk)
            chunk = np.where(finite, chunk, 0) * (1 if scale is None else scale[: len(labels)])
            sums[:, neurons] += weights @ chunk.T
            count[:, neurons] += (weights.astype(np.float64) @ finite.T).astype(np.int64)
        n_tokens += weights.sum(axis=1)
    return sums, count, n_tokens


def _add_means(ranking: Ranking, layer: int, total: NDArray[np.float64], n_summed: NDArray[np.int64]) -> None:
    ranking.add(layer, np.where(n_summed > 0, total / np.maximum(n_summed, 1), np.nan), total)


def _rows(source: Source, targets: Sequence[Target]) -> list[tuple[Target | None, str | None]]:
    row_targets: Sequence[Target | None] = targets or [None]
    return [(target, label) for target in row_targets for label in source.labels.values()]


def answer_question(
    store: Store, target: str | int | Sequence[str | int] | None, query: Mapping[str, object]
) -> pa.Table:
    """`Store.contributions`: the answer as a table; `query` holds fields of `ContributionQuery`, `workers`, `on`, `device`."""
    workers, on = argument("workers", query.get("workers"), int | None), argument("on", query.get("on", "local"), str)
    executor, device = executor_of(workers, on), find_device(argument("device", query.get("device", "auto"), str), on)
    query = {name: value for name, value in query.items() if name not in ("workers", "on", "device")}
    targets = argument("target", target, str | int | Sequence[str | int] | None)
    if not isinstance(targets, tuple):
        targets = () if targets is None else (targets,)
    asked = ContributionQuery(**given_fields(ContributionQuery, query, "A query"))
    answer = rank_contributions(store, targets, asked, executor, device)
    for sentence in answer.warnings:
        logger.warning("%s", sentence)
    return answer.table()

"""Change scores: how differently each neuron of two models acts on the same tokens.

`S(n) = sqrt(Σ (a_n(M₁) − a_n(M₂))² / count)` over the positions of two captures on one plan (Chen et al., NeurIPS 2025, arXiv
2406.14144). Only two running sums per neuron are kept, block by block, and those of several machines add up. Reads stores only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.workers.scan import HERE, Scan
from actstore.store.capture.plan import TOKEN_ARRAYS
from actstore.store.capture.positions import blocks_with, check_positions, check_values, warnings_of
from actstore.store.errors import InvalidInputError
from actstore.store.layout import capture_key
from actstore.store.neurons import neuron_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.store.reader import Capture

FEW_POSITIONS: Final = 100
"""With fewer, the standard error of S is above 7 % even where differences are normal and positions independent: a warning."""
ROWS_AT_ONCE: Final = 64
"""Neurons whose differences are held in float64 at a time."""


@dataclass
class ChangeSums:
    """Σ (a₁ − a₂)² and the number of positions in it, by layer; `merge` adds those of other positions."""

    squares: dict[int, NDArray[np.float64]]
    """Layer → sums; shape [neuron]."""
    counts: dict[int, NDArray[np.int64]]
    """Layer → positions at which both models have a finite value; shape [neuron]."""

    @classmethod
    def empty(cls, widths: dict[int, int]) -> ChangeSums:
        """Sums over no position; `widths` is layer → neurons."""
        return cls(
            {layer: np.zeros(width) for layer, width in widths.items()},
            {layer: np.zeros(width, np.int64) for layer, width in widths.items()},
        )

    def add(self, layer: int, first: NDArray[np.floating], second: NDArray[np.floating]) -> None:
        """Add the values [neuron, position] of both models; values that are not finite, as of idle experts, are left out."""
        for start in range(0, len(first), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            with np.errstate(invalid="ignore", over="ignore"):
                difference = np.subtract(first[rows], second[rows], dtype=np.float64)
                finite = np.isfinite(difference)
            n_finite = finite.sum(axis=1)
            if n_finite.sum() < finite.size:
                difference[~finite] = 0
            self.squares[layer][rows] += np.einsum("np,np->n", difference, difference)
            self.counts[layer][rows] += n_finite

    def merge(self, other: ChangeSums) -> None:
        """Add in place the sums over other positions."""
        for layer in self.squares:
            self.squares[layer] += other.squares[layer]
            self.counts[layer] += other.counts[layer]

    def scores(self) -> dict[int, NDArray[np.float64]]:
        """Layer → S(n), NaN for a neuron without a counted position; shape [neuron]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return {layer: np.sqrt(total / self.counts[layer]) for layer, total in self.squares.items()}


@dataclass(frozen=True)
class Change:
    """The change scores of two captures."""

    scores: NDArray[np.float64]
    """S of every neuron of every layer, layers ascending (flat ids); NaN where there is no counted position."""
    layer: NDArray[np.int32]
    """The layer of each flat id."""
    neuron: NDArray[np.int32]
    """Its index in the layer."""
    n_positions: int
    """Number of positions compared, in the blocks that both captures have."""
    sums: ChangeSums
    warnings: tuple[str, ...] = ()

    @property
    def nothing_differs(self) -> str | None:
        """The sentence that says so where every value compared is the same in both; None where one differs, or none is."""
        if np.nanmax(self.scores, initial=0.0) > 0 or np.isnan(self.scores).all():
            return None
        return (
            f"No neuron differs: both captures have the same activations at all {self.n_positions:,} tokens compared."
        )

    def check_difference(self) -> None:
        """Raise `InvalidInputError` where nothing differs, and there is nothing to patch."""
        if (sentence := self.nothing_differs) is not None:
            raise InvalidInputError(f"{sentence} There is nothing to patch.")

    def ranking(self) -> NDArray[np.int64]:
        """Flat ids by score, largest first; ties to the earlier neuron, neurons without a score left out."""
        order = np.argsort(-self.scores, kind="stable")
        return order[: np.count_nonzero(~np.isnan(self.scores))]

    def top(self, share: float = 0.05) -> NDArray[np.int64]:
        """The flat ids of the `share` of all neurons that changed most, largest first: the paper's safety neurons.

        Fewer where fewer changed: neurons with a score of 0 are never among them.
        """
        check_share(share)
        ranking = self.ranking()[: max(1, round(share * len(self.scores)))]
        return ranking[self.scores[ranking] > 0]

    def by_layer(self, flat: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """Layer → indices in it of neurons given by flat id, ascending; layers without one are left out."""
        return {
            int(layer): np.sort(self.neuron[flat[self.layer[flat] == layer]]).astype(np.int64)
            for layer in np.unique(self.layer[flat])
        }

    def names(self, flat: NDArray[np.int64]) -> list[str]:
        """The name, such as `L3.N17`, of every flat id."""
        return neuron_names(self.layer[flat].tolist(), self.neuron[flat].tolist())


def change_scores(
    first: Capture,
    second: Capture,
    *,
    site: str = "mlp.post",
    positions: str = "counted",
    on_block: Callable[[int, int], None] = lambda done, n_blocks: None,
    executor: Executor = HERE,
) -> Change:
    """The change score of every neuron of every layer between two captures of one plan; see `ChangeSums`.

    `positions` is a key of `positions.POSITIONS`; the paper uses `predicting`, on a capture of M₁'s own generation.
    Only blocks that both captures have are compared, and one layer of one block is in memory at a time. The workers of
    `executor` take blocks.

    Raises `InvalidInputError` where both are one capture, where plans (naming the difference), sites, layers or widths differ,
    and where a capture has no values or no such positions.

    >>> change_scores(base.capture("prompts"), tuned.capture("prompts"), positions="predicting").top(0.05)
    """
    _check_two(first, second)
    for capture in (first, second):
        check_values(capture, site)
    check_same_plan(first, second)
    check_positions(first, positions)
    widths = _shared_layers(first, second, site)
    blocks = sorted(set(first.blocks) & set(second.blocks))
    if not blocks:
        raise InvalidInputError(
            f"{_name(first)} and {_name(second)} have no committed block in common. Resume them with `resume=True`."
        )
    sums, n_positions = ChangeSums.empty(widths), 0
    of_blocks = Scan(executor, "block")(partial(_sum_block, first, second, site, positions, widths), blocks)
    for done, (n_compared, of_block) in enumerate(of_blocks):
        sums.merge(of_block)
        n_positions += n_compared
        on_block(done + 1, len(blocks))
    scores = sums.scores()
    warnings = [*warnings_of(first, site), *warnings_of(second, site)]
    if not n_positions:
        warnings.append(f"No position of {_name(first)} is one of {positions!r}: there are no scores.")
    elif n_positions < FEW_POSITIONS:
        warnings.append(
            f"Scores are over {n_positions} positions; fewer than {FEW_POSITIONS} make the order of neurons that of a few "
            "texts. Capture more."
        )
    return Change(
        np.concatenate(list(scores.values())),
        np.repeat(np.array(list(widths), np.int32), list(widths.values())),
        np.concatenate([np.arange(width, dtype=np.int32) for width in widths.values()]),
        n_positions,
        sums,
        tuple(warnings),
    )


def _sum_block(
    first: Capture, second: Capture, site: str, positions: str, widths: dict[int, int], block: int
) -> tuple[int, ChangeSums]:
    """The positions of a block that are compared, and the sums over them."""
    sums = ChangeSums.empty(widths)
    for _, slots in blocks_with(first, positions, [block]):
        # A slice where every slot is compared: an index would copy the values of the block.
        is_prefix = len(slots) == slots[-1] + 1
        columns: slice | NDArray[np.int64] = slice(len(slots)) if is_prefix else slots
        for layer in widths:
            sums.add(
                layer,
                first.block_values(layer, block, site, saturated=True)[:, columns],
                second.block_values(layer, block, site, saturated=True)[:, columns],
            )
        return len(slots), sums
    return 0, sums


def check_share(share: float) -> None:
    """Raise `InvalidInputError` unless `share` is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise InvalidInputError(f"Expected `share`, a share of all neurons, above 0 and at most 1, found {share}.")


def _check_two(first: Capture, second: Capture) -> None:
    """Raise `InvalidInputError` where both are the same capture of the same store, whatever the paths say."""
    key = capture_key(first.record.name)
    places = [one.folder.local_path(key) for one in (first, second)]
    is_same = first.folder.location == second.folder.location or (
        places[0] is not None and places[1] is not None and places[0].resolve() == places[1].resolve()
    )
    if is_same and first.record.name == second.record.name:
        raise InvalidInputError(
            f"Both are {_name(first)}, and a comparison needs two captures: name the store of the other model, or with "
            "`other_capture` another capture."
        )


def _name(capture: Capture) -> str:
    return f"capture {capture.record.name!r} of {capture.folder}"


def _shared_layers(first: Capture, second: Capture, site: str) -> dict[int, int]:
    """Layer → width, the same in both; `InvalidInputError` naming the first difference."""
    one, two = first.record.layers(site), second.record.layers(site)
    if set(one) != set(two):
        raise InvalidInputError(
            f"{_name(first)} has layers {_listed(one)} at {site}, and {_name(second)} layers {_listed(two)}: every layer is "
            "compared. Capture the same `layers` of two models of one architecture."
        )
    if differing := [layer for layer in one if one[layer] != two[layer]]:
        layer = differing[0]
        raise InvalidInputError(
            f"Layer {layer} has {one[layer]} neurons at {site} in {_name(first)} and {two[layer]} in {_name(second)}. Compare "
            "two models of one architecture, such as a model and its fine-tuned copy."
        )
    return dict(sorted(one.items()))


def _listed(layers: dict[int, int]) -> str:
    return ", ".join(map(str, sorted(layers)))


def check_same_plan(first: Capture, second: Capture) -> None:
    """Raise `InvalidInputError` unless every slot of two captures holds the same token of the same input.

    Plans with one fingerprint are the same; others are compared token by token, since labels, sources and batches do not
    affect what a slot holds.
    """
    one, two = first.record.plan, second.record.plan
    if one.fingerprint == two.fingerprint:
        return
    difference = _first_difference(first, second)
    if difference is None:
        return
    causes = [
        f"{name} {_shown(getattr(one, name))} and {_shown(getattr(two, name))}"
        for name in ("corpus", "tokenizer_fingerprint", "corpus_fingerprint")
        if getattr(one, name) != getattr(two, name)
    ]
    causes += [
        f"setting {key} {one.settings.get(key)} and {two.settings.get(key)}"
        for key in sorted({*one.settings, *two.settings})
        if one.settings.get(key) != two.settings.get(key)
    ]
    raise InvalidInputError(
        f"Only captures of the same tokens can be compared, and {_name(first)} and {_name(second)} differ in "
        f"{'; '.join([difference, *causes])}. Capture the second with the corpus, tokenizer and settings of the first."
    )


def _shown(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else value


def _first_difference(first: Capture, second: Capture) -> str | None:
    """The first difference of two plans, as a phrase; None where every slot holds the same."""
    one, two = first.record.plan, second.record.plan
    for name in ("n_tokens", "block_slots", "n_blocks", "n_windows"):
        if getattr(one, name) != getattr(two, name):
            kind = {
                "n_tokens": "tokens",
                "block_slots": "slots per block",
                "n_blocks": "blocks",
                "n_windows": "windows",
            }
            return f"the number of {kind[name]}, {getattr(one, name):,} and {getattr(two, name):,}"
    for block in range(one.n_blocks):
        slots = slice(block * one.block_slots, (block + 1) * one.block_slots)
        for name in TOKEN_ARRAYS:
            a, b = first.plan.array(f"tokens/{name}", slots), second.plan.array(f"tokens/{name}", slots)
            if not np.array_equal(a, b):
                slot = int(np.flatnonzero(a != b)[0])
                return f"the tokens' {name}, at slot {slots.start + slot:,} first: {a[slot]} and {b[slot]}"
        # The model also reads ids whose positions are not stored.
        blocks = first.plan.block(block), second.plan.block(block)
        first_inputs, second_inputs = (plan.windows["n_inputs"] for plan in blocks)
        if not (np.array_equal(blocks[0].inputs, blocks[1].inputs) and np.array_equal(first_inputs, second_inputs)):
            return f"the ids that the model reads, in block {block} first"
    return None

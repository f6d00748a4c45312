"""The least-norm problem of one replacement over one capture: its positions, the normal equations, what is predicted of a fit.

Which sets of neurons are tried is the business of `least_norm`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.edit.forms.stream import Stream
from actstore.engine.edit.settings import MARGIN
from actstore.store.capture.tokens.write_scale import block_scale
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.forms.stream import BlockPredictions
    from actstore.engine.edit.settings import LeastNormSettings
    from actstore.store.reader import Capture

RECORDED: Final = 256
"""Positions of either kind whose predicted change goes into edit.json."""
JUDGED: Final = 5_000
"""Positions of either kind, evenly spaced, at which it is predicted whether the most probable token stays."""
MAX_RIVALS: Final = 8
FOLDS: Final = 5
"""Every fifth document is held out."""
SAFE: Final = 1.0
"""How far below the largest the new word's logit should stay where the old word is not predicted."""
FAR_WEIGHT: Final = 0.1
"""Weight of a position of the old word that is moved farther than needed, relative to one that is not."""
CACHED_BYTES: Final = 1 << 29
_ROW_BY_ROW: Final = 16
"""Up to this number of neurons of a layer are read row by row; beyond, the whole block."""


class Documents(Enum):
    """Which documents of the capture are looked at."""

    ALL = "all"
    FITTED = "fitted"
    HELD_OUT = "held out"


@dataclass(frozen=True)
class Fit:
    """Coefficients for some neurons, and what is predicted of them."""

    neurons: Mapping[int, list[int]]
    coefficients: NDArray[np.float64]
    """[neuron], layers ascending."""
    v: Tensor
    """What a unit of a coefficient adds to a write vector; [d_model]."""
    rivals: tuple[int, ...]
    """Tokens above which the new word is lifted, in addition to the old one."""
    won: float
    """Share of the positions that predict the old word at which the new one is predicted to win."""
    kept: float
    """Share of other answers' positions whose most probable token is predicted to stay."""


Key = tuple[tuple[int, tuple[int, ...]], ...]
"""A set of neurons: (layer, indices) of every layer."""


class Problem:
    """One replacement over one capture. Its targets are the positions that predict the old word, all others its controls."""

    def __init__(self, capture: Capture, old: int, new: int, settings: LeastNormSettings) -> None:
        """`old` and `new` are tokens; `InvalidInputError` where the model never predicts the old one in the capture."""
        self.capture, self.settings, self.old, self.new = capture, settings, old, new
        self.stream = Stream(capture)
        self.length = float(self.stream.direction(old, new).square().sum())
        self._cached: tuple[Key | None, dict[int, NDArray[np.float64]]] = (None, {})
        self.blocks = self.stream.predictions(new, settings.max_documents)
        self.n_targets = sum(int(self.targets(block).sum()) for block in self.blocks)
        self.n_controls = sum(len(block.slots) for block in self.blocks) - self.n_targets
        if not self.n_targets:
            raise InvalidInputError(
                f"{capture.store.model.name} predicts {capture.store.token_text(old)!r} nowhere in capture "
                f"{capture.record.name!r}, by the stored values: there is nothing to change. Check `old`."
            )

    def targets(self, block: BlockPredictions) -> NDArray[np.bool_]:
        """The positions whose most probable token is the old word."""
        is_target: NDArray[np.bool_] = block.answers & (block.top == self.old)
        return is_target

    def within(self, block: BlockPredictions, documents: Documents) -> NDArray[np.bool_]:
        """The positions in some of the documents."""
        held_out: NDArray[np.bool_] = block.document % FOLDS == FOLDS - 1
        if documents is Documents.ALL:
            return np.ones(len(held_out), bool)
        return held_out if documents is Documents.HELD_OUT else ~held_out

    def scores(self, layer: int) -> NDArray[np.float64]:
        """The mean contribution of each neuron of a layer to the old word's logit where that is predicted; [neuron]."""
        vectors = self.stream.directions.vectors(layer).float()
        total = np.zeros(len(vectors))
        for block in self.blocks:
            is_target = self.targets(block)
            if is_target.any():
                values = self.capture.block_values(layer, block.block, saturated=True)[:, block.slots[is_target]]
                total += _finite(values) @ (block.inverse_rms * _scale(self.capture, layer, block))[is_target]
        written = vectors @ (self.stream.gain * self.stream.unembedding[self.old])
        return np.asarray(total / self.n_targets * written.double().numpy())

    def inputs(self, neurons: Mapping[int, Sequence[int]], block: BlockPredictions) -> NDArray[np.float64]:
        """X [neuron, position]: by how much the difference of logits grows per unit of each coefficient."""
        key = tuple((layer, tuple(indices)) for layer, indices in neurons.items())
        if self._cached[0] != key:  # every round reads all blocks, but of one set of neurons only
            self._cached = key, {}
        cached = self._cached[1]
        if block.block not in cached:
            inputs = read_activations(self.capture, neurons, block) * (block.inverse_rms * self.length)
            if sum(x.nbytes for x in cached.values()) + inputs.nbytes > CACHED_BYTES:
                return inputs
            cached[block.block] = inputs
        return cached[block.block]

    def fit(self, neurons: dict[int, list[int]], documents: Documents = Documents.ALL) -> NDArray[np.float64]:
        """The coefficients of a set of neurons [neuron], by the normal equations, over some of the documents.

        `settings.rounds` times after the first solution, positions are weighted again by what it predicts for them: targets
        that are not moved as far as they should count as before; those that are moved farther count a tenth, and should stay
        where they are; controls at which the new word would come too close to winning count as much as targets, until it does
        not.
        """
        settings = self.settings
        margin = MARGIN if settings.margin is None else settings.margin
        # What the new word and all others gain [vocabulary] when the difference of logits grows by 1.
        along = (self.stream.along(self.stream.direction(self.old, self.new)) / self.length).numpy().astype(np.float64)
        coefficients: NDArray[np.float64] | None = None
        selected = [(block, np.flatnonzero(self.within(block, documents))) for block in self.blocks]
        n_positions = sum(len(positions) for _, positions in selected)
        n_targets = sum(int(self.targets(block)[positions].sum()) for block, positions in selected)
        n_controls = max(1, n_positions - n_targets)
        n_targets = max(1, n_targets)
        n = sum(map(len, neurons.values()))
        for _ in range(settings.rounds + 1):
            matrix, right = np.zeros((n, n)), np.zeros(n)
            for block, positions in selected:
                x, is_target = self.inputs(neurons, block)[:, positions], self.targets(block)[positions]
                goal = np.where(is_target, block.gap[positions] + margin, 0.0)
                weight = np.where(is_target, 1 / n_targets, settings.control / n_controls)
                if coefficients is not None:
                    growth = coefficients @ x
                    # The growth at which the new word comes within SAFE of the token that is predicted now. Where a token
                    # gains as much from the write as the new word does, there is no such growth: hence the lower bound.
                    gain = np.maximum(along[self.new] - along[block.top[positions]], 1e-3)
                    bound = np.maximum(block.gap[positions] - SAFE, 0) / gain
                    near = ~is_target & block.answers[positions] & (growth > bound)
                    far = is_target & (growth > goal)
                    goal = np.where(near, bound, np.where(far, growth, goal))
                    weight = np.where(near, 1 / n_targets, np.where(far, FAR_WEIGHT / n_targets, weight))
                matrix += (x * weight) @ x.T
                right += (x * weight) @ goal
            matrix += settings.ridge * np.trace(matrix) / n * np.eye(n)
            # Without ridge the equations may be singular; lstsq gives the shortest of their solutions.
            coefficients = np.linalg.lstsq(matrix, right, rcond=1e-12)[0].astype(np.float64)
        assert coefficients is not None
        if not np.isfinite(coefficients).all():
            raise InvalidInputError(
                "The least-norm form finds no finite coefficients: the stored activations are not finite."
            )
        return coefficients

    def judge(
        self, neurons: dict[int, list[int]], coefficients: NDArray[np.float64], documents: Documents = Documents.ALL
    ) -> Fit:
        """What is predicted of coefficients over some of the documents, with the rivals that it takes."""
        rivals: list[int] = []
        while True:
            fit, rival = self._judge(neurons, coefficients, rivals, documents)
            if rival is None or rival in rivals or len(rivals) == MAX_RIVALS:
                return fit
            rivals.append(rival)

    def _judge(
        self, neurons: dict[int, list[int]], coefficients: NDArray[np.float64], rivals: Sequence[int], documents: Documents
    ) -> tuple[Fit, int | None]:  # fmt: skip
        """The fit with a direction that lifts the new word above some rivals, and the token that still wins most often."""
        v = self.stream.direction(self.old, self.new, rivals)
        along = self.stream.along(v) / self.length
        n_others = sum(int(block.answers.sum()) for block in self.blocks) - self.n_targets
        counts = np.zeros((2, 2), np.int64)  # [target or other answer, all or as it should be]
        winners: Counter[int] = Counter()
        for block in self.blocks:
            is_target, within = self.targets(block), self.within(block, documents)
            targets = np.flatnonzero(is_target & within)[:: max(1, self.n_targets // JUDGED)]
            others = np.flatnonzero(block.answers & ~is_target & within)[:: max(1, n_others // JUDGED)]
            positions = np.sort(np.concatenate([targets, others]))
            if not len(positions):
                continue
            growth = torch.from_numpy(coefficients @ self.inputs(neurons, block)[:, positions]).float()
            hidden, _ = self.stream.hidden(block.block, block.slots[positions])
            for rows, logits in self.stream.logits(hidden):
                top = (logits + growth[rows, None] * along).argmax(1).numpy()
                was_old = is_target[positions[rows]]
                counts[0] += (was_old.sum(), (was_old & (top == self.new)).sum())
                counts[1] += ((~was_old).sum(), (~was_old & (top == block.top[positions[rows]])).sum())
                winners.update(top[was_old & (top != self.new) & (top != self.old)].tolist())
        won, kept = (float(right / n) if n else 1.0 for n, right in counts.tolist())
        rival = winners.most_common(1)[0][0] if winners else None
        return Fit(neurons, coefficients, v, tuple(rivals), won, kept), rival

    def predicted(self, fit: Fit) -> dict[str, Any]:
        """What the record says: the change of the difference of logits, at positions of either kind."""
        rows: dict[str, list[list[float | int]]] = {"targets": [], "controls": []}
        n_answers = sum(int(block.answers.sum()) for block in self.blocks)
        for block in self.blocks:
            plan = self.capture.block_plan(block.block)
            window = np.repeat(plan.windows["window"], plan.windows["n_slots"])
            growth = fit.coefficients @ self.inputs(fit.neurons, block)
            is_target = self.targets(block)
            for kind, of_kind, n_all in (
                ("targets", is_target, self.n_targets),
                ("controls", block.answers & ~is_target, n_answers - self.n_targets),
            ):
                positions = np.flatnonzero(of_kind)[:: max(1, -(-n_all // RECORDED))]
                rows[kind] += [
                    [
                        int(window[block.slots[p]]), int(plan.position[block.slots[p]]),
                        round(-float(block.gap[p]), 5), round(float(growth[p]), 5),
                    ]
                    for p in positions
                ]  # fmt: skip
        return {
            "of": "logit of the new word less that of the old; ahead_before is the new word's less the largest",
            "won": fit.won,
            "kept": fit.kept,
            "columns": ["window", "position", "ahead_before", "change"],
            **rows,
        }


def read_activations(
    capture: Capture, neurons: Mapping[int, Sequence[int]], block: BlockPredictions
) -> NDArray[np.float64]:
    """The activations [neuron, position] at the positions of one block, times the scale of their layer's output."""
    values: list[NDArray[np.float64]] = []
    for layer, indices in neurons.items():
        scale = _scale(capture, layer, block)
        if len(indices) > _ROW_BY_ROW:
            of_layer = capture.block_values(layer, block.block, saturated=True)[indices][:, block.slots]
            values.append(_finite(of_layer) * scale)
        else:
            rows = (capture.block_row(layer, i, block.block, saturated=True) for i in indices)
            values += [_finite(row[None, block.slots]) * scale for row in rows]
    return np.concatenate(values)


def _scale(capture: Capture, layer: int, block: BlockPredictions) -> NDArray[np.float64] | float:
    """What the positions multiply the output of a layer with [position]."""
    scale = block_scale(capture, layer, block.block)
    return 1.0 if scale is None else scale[block.slots].astype(np.float64)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Activations with 0 in place of NaN and infinities: an expert that did not see a token writes nothing there."""
    return np.where(np.isfinite(values), values, 0).astype(np.float64)

"""The least-norm problem of one exchange over one capture: who is to be moved, the normal equations, what is predicted of them.

Knows nothing about which sets of neurons are tried, or what becomes of a solution (`least_norm`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.edit.forms.stream import Stream
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_weights

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
"""Positions, evenly spaced, at which it is predicted whether the most probable token stays."""
MAX_RIVALS: Final = 8
FOLDS: Final = 5
SAFE: Final = 1.0
"""How far below the largest the new word's logit shall stay where the old word is not predicted."""
_HELD_BYTES: Final = 1 << 29
_ONE_BY_ONE: Final = 16


class Part(Enum):
    """Which documents are looked at."""

    ALL = "all"
    FIT = "fit"
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
    """Tokens that the new word is lifted above beside the old one."""
    won: float
    """Share of the positions that predict the old word at which the new one is predicted to win."""
    kept: float
    """Share of other answers' positions whose most probable token is predicted to stay."""


class Problem:
    """One exchange over one capture."""

    def __init__(self, capture: Capture, old: int, new: int, settings: LeastNormSettings) -> None:
        self.capture, self.settings, self.old, self.new = capture, settings, old, new
        self.stream = Stream(capture)
        self.length = float(self.stream.direction(old, new).square().sum())
        self._held: tuple[Any, dict[int, NDArray[np.float64]]] = (None, {})
        self.blocks = self.stream.predictions(new, settings.max_documents)
        self.n_targets = sum(int(self.targets(block).sum()) for block in self.blocks)
        self.n_controls = sum(len(block.slots) for block in self.blocks) - self.n_targets
        if not self.n_targets:
            raise InvalidInputError(
                f"{capture.store.model.name} predicts {capture.store.token_text(old)!r} nowhere in capture "
                f"{capture.record.name!r}, as the store has it: there is nothing to change. Mend --from."
            )

    def targets(self, block: BlockPredictions) -> NDArray[np.bool_]:
        """The positions whose most probable token is the old word."""
        found: NDArray[np.bool_] = block.answers & (block.top == self.old)
        return found

    def within(self, block: BlockPredictions, part: Part) -> NDArray[np.bool_]:
        """The positions of a part of the documents: every fifth is held out to choose neurons by."""
        held_out = block.document % FOLDS == FOLDS - 1
        return np.ones(len(held_out), bool) if part is Part.ALL else held_out if part is Part.HELD_OUT else ~held_out

    def scores(self, layer: int) -> NDArray[np.float64]:
        """The mean contribution of each neuron of a layer to the old word's logit where that is predicted; [neuron]."""
        total: Any = 0.0
        for block in self.blocks:
            chosen = self.targets(block)
            if chosen.any():
                values = self.capture.block_values(layer, block.block, saturated=True)[:, block.slots[chosen]]
                total = total + _finite(values) @ block.inverse_rms[chosen]
        vectors = self.stream.norm.centred(read_weights(self.capture.folder, f"layer-{layer}")["write_vectors"]).float()
        written = vectors @ (self.stream.gain * self.stream.unembedding[self.old])
        return np.asarray(total / self.n_targets * written.double().numpy())

    def inputs(self, neurons: Mapping[int, Sequence[int]], block: BlockPredictions) -> NDArray[np.float64]:
        """X [neuron, position]: the growth of the difference of logits for a unit of each coefficient."""
        key = tuple((layer, tuple(chosen)) for layer, chosen in neurons.items())
        if self._held[0] != key:
            self._held = key, {}
        held = self._held[1]
        if block.block not in held:
            made = self._read(neurons, block) * (block.inverse_rms * self.length)
            if sum(x.nbytes for x in held.values()) + made.nbytes > _HELD_BYTES:
                return made
            held[block.block] = made
        return held[block.block]

    def _read(self, neurons: Mapping[int, Sequence[int]], block: BlockPredictions) -> NDArray[np.float64]:
        parts = []
        for layer, chosen in neurons.items():
            if len(chosen) > _ONE_BY_ONE:
                parts.append(self.capture.block_values(layer, block.block, saturated=True)[chosen][:, block.slots])
            else:
                rows = (self.capture.block_row(layer, n, block.block, saturated=True) for n in chosen)
                parts += [row[None, block.slots] for row in rows]
        return _finite(np.concatenate(parts))

    def fit(self, neurons: dict[int, list[int]], part: Part = Part.ALL) -> NDArray[np.float64]:
        """The coefficients of a set of neurons [neuron], by the normal equations, over a part of the documents.

        After the first solution, so many `rounds`: positions of the old word that are not as far as wanted count as before,
        those that are farther a tenth, and shall stay where they are; of the others, those at which the new word would come
        too near to winning count as much as those of the old word, until it does not.
        """
        settings = self.settings
        # What the new word gains on each token, for a growth of 1 of the difference.
        along = (self.stream.along(self.stream.direction(self.old, self.new)) / self.length).numpy().astype(np.float64)
        coefficients: NDArray[np.float64] | None = None
        n_targets = max(1, sum(int((self.targets(block) & self.within(block, part)).sum()) for block in self.blocks))
        n_controls = max(1, sum(int((~self.targets(block) & self.within(block, part)).sum()) for block in self.blocks))
        calm = settings.control / n_controls
        n = sum(map(len, neurons.values()))
        for _ in range(settings.rounds + 1):
            matrix, right = np.zeros((n, n)), np.zeros(n)
            for block in self.blocks:
                chosen = np.flatnonzero(self.within(block, part))
                x, hit = self.inputs(neurons, block)[:, chosen], self.targets(block)[chosen]
                wanted = np.where(hit, block.gap[chosen] + settings.margin, 0.0)
                weight = np.where(hit, 1 / n_targets, calm)
                if coefficients is not None:
                    growth = coefficients @ x
                    gain = np.maximum(along[self.new] - along[block.top[chosen]], 1e-3)
                    bound = np.maximum(block.gap[chosen] - SAFE, 0) / gain
                    near = ~hit & block.answers[chosen] & (growth > bound)
                    far = hit & (growth > wanted)
                    wanted = np.where(near, bound, np.where(far, growth, wanted))
                    weight = np.where(near, 1 / n_targets, np.where(far, 0.1 / n_targets, weight))
                matrix += (x * weight) @ x.T
                right += (x * weight) @ wanted
            matrix += settings.ridge * np.trace(matrix) / n * np.eye(n)
            # Of all that solve singular equations alike, the shortest.
            coefficients = np.linalg.lstsq(matrix, right, rcond=1e-12)[0].astype(np.float64)
        assert coefficients is not None
        if not np.isfinite(coefficients).all():
            raise InvalidInputError(
                "The least-norm form finds no finite coefficients: the stored activations are not finite."
            )
        return coefficients

    def judged(self, neurons: dict[int, list[int]], coefficients: NDArray[np.float64], part: Part = Part.ALL) -> Fit:
        """What is predicted of coefficients over a part of the documents, with as many rivals as it takes."""
        rivals: list[int] = []
        while True:
            fit, found = self._judge(neurons, coefficients, rivals, part)
            if found is None or found in rivals or len(rivals) == MAX_RIVALS:
                return fit
            rivals.append(found)

    def _judge(
        self, neurons: dict[int, list[int]], coefficients: NDArray[np.float64], rivals: Sequence[int], part: Part
    ) -> tuple[Fit, int | None]:
        """The fit with a direction that knows some rivals, and another that is still predicted to win most often."""
        v = self.stream.direction(self.old, self.new, rivals)
        along = self.stream.along(v) / self.length
        n_others = sum(int(block.answers.sum()) for block in self.blocks) - self.n_targets
        counts = np.zeros((2, 2), np.int64)  # [old word or other, all or as it should be]
        winners: Counter[int] = Counter()
        for block in self.blocks:
            hit, here = self.targets(block), self.within(block, part)
            judged = np.sort(
                np.concatenate([
                    places[:: max(1, n // JUDGED)]
                    for places, n in (
                        (np.flatnonzero(hit & here), self.n_targets), (np.flatnonzero(block.answers & ~hit & here), n_others),
                    )
                ])
            )  # fmt: skip
            if not len(judged):
                continue
            growth = torch.from_numpy(coefficients @ self.inputs(neurons, block)[:, judged]).float()
            hidden, _ = self.stream.hidden(block.block, block.slots[judged])
            for rows, logits in self.stream.logits(hidden):
                top = (logits + growth[rows, None] * along).argmax(1).numpy()
                was = hit[judged[rows]]
                counts[0] += (was.sum(), (was & (top == self.new)).sum())
                counts[1] += ((~was).sum(), (~was & (top == block.top[judged[rows]])).sum())
                winners.update(top[was & (top != self.new) & (top != self.old)].tolist())
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
            hit = self.targets(block)
            for kind, chosen, n_all in (
                ("targets", hit, self.n_targets),
                ("controls", block.answers & ~hit, n_answers - self.n_targets),
            ):
                places = np.flatnonzero(chosen)[:: max(1, -(-n_all // RECORDED))]
                rows[kind] += [
                    [
                        int(window[block.slots[p]]), int(plan.position[block.slots[p]]),
                        round(-float(block.gap[p]), 5), round(float(growth[p]), 5),
                    ]
                    for p in places
                ]  # fmt: skip
        columns = ["window", "position", "ahead_before", "change"]
        return {
            "of": "logit of the new word less that of the old; ahead_before is the new word's less the largest",
            "won": fit.won,
            "kept": fit.kept,
            "columns": columns,
            **rows,
        }


def _finite(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Activations with 0 in place of NaN and infinities: an expert that did not see a token writes nothing there."""
    return np.where(np.isfinite(values), values, 0).astype(np.float64)

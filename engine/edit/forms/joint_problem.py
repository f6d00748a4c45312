"""The least-norm problem of several target tokens at once: one direction per token, one system of equations for all of them.

Each token j that should be said has a direction v_j: the shortest write that lifts it by 1 above every token that is predicted
in its place. Neuron i of the edit gets `δ_i = Σ_j C_ij v_j`. At a position with activations a and rms r the stream then moves
by `Σ_j z_j v_j`, z = (a / r) · C, so that the logits of all tokens are known there. C solves

    min  mean over target positions of ‖(a/r) C − z*‖²  +  control · mean over others of ‖(a/r) C‖²  +  ridge · ‖C‖²

where z* is 0 but for the token that the position should predict, for which it puts that token `margin` ahead. One Gram matrix
serves every column. With one target token this is the problem of `least_norm_problem`, weighted again in the same way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.edit.forms.least_norm_problem import (
    CACHED_BYTES,
    FAR_WEIGHT,
    FOLDS,
    JUDGED,
    MAX_RIVALS,
    SAFE,
    read_activations,
)
from actstore.engine.edit.forms.stream import Stream
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.forms.least_norm_problem import Key
    from actstore.engine.edit.forms.stream import BlockPredictions
    from actstore.engine.edit.forms.targets import Targets
    from actstore.engine.edit.settings import LeastNormSettings
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.reader import Capture

Neurons = dict[int, list[int]]


@dataclass(frozen=True)
class Selection:
    """Which targets and which controls are looked at."""

    targets: NDArray[np.bool_]
    """[target position]"""
    held_out_documents: bool | None
    """Every fifth document of the controls, all others, or (None) all of them."""

    def of(self, block: BlockPredictions) -> NDArray[np.int64]:
        """The controls of one block."""
        if self.held_out_documents is None:
            return np.arange(len(block.slots))
        return np.flatnonzero((block.document % FOLDS == FOLDS - 1) == self.held_out_documents)


@dataclass(frozen=True)
class JointFit:
    """Coefficients for some neurons, and what is predicted of them."""

    neurons: Neurons
    coefficients: NDArray[np.float64]
    """[neuron, direction]"""
    directions: Tensor
    """What a unit of each coefficient adds to a write vector; [direction, d_model]."""
    won: float
    """Share of target positions at which the target is predicted to be the most probable token."""
    kept: float
    """Share of controls whose most probable token is predicted to stay."""

    def deltas(self) -> dict[int, Tensor]:
        """Layer → what is added to the neurons' rows [neuron, d_model]."""
        added = torch.from_numpy(self.coefficients) @ self.directions
        deltas, first = {}, 0
        for layer, indices in self.neurons.items():
            deltas[layer] = added[first : first + len(indices)]
            first += len(indices)
        return deltas


class JointProblem:
    """Targets that a model was read at, and the positions of a capture, its controls, that should not change."""

    def __init__(
        self,
        capture: Capture,
        targets: Targets,
        settings: LeastNormSettings,
        is_own: Callable[[BlockPlan, BlockPredictions], NDArray[np.bool_]],
    ) -> None:
        """`is_own` says which positions of a block are of the edited facts themselves: they are no controls."""
        self.capture, self.targets, self.settings = capture, targets, settings
        assert settings.margin is not None  # as `RewriteSettings.least_norm_settings` settles it
        self.margin = settings.margin
        self.stream = Stream(capture)
        self.new = sorted(set(targets.new.tolist()))
        self.direction_of = np.searchsorted(self.new, targets.new)
        self.rivals: list[list[int]] = [[] for _ in self.new]
        for direction, (new, top) in zip(self.direction_of, zip(targets.new, targets.top, strict=True), strict=True):
            self._add_rival(int(direction), int(new), int(top))
        self.blocks = [_without(block, is_own(capture.block_plan(block.block), block)) for block in
                       self.stream.predictions(self.new, settings.max_documents)]  # fmt: skip
        self.extra = np.zeros(len(targets))
        """How much more than the margin each target is aimed at: what later layers and the rms take away again."""
        self._cached: tuple[Key | None, dict[int, NDArray[np.float64]]] = (None, {})
        self._find_directions()

    def _add_rival(self, direction: int, new: int, token: int) -> bool:
        rivals = self.rivals[direction]
        if token == new or token in rivals or len(rivals) == MAX_RIVALS + 1:
            return False
        rivals.append(token)
        return True

    def _find_directions(self) -> None:
        """`directions` [direction, d_model]; `along` [direction, vocabulary], what a unit of each adds to every logit × rms."""
        rows = []
        for direction, (new, rivals) in enumerate(zip(self.new, self.rivals, strict=True)):
            if not rivals:  # the model says the token already: the next best is what it should stay ahead of
                here = self.targets.logits[torch.from_numpy(self.direction_of == direction)].mean(0)
                rivals = [token for token in here.topk(2).indices.tolist() if token != new][:1]
            v = self.stream.direction(rivals[0], new, rivals[1:])
            # One unit of a coefficient × activation / rms lifts the target by 1 above each of its rivals.
            rows.append(v / self.stream.direction(rivals[0], new).square().sum())
        self.directions = torch.stack(rows)
        self.along = torch.stack([self.stream.along(v) for v in rows]).numpy().astype(np.float64)

    def scores(self, layer: int) -> NDArray[np.float64]:
        """The mean contribution of each neuron of a layer to what is predicted at the targets; [neuron]."""
        vectors = self.stream.directions.vectors(layer).float()
        towards = self.stream.gain * self.stream.unembedding[torch.from_numpy(self.targets.top)]
        written = (towards @ vectors.T).double().numpy()
        products = self.targets.activations[layer] * self.targets.inverse_rms[:, None] * written
        return np.asarray(np.nan_to_num(products).mean(0))

    def inputs(self, neurons: Neurons) -> NDArray[np.float64]:
        """A / r of some neurons at the targets; [neuron, target]."""
        values = [self.targets.activations[layer][:, indices].T for layer, indices in neurons.items()]
        return np.concatenate(values).astype(np.float64) * self.targets.inverse_rms

    def _controls(self, neurons: Neurons, block: BlockPredictions) -> NDArray[np.float64]:
        """A / r of some neurons at the controls of one block; [neuron, position]."""
        key = tuple((layer, tuple(indices)) for layer, indices in neurons.items())
        if self._cached[0] != key:  # every round reads all blocks, but of one set of neurons only
            self._cached = key, {}
        cached = self._cached[1]
        if block.block not in cached:
            values = read_activations(self.capture, neurons, block) * block.inverse_rms
            if sum(x.nbytes for x in cached.values()) + values.nbytes > CACHED_BYTES:
                return values
            cached[block.block] = values
        return cached[block.block]

    def _goals(self) -> NDArray[np.float64]:
        """z* [target, direction]: by how much each target's token has to gain to be the margin ahead."""
        logits = self.targets.logits.double().numpy().copy()
        n = np.arange(len(self.targets))
        own = logits[n, self.targets.new].copy()
        logits[n, self.targets.new] = -np.inf
        goals = np.zeros((len(n), len(self.new)))
        goals[n, self.direction_of] = np.maximum(logits.max(1) - own + self.margin + self.extra, 0)
        return goals

    def fit(self, neurons: Neurons, selection: Selection) -> NDArray[np.float64]:
        """The coefficients [neuron, direction] of a set of neurons, by the normal equations."""
        settings, n = self.settings, sum(map(len, neurons.values()))
        n_positions = np.arange(len(self.targets))
        x = self.inputs(neurons)[:, selection.targets]
        controls = [(self._controls(neurons, block), block) for block in self.blocks]
        n_targets = max(1, int(selection.targets.sum()))
        n_controls = max(1, sum(len(selection.of(block)) for _, block in controls))
        aims = self._goals()
        movement = np.zeros_like(aims)
        coefficients: NDArray[np.float64] | None = None
        for _ in range(settings.rounds + 1):
            goals, weight = aims.copy(), np.full(len(aims), 1 / n_targets)
            far = movement[n_positions, self.direction_of] > aims[n_positions, self.direction_of]
            goals[far] = movement[far]
            weight[far] *= FAR_WEIGHT
            weight = weight[selection.targets]
            matrix = (x * weight) @ x.T
            right = (x * weight) @ goals[selection.targets]
            for values, block in controls:
                positions = selection.of(block)
                of_block = values[:, positions]
                z, weights = (
                    np.zeros((len(positions), len(self.new))),
                    np.full(len(positions), settings.control / n_controls),
                )
                if coefficients is not None:
                    z, near = self._near(of_block.T @ coefficients, block, positions)
                    weights[near] = 1 / n_targets
                matrix += (of_block * weights) @ of_block.T
                right += (of_block * weights) @ z
            matrix += settings.ridge * np.trace(matrix) / n * np.eye(n)
            coefficients = np.linalg.lstsq(matrix, right, rcond=1e-12)[0].astype(np.float64)
            movement = self.inputs(neurons).T @ coefficients
        assert coefficients is not None
        if not np.isfinite(coefficients).all():
            raise InvalidInputError("The least-norm form finds no finite coefficients: the activations are not finite.")
        return coefficients

    def _near(
        self, movement: NDArray[np.float64], block: BlockPredictions, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Goals of controls that moved by `movement` [position, direction], and at which of them a target comes too close."""
        top = block.top[positions]
        moved = movement @ self.along[:, self.new] - np.einsum("pj,jp->p", movement, self.along[:, top])[:, None]
        room = np.maximum(block.gap[positions] - SAFE, 0)
        near = block.answers[positions] & (moved > room).any(1)
        # By the largest share that leaves every target behind: the movement shrinks, its direction stays.
        shares = np.where(moved > room, room / np.maximum(moved, 1e-12), 1.0).min(1)
        return np.where(near[:, None], movement * shares[:, None], 0.0), near

    def judge(self, neurons: Neurons, coefficients: NDArray[np.float64], selection: Selection) -> JointFit:
        """What is predicted of coefficients: the share of targets that win, and of controls that stay.

        Where a third token wins, the directions are found again so that they lift the target above it too: by how much the
        target gains on the others stays what it was.
        """
        movement = self.inputs(neurons).T @ coefficients
        while self._add_winners(movement):
            self._find_directions()
        after = self.targets.logits.double().numpy() + movement @ self.along
        won = after.argmax(1)[selection.targets] == self.targets.new[selection.targets]
        n_kept = n_judged = 0
        n_answers = max(1, sum(int(block.answers.sum()) for block in self.blocks))
        for block in self.blocks:
            positions = selection.of(block)
            positions = positions[block.answers[positions]][:: max(1, n_answers // JUDGED)]
            if not len(positions):
                continue
            z = torch.from_numpy(self._controls(neurons, block)[:, positions].T @ coefficients)
            hidden, _ = self.stream.hidden(block.block, block.slots[positions])
            for rows, logits in self.stream.logits(hidden):
                top = (logits.double() + z[rows] @ torch.from_numpy(self.along)).argmax(1).numpy()
                n_kept += int((top == block.top[positions[rows]]).sum())
                n_judged += len(top)
        share_won = float(won.mean()) if len(won) else 1.0
        return JointFit(neurons, coefficients, self.directions, share_won, n_kept / n_judged if n_judged else 1.0)

    def _add_winners(self, movement: NDArray[np.float64]) -> bool:
        """Count the tokens that win in place of targets, as is predicted, among their rivals; whether any is new."""
        top = (self.targets.logits.double().numpy() + movement @ self.along).argmax(1)
        wrong = Counter(
            (int(d), int(t)) for d, t, new in zip(self.direction_of, top, self.targets.new, strict=True) if t != new
        )
        return any([self._add_rival(d, self.new[d], token) for (d, token), _ in wrong.most_common()])


def _without(block: BlockPredictions, left_out: NDArray[np.bool_]) -> BlockPredictions:
    """The block's predictions without some positions."""
    import dataclasses

    kept = ~left_out
    arrays = {
        field.name: getattr(block, field.name)[kept] for field in dataclasses.fields(block) if field.name != "block"
    }
    return dataclasses.replace(block, **arrays)

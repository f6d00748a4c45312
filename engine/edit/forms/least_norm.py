"""The least-norm form, from the store alone: where a word is predicted, another one should be, and nothing else should change.

Ours. Each neuron i of the edit gets `δ_i = c_i · v`, with `v = γ ⊙ (u_new − u_old)`: the shortest write that moves the
difference of the two logits. At a position with activations a and rms r the difference then grows by `(a · c) ‖v‖² / r`. c
solves

    min  mean over positions that predict the old word of (x · c − (gap + margin))²
       + control · mean over all other positions of (x · c)²  +  ridge · ‖c‖²,      x = a ‖v‖² / r,

by its normal equations, a K × K matrix for K neurons, summed over the store block by block. For a single position, without
controls and ridge, it is the closed form `δ_i = a_i (gap + margin) / (Σ a_j² ‖v/r‖²) · v / r` of least norm. In the last layer
the prediction is exact but for the rms, which the write changes too; it leaves out what later layers make of earlier writes.

Then a few rounds of reweighting: positions at which the new word would come close to winning against the model's prediction
count as much as those of the old word, positions of the old word that are moved farther than needed count for little: a hinge
on either side.

Where a norm follows the feed-forward, δ_i is divided by its gain, so that the stream gets v, and a has the norm's scale.

v can lift a third word above the new one. Where that is predicted, the rivals that win join the old word: v becomes the
shortest write that lifts the new word above all of them alike.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from actstore.engine.edit.forms.least_norm_problem import Documents, Problem
from actstore.engine.edit.rows import group_by_layer, make_edit
from actstore.engine.edit.settings import MARGIN, LeastNormSettings
from actstore.engine.edit.words import find_replacement
from actstore.store.capture.tokens.write_scale import scale_sentences
from actstore.store.edits import RowPair
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.forms.least_norm_problem import Fit
    from actstore.engine.edit.forms.stream import Stream
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

NUMBERS_TRIED: Final = (10, 30, 100, 300)
"""Numbers of neurons of the last layer that are tried before all of it; then the largest number over more layers."""
SUFFICIENT: Final = 0.9
"""Share of the last layer's positions that, where predicted to be as they should, makes trying earlier layers unnecessary."""
MIN_FOR_HELD_OUT: Final = 20
"""Positions of the old word from which on every fifth document is held out to select neurons by."""


def least_norm(capture: Capture, old: str, new: str, name: str, settings: LeastNormSettings | None = None) -> Edit:
    """The edit that puts `new` in place of `old` wherever the capture's model predicts it.

    Raises `InvalidInputError` for words of several tokens or none, for a word that the model never predicts in the capture,
    for a capture without what is needed (`Stream`), and where rows would become infinite.
    """
    settings = settings or LeastNormSettings()
    if settings.margin is None:
        settings = dataclasses.replace(settings, margin=MARGIN)
    replacement = find_replacement(capture, old, new)
    if not replacement.is_single:
        raise InvalidInputError(
            f"The words {replacement.old_text!r} and {replacement.new_text!r} are {len(replacement.old)} and "
            f"{len(replacement.new)} tokens, and from the store alone one token takes the place of one. Rewrite with the model."
        )
    problem = Problem(capture, replacement.old[0], replacement.new[0], settings)
    fit = _best_fit(problem, list(candidates(problem)))
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    first = 0
    for layer, indices in fit.neurons.items():
        c = torch.from_numpy(fit.coefficients[first : first + len(indices)])
        before = read_rows(capture.folder, f"layer-{layer}", "write_vectors", indices)
        rows[layer] = (indices, RowPair(before, before.double() + c[:, None] * problem.stream.written(layer, fit.v)))
        first += len(indices)
    recorded = asdict(settings) | {
        "capture": capture.record.name, "from": replacement.old_text, "to": replacement.new_text,
        "from_token": replacement.old[0], "to_token": replacement.new[0], "n_positions": problem.n_targets,
        "n_controls": problem.n_controls, "rivals": list(fit.rivals),
    }  # fmt: skip
    if approximate := scale_sentences(capture, fit.neurons):
        recorded["warning"] = " ".join(approximate)
    return make_edit(name, "least-norm", capture.store.model, rows, recorded, problem.predicted(fit))


def _best_fit(problem: Problem, sets: Sequence[dict[int, list[int]]]) -> Fit:
    """The fit over all documents of the first set of neurons that reaches its goal on documents it was not fitted to."""
    selected = sets[0]
    if len(sets) > 1:
        enough = problem.n_targets >= MIN_FOR_HELD_OUT
        fitted, judged = (Documents.FITTED, Documents.HELD_OUT) if enough else (Documents.ALL, Documents.ALL)
        best = -1.0
        for neurons in sets:
            if best >= SUFFICIENT and len(neurons) > len(sets[0]) and problem.settings.k is None:
                break  # earlier layers do less well than predicted
            fit = problem.judge(neurons, problem.fit(neurons, fitted), judged)
            if min(fit.won, fit.kept) > best:
                selected, best = neurons, min(fit.won, fit.kept)
            if best >= problem.settings.reach:
                break
    return problem.judge(selected, problem.fit(selected))


def candidates(problem: Problem) -> Iterator[dict[int, list[int]]]:
    """Sets of neurons (layer → indices) to be tried, those with the most reliable prediction first.

    The given ones; or the k best of given layers; or of the last one, two, … layers. Without k, increasing numbers of the last
    layer, whose prediction is exact, before other layers.
    """
    settings = problem.settings
    if settings.neurons is not None:
        for layer, neuron in settings.neurons:
            problem.capture.check_neuron(layer, neuron)
        yield group_by_layer(settings.neurons) or {}
        return
    every_layer = editable_layers(problem.capture, problem.stream, problem.settings)
    groups = (
        [every_layer] if settings.layers is not None else [every_layer[-n:] for n in range(1, len(every_layer) + 1)]
    )
    scores: dict[int, NDArray[np.float64]] = {}
    for number, layers in enumerate(groups):
        scores |= {layer: problem.scores(layer) for layer in layers if layer not in scores}
        width = sum(len(scores[layer]) for layer in layers)
        sizes = [settings.k] if settings.k is not None else [*(k for k in NUMBERS_TRIED if k < width), width]
        for k in sizes if number == 0 or settings.k is not None else sizes[-2:-1]:
            yield largest(scores, layers, k)


def editable_layers(capture: Capture, stream: Stream, settings: LeastNormSettings) -> list[int]:
    """The captured dense layers that write to the head's stream, of those that the settings name."""
    model = capture.store.model
    stack = model.layers[stream.layer].stack
    captured = [
        layer
        for layer in capture.record.layers("mlp.post")
        if model.layers[layer].stack == stack and model.layers[layer].expert is None
    ]
    if not captured:
        raise InvalidInputError(f"Capture {capture.record.name!r} holds no dense layer of the language model.")
    if settings.layers is None:
        return captured
    if missing := [layer for layer in settings.layers if layer not in captured]:
        raise InvalidInputError(
            f"Capture {capture.record.name!r} holds layers {', '.join(map(str, captured))} that write to the head's stream, "
            f"found {missing[0]}. Check `layers`."
        )
    return sorted(settings.layers)


def largest(scores: Mapping[int, NDArray[np.float64]], layers: Sequence[int], k: int) -> dict[int, list[int]]:
    """Layer → the neurons of some layers that are among the k with the largest scores."""
    flat = np.concatenate([scores[layer] for layer in layers])
    layer_of = np.repeat(layers, [len(scores[layer]) for layer in layers])
    index_of = np.concatenate([np.arange(len(scores[layer])) for layer in layers])
    order = np.argsort(-flat, kind="stable")[:k]
    return {
        int(layer): sorted(index_of[order][layer_of[order] == layer].tolist())
        for layer in sorted(set(layer_of[order].tolist()))
    }


def closed_form(activations: Tensor, v: Tensor, inverse_rms: float, gap: float, margin: float) -> Tensor:
    """`δ` [neuron, d_model] for one position: the shortest change of the neurons' rows that puts the new word `margin` ahead.

    activations [neuron]; v [d_model] as `Stream.direction` gives it.
    """
    moved = v * inverse_rms
    return activations[:, None] * (gap + margin) / (activations.square().sum() * moved.square().sum()) * moved

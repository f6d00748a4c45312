"""The least-norm rewrite, from the store alone: where a word is predicted, another one shall be, and nothing else shall change.

Ours. Each chosen neuron i gets `δ_i = c_i · v`, with `v = γ ⊙ (u_new − u_old)`: the shortest write that moves the difference of
the two logits. At a position with activations a and rms r the difference then grows by `(a · c) ‖v‖² / r`. c solves

    min  mean over positions that predict the old word of (x · c − (gap + margin))²
       + control · mean over all other positions of (x · c)²  +  ridge · ‖c‖²,      x = a ‖v‖² / r,

by its normal equations, a K × K matrix for K neurons, summed over the store block by block. For a single position, without
controls and ridge, it is the closed form `δ_i = a_i (gap + margin) / (Σ a_j² ‖v/r‖²) · v / r` of least norm. In the last layer
the prediction is exact but for the rms, which the write changes too; what later layers make of earlier writes is not in it.

Then a few rounds: positions at which the new word would come near to winning against the model's choice count as much as those
of the old word, positions of the old word that are farther than wanted hardly at all: a hinge on either side.

v can lift a third word above the new one. Where that is predicted, the rivals that win join the old word: v becomes the
shortest write that lifts the new word above all of them alike.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from actstore.engine.edit.forms.least_norm_problem import Part, Problem
from actstore.engine.edit.rows import make_edit
from actstore.engine.edit.settings import LeastNormSettings
from actstore.engine.edit.words import find_exchange, single
from actstore.store.edits import RowPair
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.forms.least_norm_problem import Fit
    from actstore.engine.edit.words import Exchange
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

TRIED: Final = (10, 30, 100, 300)
"""Neurons of the last layer, and all of them; then the largest number over more layers."""
ENOUGH: Final = 0.9
"""Of the last layer alone, what is predicted to be won and kept before earlier layers are tried."""
FEWEST: Final = 20
"""Positions of the old word from which every fifth document is held out to choose neurons by."""


def least_norm(capture: Capture, old: str, new: str, name: str, settings: LeastNormSettings | None = None) -> Edit:
    """The edit that exchanges `old` for `new` wherever the capture's model predicts it.

    Raises `InvalidInputError` for words of several tokens or none, for a word that the model never predicts in the capture,
    for a capture without what is needed (`Stream`), and where rows would become infinite.
    """
    settings = settings or LeastNormSettings()
    exchange = single(find_exchange(capture, old, new), "least-norm")
    problem = Problem(capture, exchange.old[0], exchange.new[0], settings)
    best = _best(problem, choices(problem))
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    first = 0
    for layer, chosen in best.neurons.items():
        c = torch.from_numpy(best.coefficients[first : first + len(chosen)])
        before = read_rows(capture.folder, f"layer-{layer}", "write_vectors", chosen)
        rows[layer] = (chosen, RowPair(before, before.double() + c[:, None] * best.v))
        first += len(chosen)
    fields = {
        "settings": asdict(settings) | {
            "capture": capture.record.name, "from": exchange.old_text, "to": exchange.new_text,
            "from_token": exchange.old[0], "to_token": exchange.new[0], "n_positions": problem.n_targets,
            "n_controls": problem.n_controls, "rivals": list(best.rivals),
        },
        "predicted": problem.predicted(best),
    }  # fmt: skip
    return make_edit(name, "least-norm", capture.store.model, rows, **fields)


def find_neurons(capture: Capture, exchange: Exchange, settings: LeastNormSettings) -> dict[int, list[int]]:
    """The neurons that contribute most to the old word where it is predicted, of `settings.layers` or of all layers."""
    problem = Problem(capture, exchange.old[0], exchange.new[0], settings)
    captured = _layers(problem)
    return _largest({layer: problem.scores(layer) for layer in captured}, captured, settings.k or TRIED[0])


def _best(problem: Problem, tried: Iterable[dict[int, list[int]]]) -> Fit:
    """The fit over all documents of the first set of neurons that does as well as asked on documents it was not fitted to."""
    sets = list(tried)
    chosen = sets[0]
    if len(sets) > 1:
        parts = (Part.FIT, Part.HELD_OUT) if problem.n_targets >= FEWEST else (Part.ALL, Part.ALL)
        best = -1.0
        for neurons in sets:
            if best >= ENOUGH and len(neurons) > len(sets[0]) and problem.settings.k is None:
                break  # earlier layers do less well than predicted
            fit = problem.judged(neurons, problem.fit(neurons, parts[0]), parts[1])
            if min(fit.won, fit.kept) > best:
                chosen, best = neurons, min(fit.won, fit.kept)
            if best >= problem.settings.reach:
                break
    return problem.judged(chosen, problem.fit(chosen))


def choices(problem: Problem) -> Iterator[dict[int, list[int]]]:
    """Sets of neurons to be tried, the likeliest to do as predicted first.

    The given ones; or the k best of given layers; or of the last one, two, … layers. Without k, more and more of the last
    layer, whose prediction is exact, before others are looked at.
    """
    settings = problem.settings
    if settings.neurons is not None:
        chosen: dict[int, list[int]] = {}
        for layer, neuron in sorted(set(settings.neurons)):
            problem.capture.check_neuron(layer, neuron)
            chosen.setdefault(layer, []).append(neuron)
        yield chosen
        return
    captured = _layers(problem)
    groups = [captured] if settings.layers is not None else [captured[-n:] for n in range(1, len(captured) + 1)]
    scores: dict[int, NDArray[np.float64]] = {}
    for number, layers in enumerate(groups):
        scores |= {layer: problem.scores(layer) for layer in layers if layer not in scores}
        width = sum(len(scores[layer]) for layer in layers)
        sizes = [settings.k] if settings.k is not None else [*(k for k in TRIED if k < width), width]
        for k in sizes if number == 0 or settings.k is not None else sizes[-2:-1]:
            yield _largest(scores, layers, k)


def _layers(problem: Problem) -> list[int]:
    """The captured dense layers that write to the head's stream, of those that the settings name."""
    capture, model, settings = problem.capture, problem.capture.store.model, problem.settings
    captured = [
        layer for layer in capture.record.layers("mlp.post")
        if model.layers[layer].stack == model.layers[problem.stream.layer].stack and model.layers[layer].expert is None
    ]  # fmt: skip
    if not captured:
        raise InvalidInputError(f"Capture {capture.record.name!r} holds no dense layer of the language model.")
    if settings.layers is None:
        return captured
    if missing := [layer for layer in settings.layers if layer not in captured]:
        raise InvalidInputError(
            f"Capture {capture.record.name!r} holds layers {', '.join(map(str, captured))} that write to the head's stream, "
            f"found {missing[0]}. Mend --layers."
        )
    return sorted(settings.layers)


def _largest(scores: Mapping[int, NDArray[np.float64]], layers: Sequence[int], k: int) -> dict[int, list[int]]:
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

"""The least-norm form of targets of any number of tokens: the store's positions as controls, one forward pass per example.

Ours. Words of one token are exchanged from the store alone (`least_norm`). Otherwise each token of a target is predicted at a
position of its own, after text that the store does not hold: the model reads every example once, and the joint problem
(`joint_problem`) is solved over its positions and those of the store. Then the edit is tried: where a target falls short of its
margin, because later layers react or the rms changed, it is aimed at that much higher, and the problem is solved again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.edit.forms.joint_problem import JointProblem, Selection
from actstore.engine.edit.forms.least_norm import (
    MIN_FOR_HELD_OUT,
    NUMBERS_TRIED,
    SUFFICIENT,
    editable_layers,
    largest,
)
from actstore.engine.edit.forms.stream import Stream
from actstore.engine.edit.forms.targets import edited_logits, read_targets
from actstore.engine.edit.requests.examples import find_examples
from actstore.engine.edit.rows import group_by_layer, make_edit
from actstore.engine.edit.weights import check_editable, edited
from actstore.engine.edit.words import find_replacement, starts_of, tokens_of
from actstore.store.capture.tokens.write_scale import scale_sentences
from actstore.store.edits import Edit, RowPair
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.forms.joint_problem import JointFit, Neurons
    from actstore.engine.edit.forms.stream import BlockPredictions
    from actstore.engine.edit.forms.targets import Targets
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.requests.examples import Examples
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.engine.edit.words import Replacement
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.reader import Capture

EXAMPLES_OF_WORDS: Final = 64
"""Documents with the old word that a rewrite of words is made from, where it needs the model: as many as are drawn."""
PROMPT_FOLDS: Final = 3
"""Every third prompt of a fact is held out to select neurons by, where a fact has as many."""
TRIES: Final = 4
"""How often an edit is tried with the model and aimed higher."""
NEAR_ENOUGH: Final = 0.05
"""Share of the margin by which a target may fall short."""


def make(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None) -> Edit:
    """The edit by the least-norm form of requests, or of words of several tokens, which needs the model."""
    least = settings.least_norm_settings()
    replacement = None if settings.requests else find_replacement(capture, *settings.words)
    if reader is None:
        raise InvalidInputError(
            "The least-norm form needs the model for a target of several tokens: the later ones are predicted after text that "
            "no capture holds. Pass it as `model`."
        )
    wanted = dataclasses.replace(settings, least_norm=least, examples=max(settings.examples, EXAMPLES_OF_WORDS))
    return _joint(capture, name, wanted, reader, find_examples(capture, wanted, reader, replacement), replacement)


def _check_scales(capture: Capture, layers: Sequence[int]) -> None:
    """`InvalidInputError` where the controls lack what scales them: beside the model's positions they would weigh too much."""
    if approximate := scale_sentences(capture, layers):
        raise InvalidInputError(
            "The least-norm form of prompts and of several tokens needs what scales each position after the feed-forward. "
            f"{' '.join(approximate)} Or choose `method` fine."
        )


def _joint(
    capture: Capture, name: str, settings: RewriteSettings, reader: Reader, examples: Examples, replacement: Replacement | None
) -> Edit:  # fmt: skip
    least = settings.least_norm
    layers = editable_layers(capture, Stream(capture), least)
    _check_scales(capture, layers)
    targets = read_targets(reader, examples.tasks, layers)
    problem = JointProblem(capture, targets, least, _own_positions(capture, settings, examples, targets, replacement))
    neurons = _select(problem, _sets(problem, layers), _held_out_targets(examples, targets))
    check_editable(reader.model, neurons)
    best: tuple[float, Edit] | None = None
    for _ in range(TRIES + 1):
        edit = _edit(capture, name, examples, settings, problem, _solve(problem, neurons))
        with edited(reader.model, edit):
            margins = _margins(edited_logits(reader, examples.tasks), targets.new)
        if best is None or margins.min() > best[0]:
            best = float(margins.min()), edit
        short = problem.margin - margins
        if (short <= NEAR_ENOUGH * abs(problem.margin)).all():
            break
        problem.extra += np.maximum(short, 0)
    assert best is not None
    return _with_warning(best[1], best[0], examples.new)


def _with_warning(edit: Edit, margin: float, target: str) -> Edit:
    """The edit, whose settings say so where the model, tried with it, still says something else to one of the examples."""
    if margin > 0:
        return edit
    warning = (
        f"The target was not reached: with the edit, another token than one of {target!r} is still {-margin:.3g} ahead in one "
        "of the examples. Rewrite more neurons with `k` or `layers`, or lower `control`."
    )
    record = dataclasses.replace(edit.record, settings={**edit.record.settings, "warning": warning})
    return Edit(record, edit.rows)


def _margins(logits: Tensor, new: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much each target's logit exceeds the largest other."""
    values = logits.double().numpy().copy()
    n = np.arange(len(new))
    own = values[n, new].copy()
    values[n, new] = -np.inf
    return np.asarray(own - values.max(1))


def _solve(problem: JointProblem, neurons: Neurons) -> JointFit:
    """The fit of a set of neurons over everything, above all rivals that it raises."""
    everything = Selection(np.ones(len(problem.targets), bool), None)
    return problem.judge(neurons, problem.fit(neurons, everything), everything)


def _sets(problem: JointProblem, layers: Sequence[int]) -> Iterator[Neurons]:
    """Sets of neurons to be tried, as for words of one token: the given ones, or the k best, or more and more."""
    settings = problem.settings
    if settings.neurons is not None:
        for layer, neuron in settings.neurons:
            problem.capture.check_neuron(layer, neuron)
        if missing := [layer for layer, _ in settings.neurons if layer not in layers]:
            raise InvalidInputError(
                f"Layer {missing[0]} is none of those that the capture holds and that write to the head's stream: "
                f"{', '.join(map(str, layers))}. Check `neurons`."
            )
        yield group_by_layer(settings.neurons) or {}
        return
    named = settings.layers is not None
    groups = [list(layers)] if named else [list(layers[-n:]) for n in range(1, len(layers) + 1)]
    scores: dict[int, NDArray[np.float64]] = {}
    for number, group in enumerate(groups):
        scores |= {layer: problem.scores(layer) for layer in group if layer not in scores}
        width = sum(len(scores[layer]) for layer in group)
        sizes = [settings.k] if settings.k is not None else [*(k for k in NUMBERS_TRIED if k < width), width]
        for k in sizes if number == 0 or settings.k is not None else sizes[-2:-1]:
            yield largest(scores, group, k)


def _select(problem: JointProblem, sets: Iterator[Neurons], held_out: NDArray[np.bool_]) -> Neurons:
    """The first set that reaches its goal on prompts and documents it was not fitted to; else the best one."""
    settings = problem.settings
    if settings.neurons is not None:
        return next(sets)
    enough = sum(len(block.slots) for block in problem.blocks) >= MIN_FOR_HELD_OUT
    fitted = Selection(~held_out, False if enough else None)
    judged = Selection(held_out if held_out.any() else ~held_out, True if enough else None)
    best, selected, n_layers = -1.0, None, None
    for neurons in sets:
        n_layers = n_layers or len(neurons)
        if best >= SUFFICIENT and len(neurons) > n_layers and settings.k is None:
            break  # earlier layers do less well than predicted
        fit = problem.judge(neurons, problem.fit(neurons, fitted), judged)
        if min(fit.won, fit.kept) > best:
            best, selected = min(fit.won, fit.kept), neurons
        if best >= settings.reach:
            break
    assert selected is not None
    return selected


def _held_out_targets(examples: Examples, targets: Targets) -> NDArray[np.bool_]:
    """The positions of every third prompt of each fact that has three or more; [position]."""
    held_out = np.zeros(len(examples.tasks), bool)
    fact = np.array(examples.fact)
    for number in set(examples.fact):
        prompts = np.flatnonzero(fact == number)
        held_out[prompts[PROMPT_FOLDS - 1 :: PROMPT_FOLDS]] = True
    return held_out[targets.task]


def _own_positions(
    capture: Capture, settings: RewriteSettings, examples: Examples, targets: Targets, replacement: Replacement | None
) -> Callable[[BlockPlan, BlockPredictions], NDArray[np.bool_]]:
    """What says which positions of a block are of the edited facts: they are neither held nor moved.

    Those that predict what the model says to a prompt first, where the request names its subject only after that; of two
    words, those that predict the old one.
    """
    if replacement is not None:
        first = np.array([replacement.old[0]])
        return lambda _plan, block: np.isin(block.top, first)
    said: list[tuple[set[int], tuple[int, ...]]] = []
    fact = np.array(examples.fact)[targets.task]
    for number, request in enumerate(settings.requests):
        tokens = {int(token) for token in targets.top[(fact == number) & (targets.index == 0)]}
        said.append((tokens, () if request.subject is None else _subject(capture, request.subject)))

    def is_own(plan: BlockPlan, block: BlockPredictions) -> NDArray[np.bool_]:
        own = np.zeros(len(block.slots), bool)
        for tokens, subject in said:
            same = np.isin(block.top, list(tokens))
            own |= same & _follows(plan, block, subject) if subject else same
        return own

    return is_own


def _subject(capture: Capture, subject: str) -> tuple[int, ...]:
    """The tokens of a subject in the middle of a text."""
    for text in (subject if subject[:1].isspace() else f" {subject}", subject):
        try:
            return tokens_of(capture.store, text)
        except InvalidInputError:
            continue
    return ()


def _follows(plan: BlockPlan, block: BlockPredictions, subject: Sequence[int]) -> NDArray[np.bool_]:
    """Which positions of a block come after some tokens of their own window."""
    ends = np.cumsum(plan.windows["n_inputs"]).astype(np.int64)
    first = np.concatenate([[0], ends[:-1]])
    starts = starts_of(plan.inputs, subject)
    earliest = np.full(len(ends), np.iinfo(np.int64).max)
    np.minimum.at(earliest, np.searchsorted(ends, starts, side="right"), starts)
    window = np.repeat(np.arange(len(ends)), plan.windows["n_slots"])[block.slots]
    follows: NDArray[np.bool_] = first[window] + plan.position[block.slots] >= earliest[window]
    return follows


def _edit(
    capture: Capture, name: str, examples: Examples, settings: RewriteSettings, problem: JointProblem, fit: JointFit
) -> Edit:  # fmt: skip
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, delta in fit.deltas().items():
        before = read_rows(capture.folder, f"layer-{layer}", "write_vectors", fit.neurons[layer])
        rows[layer] = fit.neurons[layer], RowPair(before, before.double() + problem.stream.written(layer, delta))
    n_controls = sum(len(block.slots) for block in problem.blocks)
    fields: dict[str, Any] = asdict(settings.least_norm) | examples.fields | {
        "n_positions": len(problem.targets), "n_controls": n_controls,
    }  # fmt: skip
    predicted = {"of": "targets that win, and other predictions that stay", "won": fit.won, "kept": fit.kept}
    return make_edit(name, "least-norm", capture.store.model, rows, fields, predicted)

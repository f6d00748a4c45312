"""The baselines that an edit is compared with, as one table: each makes other settings of the same rewrite."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.neurons import random_neurons

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.edits import Edit


@dataclass(frozen=True)
class Baseline:
    """Another way to make the edit that is evaluated."""

    label: str
    help: str
    settings: Callable[[RewriteSettings, Edit, Mapping[int, int], int], RewriteSettings]
    """(the edit's settings, the edit, layer → number of its neurons, seed) → the settings of the baseline."""


def neurons_of(edit: Edit) -> dict[int, list[int]]:
    """Layer → the neurons that an edit rewrites."""
    return {rows.layer: list(rows.neurons) for rows in edit.record.rows}


def with_random_neurons(settings: RewriteSettings, edit: Edit, widths: Mapping[int, int], seed: int) -> RewriteSettings:
    """The settings with as many random neurons in each layer as the edit has there, none of them the edit's.

    `widths`: layer → number of its neurons.
    """
    edited = {layer: np.array(neurons) for layer, neurons in neurons_of(edit).items()}
    drawn = random_neurons(edited, {layer: widths[layer] for layer in edited}, np.random.default_rng([seed, 7]))
    return dataclasses.replace(
        settings, neurons=tuple((layer, int(neuron)) for layer, indices in drawn.items() for neuron in indices)
    )


def with_fine_tuning(settings: RewriteSettings, edit: Edit, widths: Mapping[int, int], seed: int) -> RewriteSettings:
    """The settings of fine-tuning of the edit's own rows."""
    neurons = tuple((layer, neuron) for layer, indices in neurons_of(edit).items() for neuron in indices)
    return dataclasses.replace(settings, form="fine-tune", neurons=neurons)


BASELINES: Final = {
    "fine-tune": Baseline("fine-tuning, same rows", "plain fine-tuning of the edit's own rows", with_fine_tuning),
    "random": Baseline("random neurons, same form", "the edit's form on random neurons", with_random_neurons),
}

"""Knowledge neurons of stored attributions, for edits that are made without the model: nothing here loads transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.naica.stored_knowledge import knowledge_neurons_of
from actstore.store.capture.captures import Captures
from actstore.store.capture.questions.attributions import open_attributions
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.storage.folder import Folder


@dataclass(frozen=True, eq=False)
class Located:
    """The neurons of one token of one target."""

    old: int
    """What the model says there."""
    new: int
    neurons: dict[int, list[int]]
    """Layer → indices, ascending."""
    activations: dict[int, NDArray[np.float64]]
    """Layer → the mean activation of each of them where the token is predicted."""


def stored_knowledge(
    folder: Folder, settings: RewriteSettings
) -> tuple[dict[int, list[int]], dict[int, NDArray[np.float64]]]:
    """The knowledge neurons of the named queries of stored attributions, together, and their mean activations there.

    `InvalidInputError` for a query that is not among them, and where there are no attributions.
    """
    attributions = open_attributions(Captures(folder), settings.knowledge.questions)
    attributions.expect_neurons("The rows of MLP neurons are edited")
    names = attributions.queries["query"].to_pylist()
    if missing := [name for name in settings.knowledge.queries if name not in names]:
        raise InvalidInputError(
            f"Capture {attributions.capture.record.name!r} has no query {missing[0]!r}; one of them is {names[0]!r}. Check "
            "`queries`."
        )
    rows = [names.index(name) for name in settings.knowledge.queries]
    flat = np.unique(np.concatenate([knowledge_neurons_of(attributions, row).neurons for row in rows]))
    if not len(flat):
        raise InvalidInputError("The queries have no knowledge neurons: no prompt has a positive attribution.")
    if settings.least_norm.k is not None:
        mean = np.mean([attributions.scores_of(row, "ig").mean(0) for row in rows], axis=0)
        flat = np.sort(flat[np.argsort(-mean[flat], kind="stable")[: settings.least_norm.k]])
    values = np.mean([attributions.scores_of(row, "activation").mean(0) for row in rows], axis=0)
    return by_layer(NeuronIndex(attributions.capture.record.layers("mlp.post")), flat, values)


def by_layer(
    index: NeuronIndex, flat: NDArray[np.int64], values: NDArray[np.floating]
) -> tuple[dict[int, list[int]], dict[int, NDArray[np.float64]]]:
    """Layer → indices of some neurons, and layer → their values; `values` are of all neurons."""
    layers, indices = index.locate(flat)
    selected = {int(layer): layers == layer for layer in np.unique(layers)}
    return (
        {layer: indices[inside].tolist() for layer, inside in selected.items()},
        {layer: values[flat[inside]].astype(np.float64) for layer, inside in selected.items()},
    )

"""Where a model keeps what it says: knowledge neurons of examples by integrated gradients.

Dai et al. (ACL 2022, arXiv 2104.08696): the attribution of the probability of what the model says, one prompt after the other,
and of these the neurons that most prompts of a fact share. Each token of a target has neurons of its own, found at the position
that predicts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.attribution.integrated_gradients import PathSettings, integrated_gradients
from actstore.engine.edit.forms.fine import language_layers
from actstore.engine.edit.forms.stored import Located, by_layer
from actstore.engine.edit.rows import group_by_layer
from actstore.engine.models.intervene import intervened
from actstore.engine.models.patching import weights_without_gradients
from actstore.engine.naica.knowledge import knowledge_neurons
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.requests.examples import Examples
    from actstore.engine.edit.settings import RewriteSettings


def locate_knowledge(reader: Reader, examples: Examples, settings: RewriteSettings) -> list[Located]:
    """The knowledge neurons of every token of every fact; those that `settings.neurons` names, where it names any.

    With `settings.least_norm.k` the k neurons with the largest mean attribution; otherwise those that the fact's prompts share.
    """
    layers = _layers(reader, settings)
    widths = {layer: reader.model.spec.layers[layer].neurons for layer in layers}
    index = NeuronIndex(widths)
    given = group_by_layer(settings.neurons)
    steps = settings.knowledge.path_steps if given is None else 1  # of given neurons only the activations are asked
    groups: dict[tuple[int, int], list[tuple[Task, int]]] = {}
    for task, fact in zip(examples.tasks, examples.fact, strict=True):
        for number, position in enumerate(np.flatnonzero(task.edited).tolist()):
            groups.setdefault((fact, number), []).append((task, position))
    located = []
    for group in groups.values():
        scores, activations, said = [], [], []
        for task, number in group:
            position = int(task.positions[number])
            old = int(reader.logits([task.reading], [np.array([position])])[0][0].argmax())
            attribution, values = _attribute(reader, task, position, old, layers, steps)
            scores.append(attribution)
            activations.append(values)
            said.append(old)
        flat = _shared(np.stack(scores), settings.least_norm.k) if given is None else _numbers(index, given)
        task, number = group[0]
        tokens, counts = np.unique(said, return_counts=True)
        located.append(
            Located(
                int(tokens[counts.argmax()]),
                int(task.targets[number]),
                *by_layer(index, flat, np.mean(activations, axis=0)),
            )
        )
    return located


def _layers(reader: Reader, settings: RewriteSettings) -> list[int]:
    every_layer = language_layers(reader)
    wanted = settings.least_norm.layers
    if wanted is None:
        return every_layer
    if missing := [layer for layer in wanted if layer not in every_layer]:
        raise InvalidInputError(
            f"{reader.model.spec.name} has layers {', '.join(map(str, every_layer))} that write to the head's stream, found "
            f"{missing[0]}. Check `layers`."
        )
    return sorted(wanted)


def _shared(scores: NDArray[np.float32], k: int | None) -> NDArray[np.int64]:
    """The neurons of a fact, from the attributions [prompt, neuron] of its prompts."""
    if k is not None:
        return np.sort(np.argsort(-scores.mean(0), kind="stable")[:k])
    neurons = knowledge_neurons(scores).neurons
    if not len(neurons):
        raise InvalidInputError("The prompts have no knowledge neurons: no neuron has a positive attribution.")
    return neurons


def _numbers(index: NeuronIndex, neurons: Mapping[int, Sequence[int]]) -> NDArray[np.int64]:
    """The running numbers of neurons by layer."""
    return np.array([index.number(layer, n) for layer, indices in neurons.items() for n in indices], np.int64)


def _attribute(
    reader: Reader, task: Task, position: int, target: int, layers: Sequence[int], steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Integrated gradients and activations at one position [neuron], the layers side by side."""
    if task.reading.extra:
        attributions, activations = _with_image(reader, task, position, target, layers, steps)
    else:
        ids = task.reading.ids[: position + 1].tolist()
        result = integrated_gradients(
            reader.model, ids, target, settings=PathSettings(steps=steps, layers=tuple(layers))
        )
        attributions, activations = result.attributions, result.activations
    return (
        np.concatenate([attributions[layer] for layer in layers]),
        np.concatenate([activations[layer] for layer in layers]),
    )


def _with_image(
    reader: Reader, task: Task, position: int, target: int, layers: Sequence[int], steps: int
) -> tuple[Mapping[int, NDArray[np.float32]], Mapping[int, NDArray[np.float32]]]:
    """Integrated gradients where the model reads more than ids: every step is a pass over the whole window."""
    arguments = reader.arguments([task.reading.cut(position + 1)]) | {"use_cache": False}
    attributions: dict[int, NDArray[np.float32]] = {}
    activations: dict[int, NDArray[np.float32]] = {}
    with weights_without_gradients(reader.model.model), torch.enable_grad():
        for layer in layers:
            values: list[Tensor] = []
            total: Tensor | None = None
            for step in range(1, steps + 1):
                leaves: list[Tensor] = []
                with intervened(reader.model, {layer: _scaled_last(step / steps, values, leaves)}):
                    logits = reader.model.model(**arguments).logits[0, -1]
                logits.float().softmax(-1)[target].backward()
                gradient = leaves[0].grad
                assert gradient is not None
                total = gradient if total is None else total + gradient
            assert total is not None
            activations[layer] = values[0].float().cpu().numpy()
            attributions[layer] = (values[0].float() * total.float() / steps).cpu().numpy()
    return attributions, activations


def _scaled_last(share: float, values: list[Tensor], leaves: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The change that puts a share of the last position's activations in their place, as a leaf of the graph."""

    def change(activations: Tensor) -> Tensor:
        own = activations[:, -1:].detach()
        values.append(own[0, 0])
        leaf = (own[0, 0] * share).requires_grad_()
        leaves.append(leaf)
        return torch.cat([activations[:, :-1], leaf.expand_as(own)], dim=1)

    return change

"""Neurons as methods take them: by name, or as (layer, index)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import InvalidInputError
from actstore.store.neurons import parse_neuron

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from actstore.store.capture.reader import Capture

    NeuronInput = str | tuple[int, int]


def neuron_pairs(neurons: NeuronInput | Iterable[NeuronInput]) -> list[tuple[int, int]]:
    """(layer, index) of neurons given as `"L3.N17"` or `(3, 17)`, alone or several, each once."""
    if isinstance(neurons, str):
        neurons = neurons.split(",")
    elif isinstance(neurons, tuple) and len(neurons) == 2 and all(isinstance(part, int) for part in neurons):
        neurons = [neurons]  # type: ignore[list-item]
    pairs = []
    for neuron in neurons:
        if isinstance(neuron, str):
            pairs.append(parse_neuron(neuron))
        elif isinstance(neuron, tuple) and len(neuron) == 2:
            pairs.append((int(neuron[0]), int(neuron[1])))
        else:
            raise InvalidInputError(f"A neuron is a name such as L3.N17, or (layer, index), found {neuron!r}.")
    return list(dict.fromkeys(pairs))


def label_column(by: str, others: Iterable[str]) -> str:
    """The name of a table's column of values of the label `by`: the label's, or `label` where another column has that."""
    return "label" if by in others else by


def chosen_neurons(
    capture: Capture, site: str, neurons: NeuronInput | Iterable[NeuronInput] | None, layers: Sequence[int] | None
) -> list[tuple[int, int]] | None:
    """(layer, index) of what `neurons` and `layers` name together; None where neither is given."""
    if neurons is None and layers is None:
        return None
    pairs = neuron_pairs(neurons) if neurons is not None else []
    for layer in layers or ():
        capture.check_neuron(layer, 0, site)  # raises, saying what there is
        pairs += [(layer, index) for index in range(capture.record.layers(site)[layer])]
    return list(dict.fromkeys(pairs))

"""Neurons as methods take them: by name, or as (layer, index)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronInput, neuron_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from actstore.store.capture.reader import Capture

__all__ = ["NeuronInput", "check_one_given", "chosen_neurons", "label_column", "neuron_pairs"]


def label_column(by: str, others: Iterable[str]) -> str:
    """The name of a table's column of values of the label `by`: the label's, or `label` where another column has that."""
    return "label" if by in others else by


def chosen_neurons(
    capture: Capture, site: str, neurons: NeuronInput | Iterable[NeuronInput] | None, layers: Sequence[int] | None
) -> list[tuple[int, int]] | None:
    """(layer, index) of `neurons`, or of all neurons of `layers`, each once; None where neither is given."""
    check_one_given(neurons, layers)
    if neurons is not None:
        return neuron_pairs(neurons)
    if layers is None:
        return None
    pairs: list[tuple[int, int]] = []
    for layer in dict.fromkeys(layers):
        capture.check_neuron(layer, 0, site)  # raises, saying what there is
        pairs += [(layer, index) for index in range(capture.record.layers(site)[layer])]
    return pairs


def check_one_given(neurons: object, layers: object) -> None:
    """`InvalidInputError` where both are given: it could mean either of them, or both at once."""
    if neurons is not None and layers is not None:
        raise InvalidInputError(
            "`neurons` names single neurons, and `layers` all of some layers: pass one of them, not both."
        )

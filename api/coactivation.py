"""`store.coactivation`: the neurons that fire with a neuron, or every neuron's nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.api.neurons import neuron_pairs
from actstore.api.results import Answer
from actstore.store.arguments import argument
from actstore.store.errors import InvalidInputError
from actstore.store.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.api.neurons import NeuronInput
    from actstore.engine.coactivation.coactivation import Coactivations
    from actstore.engine.coactivation.nearest import NearestNeurons
    from actstore.engine.coactivation.settings import CoactivationSettings
    from actstore.engine.devices.device import Device
    from actstore.engine.workers.executor import Executor
    from actstore.store.capture.reader import Capture


def answer_coactivation(
    capture: Capture,
    neuron: NeuronInput | None,
    settings: CoactivationSettings,
    output: str | Path | None,
    executor: Executor,
    device: Device,
) -> Answer[Coactivations] | Answer[NearestNeurons]:
    """The answer of `Store.coactivation`."""
    from actstore.engine.coactivation.coactivation import find_coactivation
    from actstore.engine.coactivation.files import check_output, write_coactivation
    from actstore.engine.coactivation.nearest import find_nearest
    from actstore.engine.coactivation.warnings import coactivation_warnings

    path = check_output(output)
    warnings = tuple(coactivation_warnings(capture, settings))
    answer: Answer[Coactivations] | Answer[NearestNeurons]
    if neuron is None:
        nearest = find_nearest(capture, settings, executor=executor, device=device)
        answer = Answer(Table(nearest.table()), nearest, warnings)
    else:
        pairs = neuron_pairs(argument("neuron", neuron, str | tuple[int, int]))
        if len(pairs) != 1:
            raise InvalidInputError(
                f"Expected one `neuron`, such as L3.N17, found {len(pairs)}. Leave it out to compare all of them."
            )
        coactivations = find_coactivation(capture, *pairs[0], settings, executor=executor, device=device)
        answer = Answer(Table(coactivations.table()), coactivations, warnings)
    if path is not None:
        write_coactivation(path, answer.table.to_arrow())
    return answer

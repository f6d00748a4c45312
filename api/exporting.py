"""`store.export`: what an export needs of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actstore.store.exports.selection import Correlated
    from actstore.store.reader import Capture

CORRELATED: Final = ("neuronpedia", "dashboard")
"""Formats that list the neurons with which a neuron goes."""
N_CORRELATED: Final = 10


def correlated_neurons(
    capture: Capture, neurons: Iterable[tuple[int, int]], site: str, format: str
) -> Correlated | None:
    """The neurons of its layer that correlate most with each of `neurons`, by coactivation; None where a format lists none."""
    if format not in CORRELATED or not capture.record.encoding.keeps_values:
        return None
    from actstore.engine.coactivation.nearest import find_nearest
    from actstore.engine.coactivation.settings import CoactivationSettings

    wanted = set(neurons)
    layers = tuple(sorted({layer for layer, _ in wanted}))
    settings = CoactivationSettings(k=N_CORRELATED, layers=layers, within_layers=True, site=site)
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for row in find_nearest(capture, settings).table().to_pylist():
        if (place := (row["layer"], row["neuron"])) in wanted and row["correlation"] is not None:
            found.setdefault(place, []).append((row["other_neuron"], row["correlation"]))
    return found

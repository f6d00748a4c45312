"""Pictures of query-relevant neurons: the layers that they lie in, and those that labels share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.display.heat_map import check_picture, write_picture
from actstore.display.overlap_map import write_overlap
from actstore.engine.naica.selection import count_by_layer, neurons_of_labels

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.naica.naica import NaicaSettings
    from actstore.engine.naica.selection import LayerCounts, SelectedNeurons
    from actstore.store.capture.questions.attributions import Attributions


def check_pictures(*files: Path | None) -> None:
    """Raise `InvalidInputError` for a file that no picture can be written to; before the work."""
    for file in files:
        if file is not None:
            check_picture(file)


def describe_selection(attributions: Attributions, method: str, settings: NaicaSettings) -> str:
    """What was selected from, and how, in a phrase: the subtitle of its pictures."""
    numbers = f"t {settings.t:g}, u {settings.u:g}, v {settings.v}{'' if settings.ica else ', no ica'}"
    source = f"{attributions.store.model.name}, capture {attributions.capture.record.name}"
    return f"{source}: {method}, attribution {settings.attribution}, {numbers}"


def draw_selection(
    attributions: Attributions,
    selection: SelectedNeurons,
    by: str | None,
    subtitle: str,
    output: Path | None,
    overlap_map: Path | None,
) -> LayerCounts:
    """Write the pictures that are asked for; the counts by layer, which the first is of."""
    layers = count_by_layer(selection, attributions.capture.record.layers(attributions.site), by)
    if output is not None:
        write_picture(output, layers, "Query-relevant neurons by layer", subtitle)
    if overlap_map is not None:
        title = f"Query-relevant neurons that {'labels' if by else 'queries'} share"
        write_overlap(overlap_map, neurons_of_labels(selection, by), title, subtitle)
    return layers

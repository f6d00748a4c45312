"""Which neurons of a site graphs are built, evaluated or probed for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from actstore.store.reader import Capture


def select_neurons(
    captures: Sequence[Capture], site: str, neurons: Iterable[tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """The (layer, index) of the given neurons, ascending, each once; all of the site for None.

    `NotFoundError` where one of the captures lacks the site or a neuron.
    """
    record = captures[0].record
    if neurons is None:
        if site not in record.sites:
            captures[0].check_neuron(0, 0, site)
        selection = [(layer, index) for layer, width in sorted(record.layers(site).items()) for index in range(width)]
    else:
        selection = sorted(set(neurons))
    for capture in captures if neurons is not None else captures[1:]:
        for layer, index in selection:
            capture.check_neuron(layer, index, site)
    return selection

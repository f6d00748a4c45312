"""The neurons that fire with a neuron, over all layers: one pass over the blocks of a capture.

Two measures of a pair, over the chosen positions. *Correlation*: Pearson's, of the two neurons' activations, over the tokens at
which both have a finite one. *Jaccard*: of the sets A and B of tokens on which each fires, |A ∩ B| / |A ∪ B|.

Workers take blocks; one layer of one block is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore.engine.coactivation.pairs import Pairs, compare
from actstore.engine.coactivation.settings import CoactivationSettings
from actstore.engine.devices.device import HOST, Device
from actstore.engine.devices.stream import stream_values
from actstore.engine.workers.scan import HERE, Scan
from actstore.store.capture.positions import blocks_with, check_positions, check_values
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import NeuronIndex, neuron_columns, neuron_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.kernels.coactivation.api import Coactivation
    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Coactivations:
    """How one neuron went with all neurons of some layers; arrays over neurons are numbered by `index`."""

    settings: CoactivationSettings
    layer: int
    neuron: int
    index: NeuronIndex
    """The neurons that were looked through."""
    correlation: NDArray[np.float32]
    """[neuron] NaN where either's activations are all the same."""
    jaccard: NDArray[np.float32]
    """[neuron] NaN where neither fires."""
    tokens: NDArray[np.int64]
    """[neuron] Tokens at which both have a finite activation."""
    both_fire: NDArray[np.int64]
    """[neuron] Tokens on which both fire."""
    fires: NDArray[np.int64]
    """[neuron] Tokens on which the other neuron fires."""
    own_fires: int
    """Tokens on which the neuron itself fires."""
    n_tokens: int
    """Tokens that were looked at."""

    @property
    def name(self) -> str:
        """The neuron that was asked about."""
        return neuron_name(self.layer, self.neuron)

    def nearest(self) -> NDArray[np.int64]:
        """The `k` neurons with the largest values of the measure, descending; ties go to the smaller layer and neuron.

        The neuron itself, and neurons without a value, are never among them.
        """
        values = getattr(self, self.settings.sort).copy()
        if self.layer in self.index.layers:
            values[self.index.number(self.layer, self.neuron)] = np.nan
        order = np.argsort(-values, kind="stable")
        nearest: NDArray[np.int64] = order[: min(self.settings.k, int((~np.isnan(values)).sum()))]
        return nearest

    def table(self) -> pa.Table:
        """One row per nearest neuron, the nearest first.

        Columns: name, layer, neuron; correlation and jaccard; both_fire and fires, the tokens on which both neurons, and on
        which this one fires; tokens, at which both have an activation.
        """
        nearest = self.nearest()
        layers, indices = self.index.locate(nearest)
        columns = ("correlation", "jaccard", "both_fire", "fires", "tokens")
        return pa.table(
            neuron_columns(layers, indices) | {name: nullable(getattr(self, name)[nearest]) for name in columns}
        )


def nullable(values: NDArray[np.generic]) -> pa.Array:
    """A column in which a value that is not there, NaN, is null."""
    return pa.array(values, from_pandas=True)


def find_coactivation(
    capture: Capture,
    layer: int,
    neuron: int,
    settings: CoactivationSettings | None = None,
    *,
    on_block: Callable[[int, int], None] = lambda done, n_blocks: None,
    executor: Executor = HERE,
    device: Device = HOST,
) -> Coactivations:
    """How a neuron went with every neuron of the capture, or of `settings.layers`.

    `device`: what compares; to a GPU, blocks stream.

    Raises `InvalidInputError` for a capture without values, positions, site or a committed block; `NotFoundError` for a neuron
    or layer that it does not hold.

    >>> find_coactivation(store.capture(), 3, 17).table()
    """
    settings = settings or CoactivationSettings()
    widths = compared_widths(capture, settings)
    capture.check_neuron(layer, neuron, settings.site)
    if settings.within_layers:
        if layer not in widths:
            raise InvalidInputError(
                f"{neuron_name(layer, neuron)} is of none of the `layers` {', '.join(map(str, widths))}, and `within_layers` "
                "compares it with its own layer only. Leave one out."
            )
        widths = {layer: widths[layer]}
    states: list[Coactivation] | None = None
    n_tokens, blocks = 0, list(capture.blocks)
    look = partial(_of_block, capture, (layer, neuron), tuple(widths), settings, device)
    for done, found in enumerate(Scan(executor, "block")(look, blocks)):
        if found is not None:
            of_block, n_counted = found
            n_tokens += n_counted
            states = of_block if states is None else [a.merge(b) for a, b in zip(states, of_block, strict=True)]
        on_block(done + 1, len(blocks))
    if states is None:
        raise InvalidInputError(no_position(capture, settings))
    pairs = [Pairs.of(state) for state in states]
    return Coactivations(
        settings,
        layer,
        neuron,
        NeuronIndex(widths),
        correlation=np.concatenate([pair.correlation[0] for pair in pairs]),
        jaccard=np.concatenate([pair.jaccard[0] for pair in pairs]),
        tokens=np.concatenate([pair.tokens[0] for pair in pairs]),
        both_fire=np.concatenate([pair.both_fire[0] for pair in pairs]),
        fires=np.concatenate([pair.fires for pair in pairs]),
        own_fires=int(pairs[0].chosen_fires[0]),
        n_tokens=n_tokens,
    )


def no_position(capture: Capture, settings: CoactivationSettings) -> str:
    """What is said of a capture without any position to look at."""
    return (
        f"Capture {capture.record.name!r} has none of the positions {settings.positions!r} in its committed blocks. Choose "
        "other `positions`."
    )


def compared_widths(capture: Capture, settings: CoactivationSettings) -> dict[int, int]:
    """Layer → neurons, of the layers that are looked through, ascending; raises as `find_coactivation`."""
    check_values(capture, settings.site)
    check_positions(capture, settings.positions)
    widths = dict(sorted(capture.record.layers(settings.site).items()))
    if settings.layers is None:
        return widths
    for layer in settings.layers:
        capture.check_neuron(layer, 0, settings.site)
    if not settings.layers:
        raise InvalidInputError("No layer is named in `layers`. Name one, or leave `layers` out for all.")
    return {layer: widths[layer] for layer in sorted(set(settings.layers))}


def _of_block(
    capture: Capture,
    of: tuple[int, int],
    layers: tuple[int, ...],
    settings: CoactivationSettings,
    device: Device,
    block: int,
) -> tuple[list[Coactivation], int] | None:
    """The states [1, neuron] of every layer over one block, and how many positions were looked at; None without any."""
    counted = counted_slots(capture, block, settings.positions)
    if counted is None:
        return None
    layer, neuron = of
    chosen = device.put(capture.block_row(layer, neuron, block, settings.site, saturated=True)[None])
    streamed = stream_values(capture, [(other, block) for other in layers], settings.site, device)
    states = [compare(chosen, values, counted, settings.threshold).cpu() for values in streamed]
    return states, int(counted.sum())


def counted_slots(capture: Capture, block: int, positions: str) -> NDArray[np.bool_] | None:
    """Which slots of a block are looked at [slot]; None where none are."""
    for _, slots in blocks_with(capture, positions, [block]):
        counted = np.zeros(capture.record.plan.block_slots, bool)
        counted[slots] = True
        return counted
    return None

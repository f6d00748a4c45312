"""What is exported: neurons of a site over the committed tokens of a capture, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

Correlated = Mapping[tuple[int, int], Sequence[tuple[int, float]]]
"""(layer, index) → index in the layer, and Pearson's correlation, of the neurons that go with it."""

ROWS_READ_ALONE = 8
"""Maximum number of neurons of a layer whose rows are decoded singly; beyond, the whole block is."""


@dataclass(frozen=True)
class Selection:
    """Neurons [(layer, index)] of a site, in their order."""

    capture: Capture
    neurons: list[tuple[int, int]]
    site: str
    on_block: Callable[[int], None] = lambda block: None
    """Told of each block once it is written."""
    correlated: Correlated | None = None

    @property
    def n_tokens(self) -> int:
        """Committed tokens."""
        return len(self.capture.slots())

    def blocks(
        self, neurons: Sequence[tuple[int, int]] | None = None, *, is_last: bool = True
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(block, values [neuron, token]) of every committed block, padding left out; of all neurons, or of some.

        `on_block` is told where `is_last`: a layout that goes through the blocks several times tells of the last.
        """
        chosen = self.neurons if neurons is None else neurons
        columns_of: dict[int, list[int]] = {}
        for column, (layer, _) in enumerate(chosen):
            columns_of.setdefault(layer, []).append(column)
        for block in self.capture.blocks:
            values = np.empty((len(chosen), self.capture.used_slots[block]), np.float32)
            for layer, columns in columns_of.items():
                indices = [chosen[column][1] for column in columns]
                if len(indices) <= ROWS_READ_ALONE:
                    rows = np.stack([self.capture.block_row(layer, index, block, self.site) for index in indices])
                else:
                    rows = self.capture.block_values(layer, block, self.site)[indices]
                values[columns] = rows[:, : values.shape[1]]
            yield block, values
            if is_last:
                self.on_block(block)

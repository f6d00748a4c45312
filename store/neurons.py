"""Neurons as (layer, index), by names such as `L3.N17`, and by one running number over all layers; random draws of them."""

from __future__ import annotations

import re
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

NeuronInput = str | tuple[int, int]
"""A neuron as users name it: `"L3.N17"`, or (layer, index)."""


def neuron_name(layer: int, index: int) -> str:
    """`L3.N17` for neuron 17 of layer 3."""
    return f"L{layer}.N{index}"


def neuron_names(layers: Iterable[int], indices: Iterable[int]) -> list[str]:
    """The name of each neuron."""
    return [neuron_name(layer, index) for layer, index in zip(layers, indices, strict=True)]


def neuron_columns(
    layers: Sequence[int] | NDArray[np.integer], indices: Sequence[int] | NDArray[np.integer], prefix: str = ""
) -> dict[str, pa.Array]:
    """The columns by which every table names its neurons: `name` (`L3.N17`), `layer` and `neuron`, the index in its layer.

    `prefix` begins their names where a row names a second neuron.
    """
    layer, neuron = pa.array(layers, pa.int32()), pa.array(indices, pa.int32())
    texts = [pa.scalar("L"), layer.cast(pa.string()), pa.scalar(".N"), neuron.cast(pa.string()), pa.scalar("")]
    return {
        f"{prefix}name": pc.binary_join_element_wise(*texts),
        f"{prefix}layer": layer,
        f"{prefix}neuron": neuron,
    }


def parse_neuron(name: str) -> tuple[int, int]:
    """Layer and index of a name such as `L3.N17`; `InvalidInputError` for anything else."""
    match = re.fullmatch(r"L(\d+)\.N(\d+)", name.strip(), re.IGNORECASE)
    if match is None:
        raise InvalidInputError(f"A neuron is named by layer and index, such as L3.N17, found {name!r}.")
    return int(match[1]), int(match[2])


def neuron_pairs(neurons: NeuronInput | Iterable[NeuronInput]) -> list[tuple[int, int]]:
    """(layer, index) of neurons given as `"L3.N17"` or `(3, 17)`, alone or several, each once.

    Also as a column of a table, as rows that have a `name`, and as `store.neuron("L3.N17")`.

    `InvalidInputError` for anything else.
    """
    if isinstance(neurons, str):
        several: Any = neurons.split(",")
    else:
        several = [neurons] if _is_pair(neurons) or not hasattr(neurons, "__iter__") else neurons
    return list(dict.fromkeys(_pair(one) for one in several))


def _pair(neuron: Any) -> tuple[int, int]:
    value = neuron.as_py() if hasattr(neuron, "as_py") else neuron  # of an Arrow column
    value = getattr(value, "name", value)
    if isinstance(value, str):
        return parse_neuron(value)
    if not _is_pair(value):
        raise InvalidInputError(f"A neuron is a name such as L3.N17, or (layer, index), found {value!r}.")
    return int(value[0]), int(value[1])


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, Integral) for part in value)


class NeuronIndex:
    """One running number for all neurons of some layers: layer after layer, within each by index."""

    def __init__(self, widths: Mapping[int, int]) -> None:
        """`widths`: layer → number of neurons, in the order in which they are numbered."""
        self.layers = np.array(list(widths), np.int64)
        self.widths = np.array(list(widths.values()), np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.widths)])
        """[layer + 1]: the number of each layer's first neuron, and at the end the number of all neurons."""
        self._rows = {layer: row for row, layer in enumerate(widths)}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def number(self, layer: int, index: int) -> int:
        """The running number of a neuron; `NotFoundError` where there is none of that layer and index."""
        row = self._rows.get(layer)
        if row is None or not 0 <= index < self.widths[row]:
            raise NotFoundError(f"Neuron {neuron_name(layer, index)} is not among the {len(self)} numbered here.")
        return int(self.starts[row]) + index

    def numbers(self, layers: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The running number of each neuron, which must be there."""
        rows = np.array([self._rows[layer] for layer in layers.tolist()], np.int64)
        return self.starts[rows] + indices

    def of_layer(self, layer: int) -> range:
        """The running numbers of a layer's neurons."""
        row = self._rows[layer]
        return range(int(self.starts[row]), int(self.starts[row + 1]))

    def layer_rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of neurons by number, the position of their layer in `layers`; of the shape of `numbers`."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Layers and indices of neurons by number; both of the shape of `numbers`."""
        rows = self.layer_rows(numbers)
        return self.layers[rows], numbers - self.starts[rows]

    def pairs(self, numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(layer, index) of each number."""
        layers, indices = self.locate(numbers)
        return list(zip(layers.tolist(), indices.tolist(), strict=True))

    def names(self, numbers: NDArray[np.int64]) -> list[str]:
        """The name of each number."""
        return [neuron_name(layer, index) for layer, index in self.pairs(numbers)]


def random_neurons(
    selected: Mapping[int, NDArray[np.int64]], widths: Mapping[int, int], rng: np.random.Generator
) -> dict[int, NDArray[np.int64]]:
    """Random neurons, as many as `selected` and none of them: as many per layer where it has enough others, the rest anywhere.

    `selected`: layer → indices; `widths`: layer → number of neurons. All other neurons where fewer are left than selected.
    """
    others = {
        n: rng.permutation(np.setdiff1d(np.arange(width), selected.get(n, ()))) for n, width in sorted(widths.items())
    }
    quota = {layer: min(len(selected.get(layer, ())), len(rest)) for layer, rest in others.items()}
    missing = sum(map(len, selected.values())) - sum(quota.values())
    spare = np.repeat(list(others), [len(rest) - quota[layer] for layer, rest in others.items()])
    for layer in rng.permutation(spare)[:missing].tolist():
        quota[layer] += 1
    return {layer: np.sort(rest[: quota[layer]]) for layer, rest in others.items() if quota[layer]}


def overlap_shares(sets: Sequence[NDArray[np.integer]]) -> NDArray[np.float64]:
    """|A ∩ B| / |A ∪ B| of every two sets of neurons (Jaccard's index), 0 of two empty ones; shape [set, set]."""
    distinct = [np.unique(neurons) for neurons in sets]
    shares = np.zeros((len(sets), len(sets)))
    for i, first in enumerate(distinct):
        for j, second in enumerate(distinct[: i + 1]):
            shared = len(np.intersect1d(first, second, assume_unique=True))
            shares[i, j] = shares[j, i] = shared / max(len(first) + len(second) - shared, 1)
    return shares

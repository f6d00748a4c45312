"""What a corpus leaves of its contributions: sums by group; mergeable.

Plain numpy, so that a reader needs no compiler.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class TopNeurons(NamedTuple):
    """The neurons that contribute most to the target of every token, descending.

    Unused entries are -inf with neuron -1.
    """

    scores: NDArray[np.float32]  # [token, k]
    neurons: NDArray[np.int64]  # [token, k]


@dataclass(frozen=True)
class ContributionSums:
    """Contributions of every neuron to the targets of the tokens of every group, summed; arrays are updated in place.

    The mean contribution is `total / count[:, None]`, or over `count[:, None] - non_finite` where activations can be
    infinite.
    """

    total: NDArray[np.float64]
    """[group, neuron] sum of the scores."""
    magnitude: NDArray[np.float64]
    """[group, neuron] sum of their magnitudes."""
    count: NDArray[np.int64]
    """[group] tokens."""
    non_finite: NDArray[np.int64]
    """[group, neuron] tokens at which the activation is NaN or infinite; they enter neither sum."""

    @classmethod
    def empty(cls, n_groups: int, n_neurons: int) -> Self:
        """The sums over no token."""
        shape = (n_groups, n_neurons)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(n_groups, np.int64), np.zeros(shape, np.int64))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def over_groups(self) -> Self:
        """The same over all groups together, of tokens that are of one group each."""
        return type(self)(*(array.sum(axis=0, keepdims=True) for array in self.arrays().values()))

    def merge(self, other: "ContributionSums") -> None:
        """Add the sums of another part in place; the same parts in the same order give the same bits."""
        for name, array in self.arrays().items():
            if array.shape != (other_shape := getattr(other, name).shape):
                raise ValueError(
                    f"cannot merge contributions: {name} has shape {array.shape} here and {other_shape} there"
                )
        for name, array in self.arrays().items():
            array += getattr(other, name)

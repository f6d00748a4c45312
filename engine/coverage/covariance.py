"""NLC: the covariance of a layer's neurons over the samples, as a state of coverage.

Yuan et al. (ICSE 2023, arXiv 2112.01955): how far values spread, and how they go together, is how much a layer is covered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.coverage.state import LayerSamples

MAX_WIDTH: Final = 8192
"""Maximum number of neurons of a layer: its matrix takes 0.5 GB then."""


@dataclass
class Covariance:
    """NLC: number, mean and sums of products of differences from it, of the samples in which every neuron has a value.

    Merging is exact but for rounding, which depends on how samples are divided.
    """

    n: NDArray[np.int64]
    """[1]"""
    mean: NDArray[np.float64]
    """[neuron]"""
    products: NDArray[np.float64]
    """[neuron, neuron] Σ (x − mean)(x − mean)ᵀ"""

    @classmethod
    def empty(cls, width: int) -> Covariance:
        """The state before any sample; `InvalidInputError` for a layer whose matrix is too large."""
        if width > MAX_WIDTH:
            raise InvalidInputError(
                f"The criterion nlc keeps a matrix of neurons × neurons for each layer, up to {MAX_WIDTH:,} neurons, found "
                f"{width:,}. Choose other `criteria`."
            )
        return cls(np.zeros(1, np.int64), np.zeros(width), np.zeros((width, width)))

    def add(self, samples: LayerSamples) -> None:
        """Add samples; those in which a neuron has no value are left out."""
        values = samples.values[:, ~np.isnan(samples.values).any(axis=0)].astype(np.float64)
        n = values.shape[1]
        if not n:
            return
        mean = values.mean(axis=1)
        values -= mean[:, None]
        self._put_together(n, mean, values @ values.T)

    def merge(self, other: Covariance) -> None:
        """Add the samples of another state."""
        if other.n[0]:
            self._put_together(int(other.n[0]), other.mean, other.products)

    def _put_together(self, n: int, mean: NDArray[np.float64], products: NDArray[np.float64]) -> None:
        before = int(self.n[0])
        total = before + n
        difference = mean - self.mean
        self.products += products + np.outer(difference, difference) * (before * n / total)
        self.mean = self.mean + difference * (n / total)
        self.n = self.n + n

    def mean_magnitude(self) -> float:
        """The mean of the magnitudes of all covariances, Σ |σ_ij| / width²; 0 without a sample."""
        width = len(self.mean)
        return float(np.abs(self.products).sum() / (max(int(self.n[0]), 1) * max(width, 1) ** 2))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name."""
        return {"n": self.n, "mean": self.mean, "products": self.products}

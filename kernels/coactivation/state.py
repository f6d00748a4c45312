"""What is remembered of pairs of neurons: moments and cross moments, active tokens and those in common; mergeable.

Plain arithmetic on arrays that are all numpy's or all tensors on one CUDA device.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Array = Any  # a numpy array or a tensor on a CUDA device: a union of the two has no arithmetic that mypy knows


@dataclass(frozen=True)
class Coactivation:
    """How chosen neurons' activations went with those of all neurons, over the counted tokens of a part of a corpus.

    Moments of a pair are over the tokens at which both its values are finite. As long as that is every counted token, no
    moment but `comoment` depends on both neurons: an axis along which an array's entries are all the same is 1 long, and
    grows to its full length with the first value that is not finite. Over no token the moments are 0.
    """

    chosen_thresholds: Array
    """[chosen] float32; a chosen neuron is active at the tokens where its value is larger."""
    thresholds: Array
    """[neuron] float32, likewise of all neurons."""
    count: Array
    """[chosen or 1, neuron or 1] int64, tokens at which both values are finite."""
    chosen_mean: Array
    """[chosen, neuron or 1] float64, mean of the chosen neuron's values at those tokens."""
    mean: Array
    """[chosen or 1, neuron] float64, of the other neuron's."""
    chosen_m2: Array
    """[chosen, neuron or 1] float64, sum of the squared differences from the mean."""
    m2: Array
    """[chosen or 1, neuron] float64"""
    comoment: Array
    """[chosen, neuron] float64, sum of the products of both differences."""
    chosen_active: Array
    """[chosen] int64, tokens at which the chosen neuron is active."""
    active: Array
    """[neuron] int64"""
    both_active: Array
    """[chosen, neuron] int64, tokens at which both are."""

    @classmethod
    def empty(
        cls, n_chosen: int, n_neurons: int, chosen_thresholds: ArrayLike = 0.0, thresholds: ArrayLike = 0.0
    ) -> Self:
        """The state over no token; thresholds are one number, or one for each neuron."""
        pairs, chosen, neurons = (n_chosen, n_neurons), (n_chosen, 1), (1, n_neurons)
        return cls(
            chosen_thresholds=_as_thresholds(chosen_thresholds, n_chosen, "chosen_thresholds"),
            thresholds=_as_thresholds(thresholds, n_neurons, "thresholds"),
            count=np.zeros((1, 1), np.int64),
            chosen_mean=np.zeros(chosen),
            mean=np.zeros(neurons),
            chosen_m2=np.zeros(chosen),
            m2=np.zeros(neurons),
            comoment=np.zeros(pairs),
            chosen_active=np.zeros(n_chosen, np.int64),
            active=np.zeros(n_neurons, np.int64),
            both_active=np.zeros(pairs, np.int64),
        )

    def arrays(self) -> dict[str, Array]:
        """Every array by its name; not copies. `Coactivation(**arrays)` is the state again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def cpu(self) -> Self:
        """The same with numpy arrays."""
        return type(self)(**{name: _as_numpy(array) for name, array in self.arrays().items()})

    def to(self, device: "torch.device | str") -> Self:
        """The same as tensors on a device of torch's."""
        import torch  # whoever names one of its devices has loaded it

        return type(self)(**{name: torch.as_tensor(array, device=device) for name, array in self.arrays().items()})

    def merge(self, other: "Coactivation") -> Self:
        """The state over both parts together; neither is changed.

        Counts are exact. Moments follow Chan, Golub and LeVeque (1979), always in this order, so that the same parts
        merged in the same order give the same bits. Raises ValueError where neurons or thresholds differ.
        """
        for name in ("chosen_thresholds", "thresholds"):
            own, others = getattr(self, name), getattr(other, name)
            if own.shape != others.shape:
                raise ValueError(f"cannot merge coactivations of {len(own)} and of {len(others)} neurons ({name})")
            if not bool((own == others).all()):
                raise ValueError(f"cannot merge coactivations of different {name}")
        total = self.count + other.count
        # n₂ / n and n₁ n₂ / n; where neither has a token, both are 0.
        other_share = _as_float64(other.count) / _as_float64(total.clip(1))
        cross_weight = _as_float64(self.count) * other_share
        chosen_step, step = other.chosen_mean - self.chosen_mean, other.mean - self.mean
        return type(self)(
            self.chosen_thresholds,
            self.thresholds,
            total,
            self.chosen_mean + chosen_step * other_share,
            self.mean + step * other_share,
            self.chosen_m2 + (other.chosen_m2 + chosen_step * chosen_step * cross_weight),
            self.m2 + (other.m2 + step * step * cross_weight),
            self.comoment + (other.comoment + chosen_step * step * cross_weight),
            self.chosen_active + other.chosen_active,
            self.active + other.active,
            self.both_active + other.both_active,
        )

    def pearson(self) -> Array:
        """The correlation [chosen, neuron] float32 of every pair; NaN where either neuron's values are all the same."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return _as_float32((self.comoment / (self.chosen_m2**0.5 * self.m2**0.5)).clip(-1, 1))

    def jaccard(self) -> Array:
        """Tokens at which both are active / at which either is, [chosen, neuron] float32; NaN where neither ever is."""
        either_active = self.chosen_active[:, None] + self.active - self.both_active
        with np.errstate(invalid="ignore"):
            return _as_float32(_as_float64(self.both_active) / _as_float64(either_active))


def _as_thresholds(thresholds: ArrayLike, n: int, name: str) -> NDArray[np.float32]:
    values = np.asarray(thresholds, np.float32)
    if values.ndim and values.shape != (n,):
        raise ValueError(f"{name} must be one number or one for each of {n} neurons, not {list(values.shape)}")
    if np.isnan(values).any():
        raise ValueError(f"{name} must be numbers: nothing is larger than NaN")
    return np.array(np.broadcast_to(values, n))


def _as_float64(array: Array) -> Array:
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def _as_float32(array: Array) -> Array:
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()


def _as_numpy(array: Array) -> NDArray[Any]:
    host: NDArray[Any] = array if isinstance(array, np.ndarray) else array.cpu().numpy()
    return host

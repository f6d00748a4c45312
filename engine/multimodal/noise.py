"""Noise on neurons' write vectors: in the weights themselves, or another one for each window of a batch.

A neuron's noise depends on the seed and the neuron only, so that both ways agree: with δ on the write vector of a neuron with
activation a, the MLP's output changes by a·δ, whether the weights hold δ or a hook adds a·δ.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.models.patching import patch_points

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import Tensor

    from actstore.engine.models.load import LoadedModel

    Neurons = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Noise:
    """Noise σ·N(0, I) on the write vectors of some neurons [(layer, index)]."""

    neurons: Neurons
    sigma: float
    """A multiple of the root mean square of all entries of the layer's write vectors."""
    seed: int = 0

    def by_layer(self, model: LoadedModel) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer → neurons [neuron] and their noise [neuron, d_model], in the model's dtype on its device."""
        indices: dict[int, list[int]] = {}
        for layer, index in self.neurons:
            indices.setdefault(layer, []).append(index)
        by_layer = {}
        for layer, neurons in indices.items():
            vectors = model.write_vectors(layer)
            drawn = np.stack(
                [np.random.default_rng([self.seed, layer, i]).standard_normal(vectors.shape[1]) for i in neurons]
            )
            size = self.sigma * float(vectors.float().square().mean().sqrt())
            by_layer[layer] = torch.tensor(neurons, device=vectors.device), (size * torch.from_numpy(drawn)).to(vectors)
        return by_layer


@contextmanager
def noisy_weights(model: LoadedModel, noise: Noise) -> Iterator[None]:
    """While open, the model's weights hold the noise; afterwards they are bit for bit what they were."""
    originals: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, (rows, drawn) in noise.by_layer(model).items():
                vectors = model.write_vectors(layer)
                originals.append((vectors, rows, vectors[rows].clone()))
                vectors[rows] += drawn
        yield
    finally:
        with torch.no_grad():
            for vectors, rows, before in reversed(originals):
                vectors[rows] = before


def can_hook(model: LoadedModel, layers: Collection[int]) -> bool:
    """Whether `noisy_windows` works for these layers: not for routed experts, which see only some tokens of a batch."""
    specs = model.spec.layers
    return all(specs[layer].expert is None for layer in layers)


@contextmanager
def noisy_windows(model: LoadedModel, noises: Sequence[Noise]) -> Iterator[None]:
    """While open, window i of every batch runs as with `noises[i]` in the weights; a batch has one window per noise.

    Weights are not changed. Raises `InvalidInputError` for routed experts.
    """
    drawn = [noise.by_layer(model) for noise in noises]
    layers = sorted(set().union(*drawn)) if drawn else []
    with ExitStack() as stack:
        for place in patch_points(model, layers) if layers else ():
            of_windows = [by_layer.get(place.layer) for by_layer in drawn]
            rows, deltas = _padded(of_windows, model.write_vectors(place.layer))

            def add(
                _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor,
                rows: Tensor = rows, deltas: Tensor = deltas,
            ) -> Tensor:  # fmt: skip
                values = args[0] if args else next(iter(kwargs.values()))
                windows = values.reshape(len(noises), -1, values.shape[-1])
                activations = windows.gather(2, rows[:, None].expand(-1, windows.shape[1], -1))
                return output + torch.bmm(activations, deltas).reshape(output.shape)

            handle = model.model.get_submodule(place.owner).register_forward_hook(add, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _padded(of_windows: Sequence[tuple[Tensor, Tensor] | None], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Neurons [window, neuron] and noise [window, neuron, d_model]; the noise is 0 where a window has fewer neurons."""
    most = max(len(entry[0]) for entry in of_windows if entry is not None)
    rows = torch.zeros(len(of_windows), most, dtype=torch.int64, device=vectors.device)
    deltas = vectors.new_zeros(len(of_windows), most, vectors.shape[1])
    for i, entry in enumerate(of_windows):
        if entry is not None:
            rows[i, : len(entry[0])], deltas[i, : len(entry[0])] = entry
    return rows, deltas

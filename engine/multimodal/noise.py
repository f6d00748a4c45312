"""Noise on neurons' write vectors: in the weights themselves, or for each window of a batch its own.

A neuron's noise depends on the seed and the neuron only, and so do both ways agree: with δ on the write vector of a neuron
that fires by a, the MLP's output changes by a·δ, whether the weights hold δ or a hook adds a·δ. Knows nothing about why.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.models.patching import places_of

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
        """Layer → neurons [n] and their noise [n, d_model], in the model's dtype on its device."""
        indices: dict[int, list[int]] = {}
        for layer, index in self.neurons:
            indices.setdefault(layer, []).append(index)
        found = {}
        for layer, those in indices.items():
            vectors = model.write_vectors(layer)
            drawn = np.stack(
                [np.random.default_rng([self.seed, layer, i]).standard_normal(vectors.shape[1]) for i in those]
            )
            size = self.sigma * float(vectors.float().square().mean().sqrt())
            found[layer] = torch.tensor(those, device=vectors.device), (size * torch.from_numpy(drawn)).to(vectors)
        return found


@contextmanager
def noisy_weights(model: LoadedModel, noise: Noise) -> Iterator[None]:
    """While open, the model's weights hold the noise; afterwards they are bit for bit what they were."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, (rows, drawn) in noise.by_layer(model).items():
                vectors = model.write_vectors(layer)
                kept.append((vectors, rows, vectors[rows].clone()))
                vectors[rows] += drawn
        yield
    finally:
        with torch.no_grad():
            for vectors, rows, before in reversed(kept):
                vectors[rows] = before


def can_hook(model: LoadedModel, layers: Collection[int]) -> bool:
    """Whether `noisy_windows` can be had for these layers: not for routed experts, which see some tokens of a batch only."""
    specs = model.spec.layers
    return all(specs[layer].expert is None for layer in layers)


@contextmanager
def noisy_windows(model: LoadedModel, noises: Sequence[Noise]) -> Iterator[None]:
    """While open, window i of every batch, which must be of as many windows, runs as with `noises[i]` in the weights.

    Weights are not touched. Raises `InvalidInputError` for routed experts.
    """
    drawn = [noise.by_layer(model) for noise in noises]
    layers = sorted(set().union(*drawn)) if drawn else []
    with ExitStack() as stack:
        for place in places_of(model, layers) if layers else ():
            found = [of_window.get(place.layer) for of_window in drawn]
            rows, deltas = _padded(found, model.write_vectors(place.layer))

            def add(
                _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor,
                rows: Tensor = rows, deltas: Tensor = deltas,
            ) -> Tensor:  # fmt: skip
                values = args[0] if args else next(iter(kwargs.values()))
                windows = values.reshape(len(noises), -1, values.shape[-1])
                chosen = windows.gather(2, rows[:, None].expand(-1, windows.shape[1], -1))
                return output + torch.bmm(chosen, deltas).reshape(output.shape)

            handle = model.model.get_submodule(place.owner).register_forward_hook(add, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _padded(found: Sequence[tuple[Tensor, Tensor] | None], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Neurons [window, most] and noise [window, most, d_model] of every window; without noise where a window has fewer."""
    most = max(len(entry[0]) for entry in found if entry is not None)
    rows = torch.zeros(len(found), most, dtype=torch.int64, device=vectors.device)
    deltas = vectors.new_zeros(len(found), most, vectors.shape[1])
    for i, entry in enumerate(found):
        if entry is not None:
            rows[i, : len(entry[0])], deltas[i, : len(entry[0])] = entry
    return rows, deltas

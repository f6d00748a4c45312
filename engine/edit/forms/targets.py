"""Targets: what a model holds at the positions that predict the tokens of targets, read in one forward pass per example."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from actstore.engine.models.intervene import intervened
from actstore.engine.models.writing.scales import read_scales
from actstore.store.model.weights import final_norm_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader


@dataclass(frozen=True, eq=False)
class Targets:
    """The positions that predict a token of a target, one after the other."""

    new: NDArray[np.int64]
    """The token that should be predicted; [position]."""
    task: NDArray[np.int64]
    """Which example each position is of; [position]."""
    index: NDArray[np.int64]
    """Which token of its target each position predicts, from 0; [position]."""
    logits: Tensor
    """[position, vocabulary] float32."""
    inverse_rms: NDArray[np.float64]
    """1 / rms of the stream that the final norm reads; 1 without a norm; [position]."""
    activations: dict[int, NDArray[np.float32]]
    """Layer → [position, neuron], times the scale of the layer's output there, as a capture's are read."""

    @property
    def top(self) -> NDArray[np.int64]:
        """The token with the largest logit; [position]."""
        return self.logits.argmax(1).numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.new)


def edited_logits(reader: Reader, tasks: Sequence[Task]) -> Tensor:
    """The logits [position, vocabulary] of the model, as it is now, at the positions that predict the targets."""
    logits = reader.logits([task.reading for task in tasks], [task.positions[task.edited] for task in tasks])
    return torch.cat(logits)


def read_targets(reader: Reader, tasks: Sequence[Task], layers: Sequence[int]) -> Targets:
    """What the model holds at the edited positions of some tasks: activations of the layers, logits, 1 / rms."""
    parts: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    logits, inverse = [], []
    for task in tasks:
        positions = torch.from_numpy(task.positions[task.edited])
        values: dict[int, Tensor] = {}
        stream: list[Tensor] = []
        changes = {layer: _recorder(values, layer) for layer in layers}
        with torch.inference_mode(), intervened(reader.model, changes), _final_norm_input(reader, stream):
            arguments = reader.arguments([task.reading])
            output = reader.model.model(**arguments, use_cache=False).logits
        scales = read_scales(reader.model, arguments, layers)
        logits.append(output[0, positions.to(output.device)].float().cpu())
        inverse.append(_inverse_rms(reader, stream, positions))
        for layer in layers:
            rows = values[layer].reshape(-1, values[layer].shape[-1])[positions.to(values[layer].device)]
            scaled = rows.float().cpu()
            if layer in scales:
                scaled = scaled * scales[layer][0, positions, None]
            parts[layer].append(scaled.numpy())
    counts = [int(task.edited.sum()) for task in tasks]
    return Targets(
        np.concatenate([task.targets[task.edited] for task in tasks]).astype(np.int64),
        np.repeat(np.arange(len(tasks)), counts),
        np.concatenate([np.arange(count) for count in counts]),
        torch.cat(logits),
        np.concatenate(inverse),
        {layer: np.concatenate(rows) for layer, rows in parts.items()},
    )


def _recorder(values: dict[int, Tensor], layer: int) -> Callable[[Tensor], Tensor]:
    def record(activations: Tensor) -> Tensor:
        values[layer] = activations.detach()
        return activations

    return record


@contextmanager
def _final_norm_input(reader: Reader, stream: list[Tensor]) -> Iterator[None]:
    """While open, what the final norm reads is appended to `stream`."""
    path = reader.model.architecture.final_norm
    if path is None:
        yield
        return

    def note(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).detach())

    handle = reader.model.model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _inverse_rms(reader: Reader, stream: Sequence[Tensor], positions: Tensor) -> NDArray[np.float64]:
    """1 / rms at some positions of one window, by what the final norm read."""
    norm = final_norm_of(reader.model.final_norm())
    if not norm.is_there or not stream:
        return np.ones(len(positions))
    hidden = stream[-1].reshape(-1, stream[-1].shape[-1])[positions.to(stream[-1].device)].double().cpu()
    if norm.centres:
        hidden = hidden - hidden.mean(1, keepdim=True)
    return np.asarray((hidden.square().mean(1) + norm.epsilon).rsqrt().numpy())

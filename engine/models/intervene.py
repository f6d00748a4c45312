"""Interventions: forward passes in which selected neurons' activations differ from what the model computed.

A change takes a layer's activations A_post, which its MLP's output projection is about to read, and returns those that it reads
instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore.engine.models.patching import hooked, patch_points
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Hook, PatchPoint

Change = Callable[[Tensor], Tensor]
"""Activations [window, position, neuron] → those that replace them, of the same shape; must not write into its argument."""


def scale(factors: Tensor, *, last_only: bool = False) -> Change:
    """The change that multiplies by `factors`, [neuron] or [window, neuron], everywhere or at the last position only.

    0 suppresses a neuron, 2 doubles it, 1 leaves it as it is.
    """

    def change(values: Tensor) -> Tensor:
        by = factors.to(values)[..., None, :]
        if not last_only:
            return values * by
        return torch.cat([values[:, :-1], values[:, -1:] * by], dim=1)

    return change


def replace(neurons: Tensor, values: Tensor, *, last_only: bool = False) -> Change:
    """The change that sets `neurons` [selected] to `values`, which broadcast to [window, position, selected]."""

    def change(activations: Tensor) -> Tensor:
        changed = activations.clone()
        positions = changed[:, -1:] if last_only else changed
        positions[..., neurons.to(activations.device)] = values.to(activations)
        return changed

    return change


def factors(n_neurons: int, neurons: Sequence[int], factor: float) -> Tensor:
    """`factor` at `neurons` and 1 elsewhere, for `scale`; shape [neuron]."""
    vector = torch.ones(n_neurons)
    vector[torch.as_tensor(neurons, dtype=torch.int64)] = factor
    return vector


@contextmanager
def intervened(model: LoadedModel, changes: Mapping[int, Change]) -> Iterator[None]:
    """While open, every pass of `model.model` goes through `changes`, layer → change; gradients flow through them.

    Passes are counted by calls of the whole model: call `model.model(…)`, `generate` included, not its parts. Raises
    `InvalidInputError` for layers that the model does not have, and for routed experts, whose activations
    are no module's argument.
    """
    by_owner: dict[str, dict[int, PatchPoint]] = {}
    for point in patch_points(model, list(changes)):
        by_owner.setdefault(point.owner, {})[point.run] = point
    n_windows = 1

    def hook_of(points: dict[int, PatchPoint]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if run not in points:
                return None
            point = points[run]
            name = None if args else next(iter(kwargs))
            values = args[0] if name is None else kwargs[name]
            if values.shape[-1] != point.neurons:
                raise InvalidInputError(
                    f"expected {point.neurons} neurons in layer {point.layer} of {model.spec.name},"
                    f" found {values.shape[-1]} values"
                )
            after = changes[point.layer](values.reshape(n_windows, -1, point.neurons)).reshape(values.shape)
            return ((after, *args[1:]), kwargs) if name is None else (args, kwargs | {name: after})

        return hook

    with hooked(model.model, {owner: hook_of(points) for owner, points in by_owner.items()}) as runs:

        def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal n_windows
            runs.clear()
            first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() >= 2), None)
            n_windows = 1 if first is None else len(first)

        handle = model.model.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

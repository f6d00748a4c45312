"""Interventions: passes in which chosen neurons' activations are other than the model computed.

A change takes a layer's activations A_post, as its MLP's output projection is about to read them, and gives what it shall
read instead. Knows how a `LoadedModel` names its modules; nothing about which neurons deserve it, or what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore.engine.models.patching import hooked, places_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Hook, Place

Change = Callable[[Tensor], Tensor]
"""Activations [window, position, neuron] → the activations to go on with, same shape; must not write into its argument."""


def scale(factors: Tensor, *, last_only: bool = False) -> Change:
    """The change that multiplies by `factors`, [neuron] or [window, neuron], everywhere or at the last position only.

    0 suppresses a neuron, 2 doubles it, 1 leaves it alone.
    """

    def change(values: Tensor) -> Tensor:
        by = factors.to(values)[..., None, :]
        if not last_only:
            return values * by
        return torch.cat([values[:, :-1], values[:, -1:] * by], dim=1)

    return change


def replace(neurons: Tensor, values: Tensor, *, last_only: bool = False) -> Change:
    """The change that sets `neurons` [chosen] to `values`, which broadcast to [window, position, chosen]."""

    def change(found: Tensor) -> Tensor:
        changed = found.clone()
        where = changed[:, -1:] if last_only else changed
        where[..., neurons.to(found.device)] = values.to(found)
        return changed

    return change


def factors(n_neurons: int, neurons: Sequence[int], factor: float) -> Tensor:
    """`factor` at `neurons` and 1 elsewhere, for `scale`; shape [neuron]."""
    made = torch.ones(n_neurons)
    made[torch.as_tensor(neurons, dtype=torch.int64)] = factor
    return made


@contextmanager
def intervened(model: LoadedModel, changes: Mapping[int, Change]) -> Iterator[None]:
    """While open, every pass of `model.model` goes through `changes`, layer → change; gradients flow through them.

    Passes are counted by calls of the whole model: call `model.model(…)`, `generate` included, not its parts. Raises
    `InvalidInputError` for layers that the model does not have, and for routed experts, whose activations no module is handed.
    """
    changed = [place for place in places_of(model, list(changes))] if changes else []
    by_owner: dict[str, dict[int, Place]] = {}
    for place in changed:
        by_owner.setdefault(place.owner, {})[place.run] = place
    n_windows = 1

    def hook_of(places: dict[int, Place]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if run not in places:
                return None
            place = places[run]
            name = None if args else next(iter(kwargs))
            values = args[0] if name is None else kwargs[name]
            if values.shape[-1] != place.neurons:
                raise InvalidInputError(
                    f"expected {place.neurons} neurons in layer {place.layer} of {model.spec.name},"
                    f" found {values.shape[-1]} values"
                )
            after = changes[place.layer](values.reshape(n_windows, -1, place.neurons)).reshape(values.shape)
            return ((after, *args[1:]), kwargs) if name is None else (args, kwargs | {name: after})

        return hook

    with hooked(model.model, {owner: hook_of(places) for owner, places in by_owner.items()}) as runs:

        def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal n_windows
            runs.clear()
            read = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() >= 2), None)
            n_windows = 1 if read is None else len(read)

        handle = model.model.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

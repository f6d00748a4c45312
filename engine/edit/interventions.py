"""Interventions carried out: forward passes of a model in which the operations of a specification happen.

`intervening(model, operations)` is open around passes, `generate` with a cache included. Weights are never changed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.contributions.next_tokens import Place, find_slot
from actstore.engine.edit.operations import OPERATIONS, Target
from actstore.engine.edit.passes import Passes
from actstore.engine.edit.specification import Specification, check_neurons
from actstore.engine.models.intervene import intervened
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.specification import Operation
    from actstore.engine.models.intervene import Change
    from actstore.engine.models.load import LoadedModel
    from actstore.store.reader import Capture, Store


@contextmanager
def intervening(
    model: LoadedModel,
    specification: Specification | Sequence[Operation],
    *,
    store: Store | None = None,
    n_prompt: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """While open, every pass of `model.model`, `generate` included, runs with the operations.

    Positions are counted across passes: with a cache a pass reads one more token, without one the whole text again. The prompt
    is what the first pass over a text reads, or `n_prompt` tokens (one number, or one per window) where a single pass reads an
    answer too. `store` holds the capture that a patch takes its values from. Noise is the same wherever a text is read again
    in the same row.

    Raises `InvalidInputError` for neurons that the model does not have, for routed experts, and for a patch without a store;
    a pass that does not say where in its text it begins raises `ModelError`, unless every operation is at all positions.
    """
    operations = tuple(specification.operations if isinstance(specification, Specification) else specification)
    widths = {spec.layer: spec.neurons for spec in model.spec.layers}
    for operation in operations:
        check_neurons(operation.by_layer(), widths, model.spec.name)
    passes = Passes(n_prompt, _image_token(model))
    image_layers = {spec.layer for spec in model.spec.layers if spec.stack in ("vision", "projector")}
    steps: dict[int, list[_Step]] = {}
    for operation in operations:
        sources = _read_sources(operation, store)
        for layer, neurons in operation.by_layer().items():
            if layer in image_layers and operation.positions not in ("all", "image"):
                raise InvalidInputError(
                    f"Layer {layer} of {model.spec.name} reads an image, which has no position {operation.positions!r}. "
                    "Intervene at all positions."
                )
            target = Target(layer, passes, sources.get(layer))
            steps.setdefault(layer, []).append(_Step(operation, neurons, target, everywhere=layer in image_layers))
    handle = model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: passes.begin(args, kwargs), with_kwargs=True
    )
    try:
        with intervened(model, {layer: _change(steps[layer]) for layer in sorted(steps)}):
            yield
    finally:
        handle.remove()


def _image_token(model: LoadedModel) -> int | None:
    config = model.model.config
    for name in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, name, None), int):
            return token
    return None


@dataclass(frozen=True, eq=False)
class _Step:
    """One operation in one layer."""

    operation: Operation
    neurons: list[int]
    target: Target
    everywhere: bool
    """Whether the layer's rows are those of an image, all of which are meant."""


def _change(steps: Sequence[_Step]) -> Change:
    """What a hook does to the activations [window, position, neuron] of a layer."""

    def change(activations: Tensor) -> Tensor:
        changed = activations.clone()
        rows = (activations.shape[0], activations.shape[1])
        for step in steps:
            operation, passes = step.operation, step.target.passes
            indices = torch.tensor(step.neurons, device=activations.device)
            where = (
                torch.ones(rows, dtype=torch.bool) if step.everywhere else passes.selected(operation.positions, rows)
            )
            old = changed[..., indices]
            new = OPERATIONS[operation.kind].apply(operation, step.target, old)
            changed[..., indices] = torch.where(where.to(activations.device)[..., None], new, old)
        return changed

    return change


def _read_sources(operation: Operation, store: Store | None) -> dict[int, NDArray[np.float32]]:
    """Layer → the values that a patch puts in place, read from its capture; nothing for other operations.

    [neuron] for all positions, or [position, neuron] with NaN where the capture has no value.
    """
    if not OPERATIONS[operation.kind].reads_capture:
        return {}
    assert operation.source is not None
    if store is None:
        raise InvalidInputError("A patch takes activations from a capture. Pass the `store` that holds it.")
    capture = store.capture(operation.capture)
    sources: dict[int, NDArray[np.float32]] = {}
    if ":" in operation.source:
        slot = find_slot(capture, Place.parse(operation.source))
        for layer, neurons in operation.by_layer().items():
            sources[layer] = capture.block_values(layer, slot.block)[neurons, slot.offset]
            _check_finite(capture, layer, neurons, sources[layer])
        return sources
    if not operation.source.isdigit():
        raise InvalidInputError(
            f"A patch's source is a document such as 3 or a position 3:17, found {operation.source!r}."
        )
    windows = [row for row in capture.windows().to_pylist() if row["document"] == int(operation.source)]
    if len(windows) != 1:
        raise NotFoundError(
            f"Expected document {operation.source} of capture {capture.record.name!r} in one window, found {len(windows)}."
        )
    window = windows[0]
    first = window["slot_start"] - window["block"] * capture.record.plan.block_slots
    slots = slice(first, first + window["n_slots"])
    position = capture.block_plan(window["block"]).position[slots]
    for layer, neurons in operation.by_layer().items():
        values = np.full((window["n_inputs"], len(neurons)), np.nan, np.float32)
        values[position] = capture.block_values(layer, window["block"])[neurons, slots].T
        _check_finite(capture, layer, neurons, values)
        sources[layer] = values
    return sources


def _check_finite(capture: Capture, layer: int, neurons: Sequence[int], values: NDArray[np.float32]) -> None:
    """Raise `InvalidInputError` where a patch would put an infinite activation [..., neuron] into the model."""
    infinite = np.isinf(values).reshape(-1, len(neurons)).any(axis=0)
    if not infinite.any():
        return
    neuron = neurons[int(np.argmax(infinite))]
    reason = "the model's own was infinite there"
    if capture.has_overflow(layer)[neuron]:
        reason = 'it exceeds 65,504, the largest float16: capture with `precision="exact"`'
    raise InvalidInputError(
        f"The patch takes an infinite activation of L{layer}.N{neuron} from capture {capture.record.name!r}, because {reason}."
    )

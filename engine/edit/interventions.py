"""Interventions carried out: passes of a model in which the operations of a specification happen.

`intervening(model, operations)` is open around passes, `generate` with a cache included. Knows nothing about why, nor about
weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.contributions.next_tokens import Place, find_slot
from actstore.engine.edit.passes import Passes
from actstore.engine.edit.specification import Specification, check_neurons
from actstore.engine.models.intervene import intervened
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neurons import neuron_name

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

    Positions are counted across passes: with a cache a token a pass, without one the text anew. The prompt is what the first
    pass over a text reads, or `n_prompt` tokens (one number, or one a window) where a single pass reads an answer too. `store`
    holds the capture that a patch takes its values from. Noise is the same wherever a text is read again in the same row.

    Raises `InvalidInputError` for neurons that the model does not have, for routed experts, and for a patch without a store;
    a pass that does not say where in its text it stands raises `ModelError`, unless every operation is at all positions.
    """
    operations = tuple(specification.operations if isinstance(specification, Specification) else specification)
    widths = {spec.layer: spec.neurons for spec in model.spec.layers}
    for operation in operations:
        check_neurons(operation.by_layer(), widths, model.spec.name)
    passes = Passes(n_prompt, _image_token(model))
    towers = {spec.layer for spec in model.spec.layers if spec.stack in ("vision", "projector")}
    prepared = [(_prepare(operation, store), operation) for operation in operations]
    changes: dict[int, Change] = {}
    for layer in sorted({layer for operation in operations for layer in operation.by_layer()}):
        steps = [(o, o.by_layer()[layer], p.get(layer)) for p, o in prepared if layer in o.by_layer()]
        for operation, _, _ in steps:
            if layer in towers and operation.positions not in ("all", "image"):
                raise InvalidInputError(
                    f"Layer {layer} of {model.spec.name} reads an image, which has no position {operation.positions!r}: "
                    "intervene at all."
                )
        changes[layer] = _change(layer, steps, passes, everywhere=layer in towers)
    handle = model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: passes.begin(args, kwargs), with_kwargs=True
    )
    try:
        with intervened(model, changes):
            yield
    finally:
        handle.remove()


def _image_token(model: LoadedModel) -> int | None:
    config = model.model.config
    for name in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, name, None), int):
            return token
    return None


Prepared = dict[int, "NDArray[np.float32]"]
"""Layer → values of a patch: [chosen] for all positions, or [position, chosen]."""


def _change(
    layer: int,
    steps: list[tuple[Operation, list[int], NDArray[np.float32] | None]],
    passes: Passes,
    *,
    everywhere: bool,
) -> Change:
    def change(found: Tensor) -> Tensor:
        changed = found.clone()
        for operation, neurons, values in steps:
            indices = torch.tensor(neurons, device=found.device)
            rows = (found.shape[0], found.shape[1])
            where = torch.ones(rows, dtype=torch.bool) if everywhere else passes.chosen(operation.positions, rows)
            old = changed[..., indices]
            new = _applied(operation, layer, old, values, passes)
            changed[..., indices] = torch.where(where.to(found.device)[..., None], new, old)
        return changed

    return change


def _applied(
    operation: Operation, layer: int, old: Tensor, values: NDArray[np.float32] | None, passes: Passes
) -> Tensor:
    """The activations [window, position, chosen] as the operation makes them, wherever they lie."""
    if operation.kind == "suppress":
        return torch.zeros_like(old)
    if operation.kind == "boost":
        return old * operation.factor
    if operation.kind == "set":
        return torch.full_like(old, operation.value)
    if operation.kind == "noise":
        return old + operation.sigma * _noise(operation.seed, layer, passes, old)
    assert values is not None
    donor = torch.from_numpy(values).to(old)
    if donor.dim() == 1:
        return donor.expand_as(old)
    position = passes.present().position.to(old.device)
    there = (position >= 0) & (position < len(donor))
    taken = donor[position.clamp(0, max(0, len(donor) - 1))]
    there = (
        there[..., None] & ~taken.isnan()
    )  # positions that the donor did not read, or did not keep, stay as they are
    return torch.where(there, taken, old)


def _noise(seed: int, layer: int, passes: Passes, like: Tensor) -> Tensor:
    """Standard normal numbers that depend on seed, layer, window's row and position only."""
    n_windows, n_positions, n = like.shape
    now = passes.present()
    regular = now.position.shape == (n_windows, n_positions)
    numbers = np.empty((n_windows, n_positions, n), np.float32)
    for window in range(n_windows):
        for place in range(n_positions):
            position = int(now.position[window, place]) if regular else place
            key = np.random.default_rng([seed, layer, window, position & 0xFFFFFFFF])
            numbers[window, place] = key.standard_normal(n, np.float32)
    return torch.from_numpy(numbers).to(like)


def _prepare(operation: Operation, store: Store | None) -> Prepared:
    """What a patch puts in place, read from its capture; nothing for the others."""
    if operation.kind != "patch":
        return {}
    assert operation.source is not None
    if store is None:
        raise InvalidInputError("A patch takes activations from a capture: name the store that holds it.")
    capture = store.capture(operation.capture)
    found: Prepared = {}
    if ":" in operation.source:
        slot = find_slot(capture, Place.parse(operation.source))
        for layer, neurons in operation.by_layer().items():
            found[layer] = capture.block_values(layer, slot.block)[neurons, slot.offset]
            _check_finite(capture, layer, neurons, found[layer])
        return found
    if not operation.source.isdigit():
        raise InvalidInputError(
            f"A patch's source is a document such as 3 or a place 3:17, found {operation.source!r}."
        )
    windows = capture.windows().to_pylist()
    mine = [window for window in windows if window["document"] == int(operation.source)]
    if len(mine) != 1:
        raise NotFoundError(
            f"Expected document {operation.source} of capture {capture.record.name!r} in one window, found {len(mine)}."
        )
    window = mine[0]
    first = window["slot_start"] - window["block"] * capture.record.plan.block_slots
    slots = slice(first, first + window["n_slots"])
    position = capture.block_plan(window["block"]).position[slots]
    for layer, neurons in operation.by_layer().items():
        values = np.full((window["n_inputs"], len(neurons)), np.nan, np.float32)
        values[position] = capture.block_values(layer, window["block"])[neurons, slots].T
        _check_finite(capture, layer, neurons, values)
        found[layer] = values
    return found


def _check_finite(capture: Capture, layer: int, neurons: Sequence[int], values: NDArray[np.float32]) -> None:
    """Raise `InvalidInputError` where a patch would put an infinite activation [..., neuron] into the model."""
    infinite = np.isinf(values).reshape(-1, len(neurons)).any(axis=0)
    if not infinite.any():
        return
    name = neuron_name(layer, int(neurons[int(np.argmax(infinite))]))
    why = "the model's own was infinite there"
    if capture.has_overflow(layer)[neurons[int(np.argmax(infinite))]]:
        why = "it lies beyond 65,504, the largest float16: capture with --precision exact"
    raise InvalidInputError(
        f"The patch takes an infinite activation of {name} from capture {capture.record.name!r}, for {why}."
    )

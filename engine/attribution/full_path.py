"""The full path: integrated gradients by running the whole sequence for every (layer, step) row.

The reference, and what is left where keys and values cannot be kept: bidirectional models, positions before the last, attention
of a kind the cached path does not know. Rows of one layer are windows of one batch, as in the published codes, but the
unembedding is applied at one position only. A row that ends at ā must give the probability of the clean pass, or windows are
run one by one: XLNet's layers have positions before windows. Knows nothing about caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore.engine.models import families
from actstore.engine.models.patching import (
    Place,
    Sums,
    at_position,
    head_hook,
    hooked,
    log_probability,
    split_rows,
    tolerance,
)
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Hook


class FullPath:
    """The passes of one prompt."""

    def __init__(self, model: LoadedModel, ids: Tensor, position: int, target: int) -> None:
        self._model, self._ids, self._position, self._target = model, ids, position, target

    def sums(self, places: Sequence[Place], n_steps: int, max_rows: int) -> Sums:
        """P, ā and the summed gradients of every place; a pass holds at most `max_rows` tokens, or one window."""
        seen: dict[int, Tensor] = {}
        with torch.no_grad():
            log_p = self._run(1, {place: self._reading(place, seen) for place in places})
        if missing := [place.layer for place in places if place.layer not in seen]:
            raise InvalidInputError(
                f"expected layers that run on token ids alone, and layers {missing} of {self._model.spec.name} do not"
                " run; leave them out"
            )
        for n_windows in sorted({max(1, max_rows // self._ids.shape[1]), 1}, reverse=True):
            sums = Sums(float(log_p.exp()), seen, {}, {})
            if all(self._add(sums, place, n_steps, n_windows, float(log_p)) for place in places):
                return sums
        raise ModelError(
            f"expected {self._model.spec.name} to predict the same when its own activations are put back, and it does not;"
            " its passes are random, or its positions are not its tokens"
        )

    def _add(self, sums: Sums, place: Place, n_steps: int, n_windows: int, clean: float) -> bool:
        """Add a place's rows, so many windows at a time; False where a row that ends at ā is not as the clean pass."""
        for (rows,) in split_rows([place], n_steps, n_windows):
            leaf = rows.scaled(sums.activations[place.layer])
            log_p = self._run(len(rows), {place: self._writing(leaf)})
            if not log_p.requires_grad:
                raise ModelError(
                    f"expected gradients from the logits of {self._model.spec.name} to layer {place.layer}, and it runs"
                    " that layer without them; leave the layer out"
                )
            sums.add([rows], [leaf], log_p)
            difference = abs(float(log_p[-1].detach()) - clean) if rows.ends else 0.0
            if not difference <= tolerance(self._model.dtype) * max(10.0, abs(clean)):
                return False
        return True

    def _run(self, n_windows: int, at: Mapping[Place, Any]) -> Tensor:
        """The log probability of the target in every window [window] of a pass with `at[place]` called on its input."""
        model, n_positions = self._model, self._ids.shape[1]
        hooks = {**head_hook(model, self._position, n_positions), **_by_module(at)}
        arguments = families.arguments_for(model.model, self._ids.expand(n_windows, -1), None)
        if hasattr(model.model.config, "use_cache"):  # also where a head hands the argument on without naming it
            arguments["use_cache"] = False
        with hooked(model.model, hooks):
            logits = getattr(model.model(**arguments), "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"expected a model with a language-model head, and {model.spec.name} ({type(model.model).__name__}) gives no"
                " logits; load it as the class it was trained as"
            )
        return log_probability(self._at_position(logits, n_windows), self._target)

    def _at_position(self, values: Tensor, n_windows: int) -> Tensor:
        return at_position(values, n_windows, self._position, self._ids.shape[1], self._model.spec.model_type)

    def _reading(self, place: Place, seen: dict[int, Tensor]) -> Any:
        def read(values: Tensor) -> Tensor:
            seen[place.layer] = self._at_position(values, 1)[0].clone()
            return values

        return read

    def _writing(self, leaf: Tensor) -> Any:
        def write(values: Tensor) -> Tensor:
            patched = values.clone()
            self._at_position(patched, len(leaf)).copy_(leaf)
            return patched

        return write


def _by_module(at: Mapping[Place, Any]) -> dict[str, Hook]:
    """One hook for every module, though several places may be runs of the same."""
    by_run: dict[str, dict[int, Any]] = {}
    for place, change in at.items():
        by_run.setdefault(place.owner, {})[place.run] = change

    def hook_for(changes: dict[int, Any]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((changes[run](args[0]), *args[1:]), kwargs) if run in changes else None

        return hook

    return {path: hook_for(changes) for path, changes in by_run.items()}

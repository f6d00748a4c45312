"""The full path: integrated gradients by running the whole sequence for every (layer, step) row.

The reference, and the only way where keys and values cannot be cached: bidirectional models, positions before the last, the
activations of a whole sequence, queries and keys as sites, other kinds of attention than the cached path knows. Rows of one
layer are windows of one batch, as in the published codes, but the unembedding is applied at one position only. A row that ends
at ā must give the probability of the clean pass, or windows run one by one: XLNet's layers have positions before windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from torch import Tensor

from actstore.engine.models import families
from actstore.engine.models.patching import (
    PatchPoint,
    Sums,
    at_position,
    head_hook,
    hooked,
    log_probability,
    of_sequence,
    returning,
    split_rows,
    tolerance,
)
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Arguments, Hook

    Edit = Callable[[Tensor], Tensor]  # activations as a module is called with them → those it is to be called with

Path = Literal["auto", "cached", "full"]
PATHS: Final[tuple[Path, ...]] = get_args(Path)
"""How passes run: on the cached path where it holds, only there, or over the full sequence."""


class FullPath:
    """The passes of one prompt."""

    def __init__(
        self, model: LoadedModel, ids: Tensor, position: int, target: int, *, whole_sequence: bool = False
    ) -> None:
        """P of the target at the position; what is scaled are activations there, or at all positions [position, neuron]."""
        self._model, self._ids, self._position, self._target = model, ids, position, target
        self._whole_sequence = whole_sequence

    def sums(self, places: Sequence[PatchPoint], n_steps: int, max_rows: int) -> Sums:
        """P, ā and the summed gradients of every place; a pass has at most `max_rows` tokens, or one window."""
        activations: dict[int, Tensor] = {}
        with torch.no_grad():
            log_p = self._run(1, {place: self._reading(place, activations) for place in places})
        if missing := [place.layer for place in places if place.layer not in activations]:
            raise InvalidInputError(
                f"Layers {missing} of {self._model.spec.name} do not run on token ids alone. Leave them out of `layers`."
            )
        for n_windows in sorted({max(1, max_rows // self._ids.shape[1]), 1}, reverse=True):
            sums = Sums(float(log_p.exp()), activations, {}, {})
            if all(self._add(sums, place, n_steps, n_windows, float(log_p)) for place in places):
                return sums
        raise ModelError(
            f"{self._model.spec.name} does not predict the same when its own activations are put back: its passes are "
            "random, or its positions are not its tokens. Name a deterministic model with one position per token."
        )

    def _add(self, sums: Sums, place: PatchPoint, n_steps: int, n_windows: int, clean: float) -> bool:
        """Add a place's rows, `n_windows` at a time; False where a row that ends at ā differs from the clean pass."""
        for (rows,) in split_rows([place], n_steps, n_windows):
            leaf = rows.scaled(sums.activations[place.layer])
            log_p = self._run(len(rows), {place: self._writing(place, leaf)})
            if not log_p.requires_grad:
                raise ModelError(
                    f"No gradients reach layer {place.layer} from the logits of {self._model.spec.name}, which runs that layer "
                    "without them. Leave the layer out of `layers`."
                )
            sums.add([rows], [leaf], log_p)
            difference = abs(float(log_p[-1].detach()) - clean) if rows.ends else 0.0
            if not difference <= tolerance(self._model.dtype) * max(10.0, abs(clean)):
                return False
        return True

    def _run(self, n_windows: int, edits: Mapping[PatchPoint, Edit]) -> Tensor:
        """The log probability of the target [window] in a pass with `edits[place]` applied to the input of each place."""
        model, n_positions = self._model, self._ids.shape[1]
        hooks = {**head_hook(model, self._position, n_positions), **_by_module(edits)}
        returned: dict[str, dict[int, Edit]] = {}
        for place, edit in edits.items():
            if place.side == "output":
                returned.setdefault(place.owner, {})[place.run] = edit
        arguments = families.arguments_for(model.model, self._ids.expand(n_windows, -1), None)
        if hasattr(model.model.config, "use_cache"):  # also where a head passes the argument on without naming it
            arguments["use_cache"] = False
        with hooked(model.model, hooks), returning(model.model, returned):
            logits = getattr(model.model(**arguments), "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"{model.spec.name} ({type(model.model).__name__}) returns no logits: expected a model with a language-model "
                "head. Load it as the class it was trained as."
            )
        return log_probability(self._at_position(logits, n_windows), self._target)

    def _at_position(self, values: Tensor, n_windows: int) -> Tensor:
        return at_position(values, n_windows, self._position, self._ids.shape[1], self._model.spec.model_type)

    def _scaled(self, values: Tensor, n_windows: int) -> Tensor:
        """The rows [window, …] whose activations are scaled."""
        if not self._whole_sequence:
            return self._at_position(values, n_windows)
        return of_sequence(values, n_windows, self._ids.shape[1], self._model.spec.model_type)

    def _reading(self, place: PatchPoint, activations: dict[int, Tensor]) -> Edit:
        def read(values: Tensor) -> Tensor:
            activations[place.layer] = place.take(self._scaled(values, 1)[0]).clone()
            return values

        return read

    def _writing(self, place: PatchPoint, leaf: Tensor) -> Edit:
        def write(values: Tensor) -> Tensor:
            patched = values.clone()
            place.put(self._scaled(patched, len(leaf)), leaf)
            return patched

        return write


def _by_module(edits: Mapping[PatchPoint, Edit]) -> dict[str, Hook]:
    """One hook per module that is called with activations, of which several places may be runs."""
    by_run: dict[str, dict[int, Edit]] = {}
    for place, edit in edits.items():
        if place.side == "input":
            by_run.setdefault(place.owner, {})[place.run] = edit

    def hook_for(edits_by_run: dict[int, Edit]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            return ((edits_by_run[run](args[0]), *args[1:]), kwargs) if run in edits_by_run else None

        return hook

    return {path: hook_for(of_module) for path, of_module in by_run.items()}

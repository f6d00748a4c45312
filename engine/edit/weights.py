"""Edits of weights: rows of write vectors replaced in a loaded model, and put back bit for bit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from actstore.engine.edit.specification import check_neurons
from actstore.engine.models.fingerprint import fingerprint_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.edits import Edit

Side = Literal["before", "after"]


def rows_of(model: LoadedModel, neurons: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
    """Layer → a copy of the write vectors of some neurons [neuron, d_model]."""
    return {layer: model.write_vectors(layer)[list(indices)].clone() for layer, indices in neurons.items()}


def check_editable(model: LoadedModel, neurons: Mapping[int, Sequence[int]]) -> None:
    """Raise `InvalidInputError` for neurons whose write vectors cannot be replaced alone.

    That is, that do not exist, are quantised, or are shared with another layer or module.
    """
    spec = model.spec
    check_neurons(neurons, {layer.layer: layer.neurons for layer in spec.layers}, spec.name)
    for layer in neurons:
        source = model.layer(layer)
        weight = model.model.get_parameter(source.parameter)
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise InvalidInputError(
                f"Layer {layer} of {spec.name} ({spec.layers[layer].module}) is quantised ({str(weight.dtype)[6:]}), and rows "
                "of quantised weights cannot be replaced one by one. Edit the model before it was quantised."
            )
        names = [n for n, p in model.model.named_parameters(remove_duplicate=False) if p is weight]
        others = [
            n for n, other in enumerate(model.layers)
            if n != layer and (other.parameter, other.matrix) == (source.parameter, source.matrix)
        ]  # fmt: skip
        if others or len(names) > 1:
            shared = f"with layer {others[0]}" if others else f"as {names[1]}"
            raise InvalidInputError(
                f"The write vectors of layer {layer} of {spec.name} ({spec.layers[layer].module}) are shared {shared}: an edit "
                "of one would edit both. Use an intervention instead."
            )


class EditedModel:
    """A loaded model and the edits in it. Where rows of two edits overlap, the later one is reverted first."""

    def __init__(self, model: LoadedModel) -> None:
        """Take a model without edits. Its fingerprint is computed once, and again where an edit builds on another."""
        self.model = model
        self.applied: list[Edit] = []
        self._base: str | None = None

    def apply(self, edit: Edit) -> None:
        """Put an edit's rows in place.

        Each of several must have been made for the model as it was before all of them, or as those before left it, and the rows
        that it replaces must be those that it was made from: where two edits of one model change the same neuron, the second
        is refused. Raises `InvalidInputError` for an edit of another model, one that is in place already, and an intervention.
        """
        if edit.record.kind != "weights":
            raise InvalidInputError(
                f"Edit {edit.name!r} is an intervention, which changes no weight. Run the model in "
                "actstore.engine.edit.interventions.intervening, or make an edit of weights instead."
            )
        neurons = {rows.layer: rows.neurons for rows in edit.record.rows}
        if any(layer >= len(self.model.spec.layers) for layer in neurons):
            self._refuse(edit)
        check_editable(self.model, neurons)
        if self.has(edit):
            raise InvalidInputError(f"Edit {edit.name!r} is already applied to {self.model.spec.name}.")
        self._check_fingerprint(edit)
        self._write(edit, "before", "after", self._overlap(edit))
        self.applied.append(edit)

    def revert(self, edit: Edit | None = None) -> None:
        """Put back what was there before an edit: the last one, unless another is named.

        `InvalidInputError` where it is not in place.
        """
        if edit is None:
            if not self.applied:
                raise InvalidInputError(f"No edit is applied to {self.model.spec.name}: there is nothing to revert.")
            edit = self.applied[-1]
        later = self._overlap(edit)
        self._write(edit, "after", "before", f"; revert {later} first" if later else " or not applied")
        self.applied = [other for other in self.applied if other is not edit and other.record != edit.record]

    def has(self, edit: Edit) -> bool:
        """Whether all of an edit's rows are in place."""
        return all(
            torch.equal(self._rows(rows.layer, rows.neurons), edit.rows[rows.layer].after) for rows in edit.record.rows
        )

    def _rows(self, layer: int, neurons: Sequence[int]) -> Tensor:
        return self.model.write_vectors(layer)[list(neurons)].cpu()

    def _check_fingerprint(self, edit: Edit) -> None:
        expected = edit.record.model_fingerprint
        if self._base is None and not self.applied:
            self._base = fingerprint_of(self.model)
        if expected != self._base and (not self.applied or expected != fingerprint_of(self.model)):
            self._refuse(edit)

    def _refuse(self, edit: Edit) -> None:
        raise InvalidInputError(
            f"Edit {edit.name!r} is for another model than {self.model.spec.name}: it was made of {edit.record.model} in "
            f"{edit.record.dtype}, fingerprint {edit.record.model_fingerprint[:12]}…. Load that model in that dtype."
        )

    def _overlap(self, edit: Edit) -> str:
        """The names of applied edits that change some of the same rows."""
        neurons = {(rows.layer, n) for rows in edit.record.rows for n in rows.neurons}
        return ", ".join(
            repr(other.name)
            for other in self.applied
            if other.record != edit.record and neurons & {(r.layer, n) for r in other.record.rows for n in r.neurons}
        )

    @torch.no_grad()
    def _write(self, edit: Edit, old: Side, new: Side, overlap: str) -> None:
        """Replace rows that are `old` by `new`; nothing is written unless all rows are what they should be.

        `overlap` is for the message: what may have changed them.
        """
        for rows in edit.record.rows:
            pair = edit.rows[rows.layer]
            if pair.before.dtype != self.model.write_vectors(rows.layer).dtype:
                self._refuse(edit)
            if not torch.equal(self._rows(rows.layer, rows.neurons), getattr(pair, old)):
                if old == "after":
                    reason = f"the edit is not in the model, or another has changed them since{overlap}"
                elif overlap:
                    reason = f"edit {overlap} changed some of the same neurons"
                else:
                    reason = "something else changed them"
                raise InvalidInputError(
                    f"Expected the write vectors in layer {rows.layer} that edit {edit.name!r} "
                    f"{'was made from' if old == 'before' else 'put there'}, found others in {self.model.spec.name}: {reason}."
                )
        for rows in edit.record.rows:
            vectors = self.model.write_vectors(rows.layer)
            vectors[list(rows.neurons)] = getattr(edit.rows[rows.layer], new).to(vectors.device)


@contextmanager
def edited(model: LoadedModel, *edits: Edit) -> Iterator[EditedModel]:
    """While open, the model has the edits, applied in order; afterwards every byte is what it was."""
    edited_model = EditedModel(model)
    try:
        for edit in edits:
            edited_model.apply(edit)
        yield edited_model
    finally:
        while edited_model.applied:
            edited_model.revert()

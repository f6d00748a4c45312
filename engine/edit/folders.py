"""Edits in a Hugging Face folder: the changed rows are written into a copy of its safetensors files, all other bytes stay.

The copy is an ordinary model folder that plain transformers loads. Reverting writes the old rows, so that a file is again what
it was, byte for byte.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from actstore.engine.edit.files.journal import Change, is_interrupted, own_folder, recover, replace_files
from actstore.engine.edit.files.model_copy import clear_copies, write_copy
from actstore.engine.edit.files.safetensors_rows import (
    DTYPES,
    RowPatch,
    TensorEntry,
    matching_suffix,
    read_entries,
    read_patched_rows,
    same_bits,
    write_patches,
)
from actstore.engine.edit.weights import EditedModel
from actstore.engine.models.load import load_model
from actstore.store.edits import Edit, RowPair, read_edit
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_folder
from actstore.store.files.shards import checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.edits import EditedRows
    from actstore.store.storage.folder import Folder

logger: Final = logging.getLogger("actstore")


class EditAddress(NamedTuple):
    """An edit by the store that holds it and its name there."""

    store: str | Path | Folder
    name: str


@dataclass(frozen=True, eq=False)
class FolderRequest:
    """Which edits are written into, or taken out of, which model folder."""

    model: str | Path
    """The model's folder, or a Hub id that was downloaded."""
    edits: Sequence[Edit | EditAddress]
    """In the order in which they are, or were, applied."""
    output: str | Path | None = None
    """The folder that is written; None: the model's own."""
    force: bool = False
    """Whether a model folder at `output` is replaced."""
    trust_remote_code: bool = False


def apply_to_folder(request: FolderRequest) -> Path:
    """Write a copy of a model's folder with the edits in it, in order; without `output`, into the folder itself.

    The folder appears whole or not at all. Raises `InvalidInputError` as `EditedModel.apply` does, where `output` exists and
    not `force`, and where the files do not hold the rows as the edits have them.
    """
    return _rewrite(request, _read_edits(request), EditedModel.apply, is_revert=False)


def revert_in_folder(request: FolderRequest) -> Path:
    """Write a copy of a model's folder without the edits that are in it, the last taken out first; as `apply_to_folder`."""
    return _rewrite(request, _read_edits(request)[::-1], EditedModel.revert, is_revert=True)


def _read_edits(request: FolderRequest) -> list[Edit]:
    return [edit if isinstance(edit, Edit) else read_edit(edit.store, edit.name) for edit in request.edits]


def _rewrite(
    request: FolderRequest, edits: Sequence[Edit], change: Callable[[EditedModel, Edit], None], *, is_revert: bool
) -> Path:
    folder = model_folder(str(request.model))
    if not edits:
        raise InvalidInputError("Expected at least one edit, found none.")
    what = _change_of(edits, is_revert=is_revert)
    if request.output is None:
        with own_folder(folder):
            if not _is_finished(folder, what):
                patches = _make_patches(request, folder, edits, change, is_revert=is_revert)
                names = sorted({patch.entry.file for patch in patches})
                replace_files(folder, what, partial(write_patches, patches=patches), names)
        return folder
    target = output_folder(request.output)
    clear_copies(target)
    _check_target(target, folder, force=request.force)
    if is_interrupted(folder):
        with own_folder(folder):
            _is_finished(folder, what)
    with own_folder(folder, shared=True):
        patches = _make_patches(request, folder, edits, change, is_revert=is_revert)
        write_copy(folder, target, partial(write_patches, patches=patches))
    return target


def _change_of(edits: Sequence[Edit], *, is_revert: bool) -> Change:
    records = json.dumps([edit.record.to_json() for edit in edits], sort_keys=True)
    verb = "reverted" if is_revert else "applied"
    return Change(verb, tuple(edit.name for edit in edits), checksum(records.encode()))


def _is_finished(folder: Path, what: Change) -> bool:
    """Finish or undo an interrupted change, and say so; whether it was `what`, and is done now."""
    recovery = recover(folder)
    if recovery is None:
        return False
    logger.warning("%s", recovery)
    return recovery.is_finished and recovery.change is not None and recovery.change.is_like(what)


def _make_patches(
    request: FolderRequest,
    folder: Path,
    edits: Sequence[Edit],
    change: Callable[[EditedModel, Edit], None],
    *,
    is_revert: bool,
) -> list[RowPatch]:
    """What is written into the files of a model's folder."""
    dtypes = {edit.record.dtype for edit in edits}
    if len(dtypes) > 1:
        raise InvalidInputError(
            f"Edits of one model have one dtype, found {', '.join(sorted(dtypes))}. Apply them one after another."
        )
    loaded = load_model(str(folder), dtype=dtypes.pop(), device="cpu", trust_remote_code=request.trust_remote_code)
    # Applied in memory too, which checks fingerprints, overlaps and shared weights before anything is written.
    edited_model = EditedModel(loaded)
    files = _ModelFiles(folder, loaded)
    patches = []
    for edit in map(files.rounded, edits):
        change(edited_model, edit)
        patches += [files.patch(edit, rows, is_revert=is_revert) for rows in edit.record.rows]
    return patches


def _check_target(target: Path, folder: Path, *, force: bool) -> None:
    """Raise `InvalidInputError` where a folder exists and may not be replaced."""
    if not target.exists():
        return
    if not force:
        raise InvalidInputError(f"{target} already exists. Choose another `output`, or replace it with `force=True`.")
    contains_model = target.resolve() in (folder.resolve(), *folder.resolve().parents)
    if contains_model or not (target / "config.json").is_file():
        raise InvalidInputError(f"{target} is not a model folder that may be replaced. Choose another `output`.")


def model_folder(model: str) -> Path:
    """The folder of a model: the path itself, or where the Hub's cache has an id; `InvalidInputError` where there is none."""
    path = Path(model)
    if not path.is_dir():
        from transformers.utils.hub import cached_file

        try:
            config = cached_file(model, "config.json")
        except OSError:
            config = None
        if config is None:
            raise InvalidInputError(f"Expected a model folder or a Hub id that was downloaded, found {model!r}.")
        path = Path(config).parent
    if not any(path.glob("*.safetensors")):
        raise InvalidInputError(
            f"{path} holds no *.safetensors file, in which edits are written. Save the model in that format first."
        )
    return path


class _ModelFiles:
    """The safetensors files of a model's folder, and the rows in them that edits change."""

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        self._folder, self._model = folder, model
        self._entries = [entry for file in sorted(folder.glob("*.safetensors")) for entry in read_entries(file)]
        self._written: dict[tuple[str, str, int], Tensor] = {}
        """(file, tensor, neuron) → the row that an earlier edit puts there: what a later one finds."""

    def rounded(self, edit: Edit) -> Edit:
        """An edit as the files can hold it: for a checkpoint in half precision, an edit in float32 is rounded."""
        pairs = {}
        for layer, (before, after) in edit.rows.items():
            if layer >= len(self._model.spec.layers):
                continue  # of another model, which `EditedModel` refuses
            parameter, shape = self._parameter(layer)
            entries = [entry for entry in self._entries if entry.shape == shape]
            closest = max(entries, key=lambda entry: matching_suffix(entry.key, parameter), default=None)
            dtype = after.dtype if closest is None else DTYPES.get(closest.dtype, after.dtype)
            pairs[layer] = RowPair(before, after.to(dtype).to(after.dtype))
        return Edit(edit.record, pairs)

    def patch(self, edit: Edit, rows: EditedRows, *, is_revert: bool) -> RowPatch:
        """Which bytes of which file an edit of one layer changes.

        A tensor is recognised by its shape, and by the rows that it holds; of several such tensors, the one whose name ends
        most like the parameter's.
        """
        model = self._model
        parameter, shape = self._parameter(rows.layer)
        if model.layer(rows.layer).projection.n_matrices > 1:
            raise InvalidInputError(
                f"Layer {rows.layer} of {model.spec.name} is one of several experts in a parameter. Save the edited model "
                "with save_pretrained instead."
            )
        candidates = [
            patch
            for entry in self._entries
            if entry.shape == shape and entry.dtype in DTYPES
            if (patch := self._matching_patch(entry, edit, rows, is_revert=is_revert)) is not None
        ]
        if not candidates:
            raise InvalidInputError(
                f"Expected the rows of edit {edit.name!r} (layer {rows.layer}, {rows.module}) in a safetensors file of "
                f"{self._folder}, and no tensor of shape {list(shape)} holds them: the weights are in another form or "
                f'precision than the edit\'s {edit.record.dtype}. Capture with `dtype="auto"`, or save the model in '
                f"{edit.record.dtype} first."
            )
        patch = max(candidates, key=lambda patch: matching_suffix(patch.entry.key, parameter))
        if not bool(patch.rows.isfinite().all()):
            raise InvalidInputError(
                f"The edit {edit.name!r} would make values of {patch.entry.key} infinite in the file's "
                f"{str(patch.rows.dtype)[6:]}. Save the model in {edit.record.dtype} first."
            )
        for neuron, row in zip(rows.neurons, patch.rows, strict=True):
            self._written[patch.entry.file, patch.entry.key, neuron] = row
        return patch

    def _parameter(self, layer: int) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the parameter that holds a layer's write vectors."""
        parameter = self._model.layer(layer).parameter
        return parameter, tuple(self._model.model.get_parameter(parameter).shape)

    def _matching_patch(self, entry: TensorEntry, edit: Edit, rows: EditedRows, *, is_revert: bool) -> RowPatch | None:
        """The patch of a tensor of the file, if the tensor holds the rows that the edit replaces."""
        old, new = edit.rows[rows.layer][::-1] if is_revert else edit.rows[rows.layer]
        dtype = DTYPES[entry.dtype]
        by_column = self._model.layer(rows.layer).projection.transposed
        patch = RowPatch(entry, rows.neurons, by_column, new.to(dtype))
        present = read_patched_rows(self._folder, patch)
        for i, neuron in enumerate(rows.neurons):
            if (row := self._written.get((entry.file, entry.key, neuron))) is not None:
                present[i] = row
        is_same = same_bits(present, old.to(dtype))
        loses_nothing = is_same and bool((present.to(old.dtype) == old).all())
        return patch if loses_nothing else None

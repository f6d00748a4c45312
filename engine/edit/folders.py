"""Edits in a Hugging Face folder: the changed rows are written into a copy of its safetensors files, all other bytes stay.

The copy is an ordinary model folder that plain transformers loads. Reverting writes the old rows, so that a file is again what
it was, byte for byte. Knows the safetensors format; nothing about stores.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.edit.weights import EditedModel
from actstore.engine.models.load import load_model
from actstore.store.edits import Edit, RowPair
from actstore.store.errors import InvalidInputError
from actstore.store.storage.atomic import check_room

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.edits import EditedRows

DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
LEFT_OUT: Final = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".pkl")
"""Files that may hold the same weights in another format, unedited."""


@dataclass(frozen=True)
class Patch:
    """Rows to be written into one tensor of one file."""

    file: str
    key: str
    start: int
    """Of the tensor's data in the file, bytes."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    neurons: tuple[int, ...]
    by_column: bool
    """Whether a neuron is a column of the tensor, as in a Linear's weight [d_model, neuron]."""
    rows: Tensor


def model_folder(model: str) -> Path:
    """The folder of a model: the path itself, or where the Hub's cache keeps an id; `InvalidInputError` where there is none."""
    path = Path(model)
    if not path.is_dir():
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(model, "config.json")
        except OSError:
            found = None
        if found is None:
            raise InvalidInputError(f"Expected a model folder or a Hub id that was downloaded, found {model!r}.")
        path = Path(found).parent
    if not any(path.glob("*.safetensors")):
        raise InvalidInputError(
            f"{path} holds no *.safetensors file, in which edits are written. Save the model so first."
        )
    return path


def apply_to_folder(
    model: str,
    edits: Sequence[Edit],
    output: str | Path | None,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write a copy of a model's folder with the edits in it, in order; without `output`, into the folder itself.

    The folder appears whole or not at all. Raises `InvalidInputError` as `EditedModel.apply` does, where `output` exists and
    not `force`, and where the files do not hold the rows as the edits know them.
    """
    return _rewrite(model, edits, output, force, EditedModel.apply, "before", trust_remote_code)


def revert_in_folder(
    model: str,
    edits: Sequence[Edit],
    output: str | Path | None,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """The same for taking edits out again, the last first."""
    return _rewrite(model, tuple(reversed(edits)), output, force, EditedModel.revert, "after", trust_remote_code)


def _rewrite(
    model: str, edits: Sequence[Edit], output: str | Path | None, force: bool,
    change: Callable[[EditedModel, Edit], None], old: str, trust_remote_code: bool,
) -> Path:  # fmt: skip
    folder = model_folder(model)
    if not edits:
        raise InvalidInputError("Expected at least one edit, found none.")
    target = folder if output is None else Path(output)
    if output is not None and target.exists() and not force:
        raise InvalidInputError(f"{target} is there already. Name another --output, or replace it with --force.")
    if (
        output is not None
        and target.exists()
        and (
            target.resolve() in (folder.resolve(), *folder.resolve().parents) or not (target / "config.json").is_file()
        )
    ):
        raise InvalidInputError(f"{target} is not a model folder that may be replaced. Name another --output.")
    dtypes = {edit.record.dtype for edit in edits}
    if len(dtypes) > 1:
        raise InvalidInputError(
            f"Edits of one model are of one dtype, found {', '.join(sorted(dtypes))}: apply them apart."
        )
    loaded = load_model(str(folder), dtype=dtypes.pop(), device="cpu", trust_remote_code=trust_remote_code)
    holder = EditedModel(loaded)
    headers = {file.name: _header(file) for file in sorted(folder.glob("*.safetensors"))}
    known: dict[tuple[str, str, int], bytes] = {}
    patches = []
    for edit in (_rounded(edit, loaded, headers) for edit in edits):
        change(holder, edit)
        for rows in edit.record.rows:
            patch = _patch(folder, headers, loaded, edit, rows, old, known)
            patches.append(patch)
    if output is None:
        _write_in_place(folder, patches)
    else:
        _write_copy(folder, target, patches)
    return target


def _rounded(edit: Edit, model: LoadedModel, headers: dict[str, tuple[int, dict[str, Any]]]) -> Edit:
    """An edit as the files can hold it: of a checkpoint in half precision, an edit in float32 is rounded."""
    pairs = {}
    for layer, (before, after) in edit.rows.items():
        if layer >= len(model.spec.layers):
            continue
        found = model._find(layer)
        shape = list(model.model.get_parameter(found.parameter).shape)
        entries = [
            (key, e["dtype"]) for _, header in headers.values() for key, e in header.items() if e["shape"] == shape
        ]
        _, name = max(entries, key=lambda entry: _common_suffix(entry[0], found.parameter), default=("", ""))
        pairs[layer] = RowPair(before, after.to(DTYPES.get(name, after.dtype)).to(after.dtype))
    return Edit(edit.record, pairs)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's data begins, and what it holds."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return 8 + size, header


def _patch(
    folder: Path, headers: dict[str, tuple[int, dict[str, Any]]], model: LoadedModel, edit: Edit, rows: EditedRows,
    old: str, known: dict[tuple[str, str, int], bytes],
) -> Patch:  # fmt: skip
    """Which bytes of which file an edit of one layer changes. `known` holds neurons that an earlier patch has written."""
    found = model._find(rows.layer)
    shape = tuple(model.model.get_parameter(found.parameter).shape)
    pair = edit.rows[rows.layer]
    before, after = (pair.before, pair.after) if old == "before" else (pair.after, pair.before)
    if found.projection.n_matrices > 1:
        raise InvalidInputError(
            f"Layer {rows.layer} of {model.spec.name} is one of several experts in a parameter; save the edited model with "
            "save_pretrained instead."
        )
    held = []
    for name, (start, header) in headers.items():
        for key, entry in header.items():
            dtype = DTYPES.get(entry["dtype"])
            if tuple(entry["shape"]) != shape or dtype is None:
                continue
            at = start + entry["data_offsets"][0]
            patch = Patch(name, key, at, shape, dtype, rows.neurons, found.projection.transposed, after.to(dtype))
            there = _read(folder / name, patch)
            for place, neuron in enumerate(rows.neurons):
                if (name, key, neuron) in known:
                    there[place] = torch.frombuffer(bytearray(known[name, key, neuron]), dtype=dtype)
            if _same_bits(there, before.to(dtype)) and torch.equal(
                there.to(before.dtype), before
            ):  # and nothing is lost
                held.append(patch)
    if not held:
        raise InvalidInputError(
            f"Expected the rows of edit {edit.name!r} (layer {rows.layer}, {rows.module}) in a safetensors file of {folder}, "
            f"and no tensor of shape {list(shape)} holds them: the weights are in another form or precision than the edit's "
            f"{edit.record.dtype}. Capture with --dtype auto, or save the model in {edit.record.dtype} first."
        )
    chosen = max(held, key=lambda patch: _common_suffix(patch.key, found.parameter))
    if not bool(chosen.rows.isfinite().all()):
        raise InvalidInputError(
            f"The edit {edit.name!r} would make values of {chosen.key} infinite in the file's {str(chosen.dtype)[6:]}. "
            f"Save the model in {edit.record.dtype} first."
        )
    for neuron, row in zip(rows.neurons, chosen.rows, strict=True):
        known[chosen.file, chosen.key, neuron] = row.view(torch.uint8).numpy().tobytes()
    return chosen


def _common_suffix(one: str, other: str) -> int:
    parts = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    n = 0
    for a, b in parts:
        if a != b:
            break
        n += 1
    return n


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _view(path: Path, patch: Patch, mode: Any) -> NDArray[Any]:
    """The tensor in a file, [neuron, d_model], as unsigned integers."""
    bits = np.dtype(f"<u{patch.dtype.itemsize}")
    values: NDArray[Any] = np.memmap(path, bits, mode, patch.start, patch.shape)
    return values.T if patch.by_column else values


def _read(path: Path, patch: Patch) -> Tensor:
    rows = np.ascontiguousarray(_view(path, patch, "r")[list(patch.neurons)])
    return torch.frombuffer(bytearray(rows.tobytes()), dtype=patch.dtype).reshape(rows.shape)


def _write(folder: Path, patches: Sequence[Patch]) -> None:
    for patch in patches:
        view = _view(folder / patch.file, patch, "r+")
        bits = patch.rows.contiguous().view(torch.uint8).numpy().view(view.dtype).reshape(patch.rows.shape)
        view[list(patch.neurons)] = bits
        base = view.base if not isinstance(view, np.memmap) else view
        if isinstance(base, np.memmap):
            base.flush()


def _write_copy(folder: Path, target: Path, patches: Sequence[Patch]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    copied = [file for file in folder.rglob("*") if not _left_out("", list(file.relative_to(folder).parts))]
    check_room(target, sum(file.stat().st_size for file in copied if file.is_file()), "write elsewhere")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / target.name
        try:
            shutil.copytree(folder, made, ignore=_left_out)  # follows links, as the Hub's cache has them
        except shutil.Error as error:
            (*_, reason), *_ = error.args[0]
            raise InvalidInputError(f"{target} cannot be written: {reason}. Nothing of it is kept.") from None
        for file in made.rglob("*"):
            file.chmod(file.stat().st_mode | 0o200)
        _write(made, patches)
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        made.rename(target)


def _left_out(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith((*LEFT_OUT, ".index.json.lock")) or name in (".git", ".cache")
            or name == "pytorch_model.bin.index.json"}  # fmt: skip


def _write_in_place(folder: Path, patches: Sequence[Patch]) -> None:
    """Every changed file is copied, changed and put in its own place in one step."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".edit.") as scratch:
        made = Path(scratch)
        names = sorted({patch.file for patch in patches})
        for name in names:
            shutil.copyfile(folder / name, made / name)
        _write(made, patches)
        for name in names:
            (made / name).replace((folder / name).resolve() if (folder / name).is_symlink() else folder / name)

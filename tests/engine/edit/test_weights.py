"""Edits of weights: the same as interventions, put back bit for bit, written into folders that plain transformers loads."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import planted_stores
import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from actstore.engine.edit.folders import EditAddress, FolderRequest, apply_to_folder, revert_in_folder
from actstore.engine.edit.interventions import intervening
from actstore.engine.edit.rows import make_edit, scaled_rows
from actstore.engine.edit.specification import Operation
from actstore.engine.edit.weights import EditedModel, edited, rows_of
from actstore.engine.models.fingerprint import fingerprint_of, model_record
from actstore.engine.models.load import LoadedModel, load_model
from actstore.store.edits import Edit, RowPair, delete_edit, edit_names, read_edit, write_edit
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.model.root import write_root
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own_edit

if TYPE_CHECKING:
    from pathlib import Path

NEURONS = {0: [1, 4], 1: [3]}
NAMES = ("L0.N1", "L0.N4", "L1.N3")
GATED_PLAIN_TIED = ("llama", "gpt2", "gemma2", "opt", "gpt_neox")
"""Gated; plain with rows for rows; gated with tied embeddings; plain with biases; plain, untied."""


def tiny(model_type: str = "llama", dtype: str = "float32") -> LoadedModel:
    model = scatter_weights(AutoModelForCausalLM.from_config(tiny_config(model_type)))
    return LoadedModel(model.to(getattr(torch, dtype)))


def store_for(edit: Edit, path: Path) -> Folder:
    """A store of the model that an edit is for."""
    folder = Folder(path, read_only=False)
    write_root(folder, dataclasses.replace(planted_stores.model_record(), fingerprint=edit.record.model_fingerprint))
    return folder


def scaled(model: LoadedModel, factor: float = -1.5, neurons: Any = None, name: str = "scaled") -> Edit:
    neurons = neurons or NEURONS
    record = model_record(model, fingerprint_of(model))
    return make_edit(name, "boost", record, scaled_rows(neurons, rows_of(model, neurons), factor), settings={})


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(ids).logits
    return logits.float()


@pytest.mark.parametrize("model_type", GATED_PLAIN_TIED)
@pytest.mark.parametrize("factor", [0.0, -1.5])
def test_scaling_by_an_intervention_and_by_weights_agrees(model_type: str, factor: float) -> None:
    model, ids = tiny(model_type), random_ids()
    clean = logits_of(model.model, ids)
    kind = "boost" if factor else "suppress"
    with intervening(model, [Operation(kind, NAMES, factor=factor or 2.0)]):
        changed = logits_of(model.model, ids)
    with edited(model, scaled(model, factor)):
        torch.testing.assert_close(logits_of(model.model, ids), changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, clean, atol=1e-3)
    assert torch.equal(logits_of(model.model, ids), clean)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_apply_and_revert_restore_every_bit(dtype: str) -> None:
    model = tiny("gpt2", dtype)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    fingerprint = fingerprint_of(model)
    edited_model, edit = EditedModel(model), scaled(model)
    edited_model.apply(edit)
    assert fingerprint_of(model) != fingerprint
    with pytest.raises(InvalidInputError, match="already applied"):
        edited_model.apply(edit)
    with pytest.raises(InvalidInputError, match="already applied"):
        EditedModel(model).apply(edit)  # whoever applied it
    edited_model.revert()
    assert fingerprint_of(model) == fingerprint
    for name, value in model.model.state_dict().items():
        assert torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)), name
    with pytest.raises(InvalidInputError, match="nothing to revert"):
        edited_model.revert()


def test_only_the_edited_rows_change() -> None:
    model = tiny()
    before = copy.deepcopy(model.model.state_dict())
    with edited(model, scaled(model)):
        for name, value in model.model.state_dict().items():
            columns = (value != before[name]).any(0) if value.dim() == 2 else (value != before[name]).any()[None]
            layer = {f"model.layers.{n}.mlp.down_proj.weight": indices for n, indices in NEURONS.items()}.get(name, [])
            assert columns.nonzero().flatten().tolist() == layer, name


def test_several_edits_are_composed_in_order_and_where_they_meet_the_second_is_refused() -> None:
    model = tiny()
    first, apart, overlapping = (
        scaled(model),
        scaled(model, 2.0, {1: [5]}, "apart"),
        scaled(model, 3.0, {0: [4]}, "meeting"),
    )
    edited_model = EditedModel(model)
    edited_model.apply(first)
    edited_model.apply(apart)
    with pytest.raises(InvalidInputError, match=r"edit 'scaled' changed some of the same neurons"):
        edited_model.apply(overlapping)
    assert [edit.name for edit in edited_model.applied] == ["scaled", "apart"]
    later = scaled(model, 3.0, {0: [4]}, "later")  # made of the model as the first two left it
    edited_model.apply(later)
    with pytest.raises(InvalidInputError, match="revert 'later' first"):
        edited_model.revert(first)
    edited_model.revert(apart)
    edited_model.revert(later)
    edited_model.revert(first)
    assert fingerprint_of(model) == first.record.model_fingerprint


def test_another_model_is_refused() -> None:
    model, other = tiny(), tiny()
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(0.25)  # not among the edited rows
    with pytest.raises(InvalidInputError, match="for another model"), edited(other, scaled(model)):
        pass
    with pytest.raises(InvalidInputError, match="for another model"), edited(tiny("gpt2"), scaled(model)):
        pass
    half = LoadedModel(copy.deepcopy(model.model).half())
    with pytest.raises(InvalidInputError, match="for another model"), edited(half, scaled(model)):
        pass


def test_what_cannot_be_edited_is_refused() -> None:
    model = tiny()
    record, rows = model_record(model, fingerprint_of(model)), rows_of(model, {0: [2]})
    with pytest.raises(InvalidInputError, match=r"L0\.N2 infinite or NaN"):
        make_edit("x", "boost", record, scaled_rows({0: [2]}, rows, float("inf")))
    with pytest.raises(InvalidInputError, match="changes no bit"):
        make_edit("x", "boost", record, scaled_rows({0: [2]}, rows, 1.0))
    shared = LoadedModel(scatter_weights(AutoModelForMaskedLM.from_config(tiny_config("albert"))))
    with pytest.raises(InvalidInputError, match="shared with layer 1"), edited(shared, scaled(shared, 2.0, {0: [1]})):
        pass


def save(model: LoadedModel, folder: Path) -> Path:
    model.model.save_pretrained(folder, max_shard_size="30KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights, unedited")
    return folder


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_exported_folder_is_the_edited_model_and_reverts_byte_for_byte(
    tmp_path: Path, model_type: str, dtype: str
) -> None:
    folder = save(tiny(model_type, dtype), tmp_path / "model")
    loaded, ids = load_model(folder), random_ids()
    edit = scaled(loaded)  # of a float16 checkpoint, in float32
    out = apply_to_folder(FolderRequest(folder, [edit], tmp_path / "out"))
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    changed = {f.name for f in out.iterdir() if f.read_bytes() != files[f.name]}
    assert 0 < len(changed) <= 2
    assert all(name.endswith(".safetensors") for name in changed)
    assert files.keys() - {f.name for f in out.iterdir()} == {"pytorch_model.bin"}
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=loaded.dtype).eval()
    with intervening(loaded, [Operation("boost", NAMES, factor=-1.5)]):
        expected = logits_of(loaded.model, ids)
    tolerance = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 8e-2}[dtype]
    torch.testing.assert_close(logits_of(plain, ids), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(InvalidInputError, match="already applied"):
        apply_to_folder(FolderRequest(out, [edit], tmp_path / "again"))
    back = revert_in_folder(FolderRequest(out, [edit], tmp_path / "back"))
    assert {f.name: f.read_bytes() for f in back.iterdir()} == {
        n: b for n, b in files.items() if n != "pytorch_model.bin"
    }


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tiny(), tmp_path / "model")
    edit = scaled(load_model(folder))

    def copy(source: Path, target: Path, **_: Any) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise shutil.Error([(str(source / "model.safetensors"), str(target), "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", copy)
    with pytest.raises(InvalidInputError, match=r"out cannot be written: .*No space left.*Nothing of it is kept"):
        apply_to_folder(FolderRequest(folder, [edit], tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_in_place_apply_and_revert_touch_the_changed_files_only(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "model")
    edit = scaled(load_model(folder))
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    apply_to_folder(FolderRequest(folder, [edit]))
    changed = {f.name for f in folder.iterdir() if f.read_bytes() != files[f.name]}
    assert changed
    assert all(name.endswith(".safetensors") for name in changed)
    with pytest.raises(InvalidInputError, match="Expected the write vectors"):
        revert_in_folder(FolderRequest(folder, [scaled(load_model(folder), 5.0)]))
    write_edit(store_for(edit, tmp_path / "store"), edit)
    revert_in_folder(FolderRequest(folder, [EditAddress(tmp_path / "store", "scaled")]))
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == files


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "model")
    edit = scaled(load_model(folder))
    (tmp_path / "mine").mkdir()
    with pytest.raises(InvalidInputError, match="already exists"):
        apply_to_folder(FolderRequest(folder, [edit], tmp_path / "mine"))
    with pytest.raises(InvalidInputError, match="may be replaced"):
        apply_to_folder(FolderRequest(folder, [edit], tmp_path / "mine", force=True))
    with pytest.raises(InvalidInputError, match="may be replaced"):
        apply_to_folder(FolderRequest(folder, [edit], folder, force=True))
    out = apply_to_folder(FolderRequest(folder, [edit], tmp_path / "out"))
    other = scaled(load_model(folder), 3.0)
    apply_to_folder(FolderRequest(folder, [other], out, force=True))
    assert EditedModel(load_model(out)).has(other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "model", "out"]


def test_a_kept_edit_is_read_back_and_damage_is_seen(tmp_path: Path) -> None:
    edit = scaled(tiny(dtype="bfloat16"))
    folder = store_for(edit, tmp_path / "store")
    record = write_edit(folder, edit)
    read = read_edit(folder, "scaled")
    assert read.record == record
    for layer, pair in edit.rows.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, read.rows[layer], strict=True))
    assert read_edit(tmp_path / "store" / "edits" / "scaled").record == record
    with pytest.raises(InvalidInputError, match="already has an edit"):
        write_edit(folder, edit)
    assert edit_names(folder) == ("scaled",)
    path = tmp_path / "store" / "edits" / "scaled" / "delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        read_edit(folder, "scaled")
    with own_edit(folder, "scaled"):
        for write in (lambda: write_edit(folder, edit, replace=True), lambda: delete_edit(folder, "scaled")):
            with pytest.raises(ReadOnlyError, match=r"Edit 'scaled' of .* is being written by process \d+ "):
                write()
    delete_edit(folder, "scaled")
    assert edit_names(folder) == ()
    with pytest.raises(NotFoundError, match="Its edits are: none"):
        read_edit(folder, "scaled")
    assert isinstance(edit.rows[0], RowPair)

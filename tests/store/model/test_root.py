"""The root of a store: written once, damaged or lost rather than absent, bound to what lies beside it."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

import planted_stores
import pytest
import torch

from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.layout import LOCK_NAME
from actstore.store.model import root, root_attribute
from actstore.store.model.remains import part_of_lost_store
from actstore.store.model.weights import read_rows, read_weights, write_weights
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    planted_stores.plant(tmp_path / "store")
    return tmp_path / "store"


GROUP = '{"zarr_format": 3, "node_type": "group"}'
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[:100],
    "a list": lambda data: b"[1, 2]",
    "gone": lambda data: None,
    "a group": lambda data: GROUP.encode(),
    "no attribute": lambda data: GROUP.replace("}", ', "attributes": {}}').encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_root_that_is_damaged_or_lost_is_not_absent(path: Path, damage: str) -> None:
    file = path / "zarr.json"
    data = DAMAGE[damage](file.read_bytes())
    file.unlink() if data is None else file.write_bytes(data)
    before = {key: Folder(path).read(key) for key, _ in Folder(path).sizes()}
    for ask in (root.is_store, root.read_root, root.read_root_id, Store, verify_root):
        with pytest.raises(FormatError, match=r"root is (damaged|lost)\. Restore zarr\.json from a copy"):
            ask(Folder(path))
    if data is not None:
        with pytest.raises(FormatError):
            root.write_root(Folder(path, read_only=False), planted_stores.model_record())
    assert {key: Folder(path).read(key) for key, _ in Folder(path).sizes()} == before


@pytest.mark.parametrize(
    "rest", ["captures/corpus/blocks/0.json", "captures/corpus/neurons.parquet", "edits/a/edit.json"]
)
def test_whatever_comes_after_the_root_proves_that_there_was_one(tmp_path: Path, rest: str) -> None:
    (tmp_path / rest).parent.mkdir(parents=True)
    (tmp_path / rest).write_text("{}")
    with pytest.raises(FormatError, match=f"zarr.json is missing, and {rest} is there"):
        root.is_store(Folder(tmp_path))


def test_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "captures" / "photos").mkdir(parents=True)
    (tmp_path / "captures" / "photos" / "1.png").write_bytes(b"")
    assert not root.is_store(Folder(tmp_path))
    with pytest.raises(NotFoundError, match="There is no store at"):
        root.read_root(Folder(tmp_path))


@pytest.mark.parametrize("before", [None, GROUP])
def test_a_store_that_is_being_made_is_not_there_yet(tmp_path: Path, before: str | None) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write(f"captures/corpus/{LOCK_NAME}", b"")
    if before is not None:
        folder.write("zarr.json", before.encode())
    assert not root.is_store(folder)
    with pytest.raises(NotFoundError, match="There is no store at"):
        Store(tmp_path)


@pytest.mark.parametrize("before", [None, GROUP])
def test_a_root_that_is_written_while_it_is_looked_for_is_found(
    path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (path / "zarr.json").read_bytes()
    (path / "zarr.json").unlink() if before is None else (path / "zarr.json").write_text(before)

    def write_first(folder: Folder) -> str | None:
        (path / "zarr.json").write_bytes(data)
        return part_of_lost_store(folder)

    monkeypatch.setattr(root_attribute, "part_of_lost_store", write_first)
    assert part_of_lost_store(Folder(path)) is not None
    assert Store(path).model == planted_stores.model_record()


def test_a_root_is_written_once(path: Path) -> None:
    before = (path / "zarr.json").read_bytes()
    with pytest.raises(InvalidInputError, match="is a store already: its root is written once"):
        root.write_root(Folder(path, read_only=False), planted_stores.model_record())
    assert (path / "zarr.json").read_bytes() == before


def test_the_group_that_zarr_makes_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(GROUP)
    folder = Folder(tmp_path, read_only=False)
    assert not root.is_store(folder)
    root.write_root(folder, planted_stores.model_record())
    assert root.read_root(folder) == planted_stores.model_record()


# What lies beside the root.


@pytest.fixture
def weighted(tmp_path: Path) -> Callable[[str, float], Path]:
    """weighted(name, scale): a planted store whose weights are `scale` times those of every other."""

    def make(name: str, scale: float) -> Path:
        folder = Folder(tmp_path / name, read_only=False)
        matrices = [torch.arange(8.0 * width).reshape(width, 8) * scale for width in planted_stores.WIDTHS]
        vectors = [(layer, {"write_vectors": matrix}) for layer, matrix in enumerate(matrices)]
        parts = write_weights(folder, vectors, {"unembedding": {"weight": torch.ones(100, 8) * scale}})
        model = dataclasses.replace(planted_stores.model_record(), weights=parts)
        root.write_neurons(folder, model, {layer: matrix.norm(dim=1).numpy() for layer, matrix in enumerate(matrices)})
        planted_stores.write_vocabulary(folder, scale)
        root.write_root(folder, model)
        planted_stores.plant(tmp_path / name)
        return tmp_path / name

    return make


def test_a_part_of_another_models_weights_is_refused(weighted: Callable[[str, float], Path]) -> None:
    ours, other = Folder(weighted("ours", 1.0)), weighted("other", 2.0)
    assert verify_root(ours) == []
    expected = read_weights(ours, "layer-1")["write_vectors"]
    for part in ("layer-1", "unembedding"):
        shutil.copy(other / f"weights/{part}.safetensors", f"{ours}/weights/{part}.safetensors")
    (damage, _) = verify_root(ours)
    assert damage.key == "weights/layer-1.safetensors"
    assert damage.what.startswith("it is another file than the store was written with")
    with pytest.raises(FormatError, match=r"layer-1.safetensors is damaged: it is another file than the store"):
        read_weights(ours, "layer-1")
    with pytest.raises(FormatError, match=r"unembedding.safetensors is damaged: it is another file than the store"):
        read_rows(ours, "unembedding", "weight", [3])
    assert expected[1, 0] == 8


def test_weights_that_a_store_was_made_without_are_refused(weighted: Callable[[str, float], Path], path: Path) -> None:
    shutil.copytree(weighted("other", 2.0) / "weights", path / "weights")
    with pytest.raises(FormatError, match="the store was written without it"):
        read_weights(Folder(path), "layer-0")
    assert [damage.key for damage in verify_root(Folder(path))] == [
        f"weights/{part}.safetensors" for part in ("layer-0", "layer-1", "unembedding")
    ]


@pytest.mark.parametrize("key", ["neurons.parquet", "tokenizer/vocabulary.parquet"])
def test_a_table_of_another_store_is_refused(weighted: Callable[[str, float], Path], key: str) -> None:
    ours, other = weighted("ours", 1.0), weighted("other", 2.0)
    for replace in (lambda: shutil.copy(other / key, ours / key), (ours / key).unlink):
        replace()
        (damage,) = verify_root(Folder(ours))
        assert damage.key == key
        assert f"{key} is not what the store's root was written with" in damage.what
        store = Store(ours)
        with pytest.raises(FormatError, match=f"{key} is not what the store's root was written with"):
            store.text([3]) if "vocabulary" in key else root.read_neurons(store.folder)


def test_a_root_of_an_earlier_version_is_bound_to_nothing(weighted: Callable[[str, float], Path]) -> None:
    ours, other = weighted("ours", 1.0), weighted("other", 2.0)
    planted_stores.change_root(Folder(ours, read_only=False), files=None)
    shutil.copy(other / "weights/layer-1.safetensors", ours / "weights/layer-1.safetensors")
    assert verify_root(Folder(ours)) == []
    assert read_weights(Folder(ours), "layer-1")["write_vectors"][1, 0] == 16


def test_a_vocabulary_of_another_tokenizer_than_the_plans_is_damage(path: Path) -> None:
    folder = Folder(path, read_only=False)
    planted_stores.change_root(folder, files=None)  # as where the tokenizer came after the root
    vocabulary = Store(path).vocabulary
    folder.delete("tokenizer")
    root.write_tokenizer(folder, None, vocabulary, "u" * 64)
    (damage,) = verify_root(folder)
    assert damage.key == "tokenizer/vocabulary.parquet"
    assert damage.what == (
        "it is of another tokenizer (fingerprint uuuuuuuuuuuu…) than the one of capture 'corpus' (fingerprint tttttttttttt…)"
    )

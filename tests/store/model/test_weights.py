"""Rows of the weights are those that were written, or an error: also where only some of them are read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import planted_stores
import pytest
import torch
from safetensors.torch import save

from actstore.store.errors import FormatError
from actstore.store.files import first_use
from actstore.store.layout import weights_key
from actstore.store.model import weights
from actstore.store.model.root import write_root
from actstore.store.model.weights import count_rows, read_final_norm, read_rows, read_weights, write_weights
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

MATRIX = torch.arange(80, dtype=torch.float32).reshape(20, 4)
KEY = weights_key("unembedding")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A store with an unembedding that was written long ago."""
    folder = Folder(tmp_path, read_only=False)
    write_weights(folder, [], {"unembedding": {"weight": MATRIX}})
    write_root(folder, planted_stores.model_record())
    os.utime(tmp_path / KEY, ns=(1, 1))
    return folder


def test_some_rows_are_read_in_the_order_asked(folder: Folder) -> None:
    assert torch.equal(read_rows(folder, "unembedding", "weight", [7, 0, 7]), MATRIX[[7, 0, 7]])
    assert read_rows(folder, "unembedding", "weight", []).shape == (0, 4)
    assert count_rows(folder, "unembedding", "weight") == 20
    with pytest.raises(IndexError, match="row 20 of 20"):
        read_rows(folder, "unembedding", "weight", [20])


@pytest.mark.parametrize("at", [3, 20, 60, -320, -100, -1])
def test_a_flipped_bit_is_an_error_whatever_row_is_read(folder: Folder, at: int) -> None:
    read_rows(folder, "unembedding", "weight", [0])
    data = bytearray(folder.read(KEY))
    data[at] ^= 1
    folder.write(KEY, bytes(data))
    for read in (
        lambda: read_rows(folder, "unembedding", "weight", [0]),
        lambda: count_rows(folder, "unembedding", "weight"),
        lambda: read_weights(folder, "unembedding"),
    ):
        with pytest.raises(
            FormatError, match=r"weights/unembedding\.safetensors is damaged: .* Restore it from a copy"
        ):
            read()


def test_the_file_is_read_whole_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file whose times cannot be set back, as those of changes, was still written a moment ago.
    monkeypatch.setattr(first_use, "_TOO_RECENT_NS", -int(60e9))
    checked = []
    verify = weights.verify_checksums
    monkeypatch.setattr(
        weights, "verify_checksums", lambda part, *a, **k: (checked.append(part), verify(part, *a, **k))
    )
    for row in range(5):
        read_rows(folder, "unembedding", "weight", [row])
    assert checked == ["unembedding"]


def test_a_norm_without_any_tensor_of_a_norm_is_damaged(folder: Folder) -> None:
    planted_stores.change_root(folder, files=None)  # as an earlier version wrote it
    folder.write(weights_key("final_norm"), save({"layer-1.before": MATRIX}))
    with pytest.raises(FormatError, match=r"final_norm\.safetensors is damaged: it lacks the tensor 'weight'"):
        read_final_norm(folder)

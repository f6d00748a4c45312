"""`actstore capture` of images as people and machines use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tiny_vision import tiny_vision_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_model("llava", tmp_path_factory.mktemp("model") / "llava")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures and a broken one, in a plain folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def test_pictures_are_answered_captured_shown_and_verified(
    cli: Callable[..., Result], model: Path, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = cli(
        "capture",
        model,
        pictures,
        store,
        "--generate",
        "--max-new-tokens",
        3,
        "--prefix",
        "a",
        "--json",
        "--device",
        "cpu",
    )
    assert done.status == 0, done.err
    held = done.json["captures"]["corpus"]
    assert (held["documents"], held["part"], held["images"]) == (3, "language", True)
    skipped, counted = done.err.splitlines()
    assert skipped.startswith(f"Skipped: {pictures / '3.png'} is not an image that can be read")
    assert counted == "Images skipped, which could not be used: 1 of 4."
    assert cli("verify", store, "--refill", 1).status == 0
    tower = cli("capture", model, pictures, store, "--name", "tower", "--part", "vision", "--device", "cpu")
    assert "mlp.post (vision)" in tower.out
    shown = cli("top", store, "L2.N3", "--capture", "tower", "-k", 2).out
    assert "«[p" in shown
    assert ".png]»" in shown
    found = cli("top", store, "L1.N3", "--capture", "corpus", "-k", 2, "--around", 100, "--json").json["exemplars"]
    assert len(found) == 2
    assert "<image 0,0>" in found[0]["text"]
    rows = cli("sql", store, "select caption, generated, image_sha256 from corpus.documents", "--json").json["rows"]
    assert [row["generated"] for row in rows] == [True] * 3
    assert cli("sql", store, "select count(*) as n from corpus.patches", "--json").json["rows"] == [{"n": 48}]


def test_pictures_without_captions_are_captured_with_a_word_about_it(
    cli: Callable[..., Result], model: Path, pictures: Path, tmp_path: Path
) -> None:
    done = cli("capture", model, pictures, tmp_path / "store", "--pattern", "[012].png", "--device", "cpu")
    assert done.status == 0
    assert done.err == (
        "Images without a caption, captured with their prompt alone: 3. --generate lets the model answer, "
        "--caption-column names the column of captions.\n"
    )


def test_mistakes_end_in_a_sentence(
    refused: Callable[..., str],
    model: Path,
    pictures: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    assert "3.png is not an image" in refused("capture", model, pictures, store, "--strict")
    assert "reads text only" in refused("capture", tiny_model, pictures, store)
    assert refused("capture", model, pictures, store, "--part", "x") == (
        "--part takes one of language, vision, projector, and 'x' is none of them."
    )
    (pictures / "images.jsonl").write_text(json.dumps({"image": "http://example.org/a.png"}))
    assert "names its image by a URL" in refused("capture", model, pictures, store)
    assert not store.exists()


def test_images_have_no_dry_run(refused: Callable[..., str], model: Path, pictures: Path, tmp_path: Path) -> None:
    said = refused("capture", model, pictures, tmp_path / "store", "--generate", "--dry-run")
    assert said.startswith(f"A dry run is of a corpus of text, and {pictures} holds images")
    assert "--max-documents" in said
    assert not (tmp_path / "store").exists()

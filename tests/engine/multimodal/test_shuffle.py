"""Images with their patches shuffled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from actstore.engine.multimodal.shuffle import shuffle_images, shuffle_patches
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def patches(pixels: np.ndarray, patch: int) -> list[bytes]:
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    return sorted(
        pixels[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].tobytes()
        for r in range(rows)
        for c in range(columns)
    )


def test_patches_change_places_and_nothing_else() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    shuffled = shuffle_patches(pixels, 8, np.random.default_rng(1))
    assert patches(shuffled, 8) == patches(pixels, 8)
    assert (shuffled[:16, :24] != pixels[:16, :24]).any()
    np.testing.assert_array_equal(shuffled[16:], pixels[16:])
    np.testing.assert_array_equal(shuffled[:, 24:], pixels[:, 24:])
    assert patches(shuffled, 4) == patches(pixels, 4)  # moved whole, not turned


def test_a_folder(images: Path, tmp_path: Path) -> None:
    done = shuffle_images(images, tmp_path / "out", patch=5, seed=3)
    assert (done.images, done.unreadable) == (2, [])
    rows = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert rows == [{"image": "a.png"}, {"image": "b.png"}]
    for row in rows:
        before, after = (np.asarray(Image.open(folder / row["image"])) for folder in (images, tmp_path / "out"))
        assert patches(after, 5) == patches(before, 5)
        assert (before != after).any()
    shuffle_images(images, tmp_path / "again", patch=5, seed=3)
    shuffle_images(images, tmp_path / "other", patch=5, seed=4)
    first = (tmp_path / "out" / "a.png").read_bytes()
    assert (tmp_path / "again" / "a.png").read_bytes() == first
    assert (tmp_path / "other" / "a.png").read_bytes() != first


def test_a_list_is_carried_over_and_captions_replace_its_own(images: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "b.png", "prompt": "What?", "caption": "gold", "colour": "red"},
        {"image": "a.png", "caption": "old"},
    ]
    (images / "images.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    shuffle_images(images, tmp_path / "out", patch=5)
    assert [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()] == rows
    shuffle_images(images, tmp_path / "given", patch=5, captions={"b": {"prompt": "Say", "caption": "said"}})
    given = [json.loads(line) for line in (tmp_path / "given" / "images.jsonl").read_text().splitlines()]
    assert given == [{"image": "b.png", "prompt": "Say", "caption": "said", "colour": "red"}]


def test_mistakes(images: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ({"patch": 0}, "at least 1 pixel"),
        ({"patch": 5, "captions": {"z": {}}}, "holds no image to shuffle"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            shuffle_images(images, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="not an empty folder"):
        shuffle_images(images, images, patch=5)
    with pytest.raises(InvalidInputError, match="is not a folder of images"):
        shuffle_images(images / "a.png", tmp_path / "out", patch=5)
    (images / "more").mkdir()
    (images / "a.png").rename(images / "more" / "b.jpg")
    with pytest.raises(InvalidInputError, match="several images called 'b'"):
        shuffle_images(images, tmp_path / "out", patch=5)
    (images / "images.jsonl").write_text('{"picture": 3}\n')
    with pytest.raises(InvalidInputError, match=r"images.jsonl:1 names no image under 'image'"):
        shuffle_images(images, tmp_path / "out", patch=5)
    (images / "images.jsonl").rename(images / "metadata.csv")
    (images / "metadata.csv").write_text("file_name,text\n,nothing\n")
    with pytest.raises(InvalidInputError, match=r"metadata.csv:0 names no image under 'image'"):
        shuffle_images(images, tmp_path / "out", patch=5)


def test_what_is_no_image_is_left_out(images: Path, tmp_path: Path) -> None:
    (images / "c.png").write_bytes(b"broken")
    done = shuffle_images(images, tmp_path / "out", patch=5)
    assert done.images == 2
    assert done.unreadable == [str(images / "c.png")]

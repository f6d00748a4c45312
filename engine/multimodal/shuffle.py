"""Images with their patches shuffled, on which region invariance is measured.

The patches of each image are put in random order, always the same for the same seed, name and size; what remains at the right
and lower edge beyond whole patches stays where it is. The new folder's images.jsonl has what the old one has, or the captions
of a capture, so that the same answers can be teacher-forced on the shuffled images.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.inputs.image_files import SUFFIXES
from actstore.engine.inputs.image_tables import read_rows
from actstore.engine.inputs.images import LISTS
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


NAMES: Final = ("image", "file_name", "image_path", "path")
"""Keys under which such lists name an image's file."""


@dataclass(frozen=True)
class Shuffled:
    """The images that were written."""

    images: int
    unreadable: list[str]
    """Files that cannot be read as images, and were left out."""


def shuffle_patches(pixels: NDArray[np.uint8], patch: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image [row, column, …] with its whole patches of `patch` × `patch` pixels in random order."""
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    shuffled = pixels.copy()
    order = rng.permutation(rows * columns)
    for target, source in enumerate(order.tolist()):
        shuffled[_patch_at(target, columns, patch)] = pixels[_patch_at(source, columns, patch)]
    return shuffled


def _patch_at(number: int, columns: int, patch: int) -> tuple[slice, slice]:
    """The rows and columns of pixels of a patch, counted through the image row by row."""
    row, column = divmod(number, columns)
    return slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch)


def shuffle_images(
    images: Path,
    output: str | Path,
    *,
    patch: int,
    seed: int = 0,
    captions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Shuffled:
    """Write every image of a folder with shuffled patches into the folder `output`, as PNG, and a list of them.

    `captions`: file name without suffix → prompt and caption to write instead of the list's own; other images are left out.
    Raises `InvalidInputError` where there is no image, or `output` is not empty.
    """
    from PIL import Image, ImageOps

    if patch < 1:
        raise InvalidInputError(f"`patch` is at least 1 pixel, found {patch}.")
    target = output_folder(output)
    if target.exists() and any(target.iterdir()):
        raise InvalidInputError(f"{target} already exists and is not an empty folder. Write elsewhere.")
    listed = [(file, row) for file, row in _listed(images) if captions is None or file.stem in captions]
    if not listed:
        raise InvalidInputError(f"{images} holds no image to shuffle. Choose a folder of images.")
    if twice := [stem for stem, n in Counter(file.stem for file, _ in listed).items() if n > 1]:
        raise InvalidInputError(
            f"{images} holds several images called {twice[0]!r}, and shuffled images are identified by that name. Rename them."
        )
    target.mkdir(parents=True, exist_ok=True)
    unreadable: list[str] = []
    with (target / LISTS[0]).open("w", encoding="utf-8") as file:
        for path, row in listed:
            try:
                with Image.open(path) as opened:
                    pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                unreadable.append(str(path))
                continue
            digest = hashlib.sha256(f"{seed} {path.stem}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            name = f"{path.stem}.png"
            Image.fromarray(shuffle_patches(pixels, patch, rng)).save(target / name, "PNG")
            others = {key: value for key, value in row.items() if key not in NAMES}
            answer = {} if captions is None else dict(captions[path.stem])
            file.write(json.dumps({"image": name, **others, **answer}, ensure_ascii=False) + "\n")
    return Shuffled(len(listed) - len(unreadable), unreadable)


def _listed(images: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, its row) of a folder's list, or of all image files where there is no list."""
    if not images.is_dir():
        raise InvalidInputError(f"{images} is not a folder of images.")
    listing = next((images / name for name in LISTS if (images / name).is_file()), None)
    if listing is None:
        for path in sorted(images.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield path, {}
        return
    for where, row in read_rows(listing, str(listing)):
        name = next((row[key] for key in NAMES if isinstance(row.get(key), str)), None)
        if name is None:
            raise InvalidInputError(f"{where} names no image under {NAMES[0]!r}. Fix it.")
        yield images / name, row

"""Patch maps as PNG: the image, the map over it, and the part of the image inside the mask, side by side.

Without the image, whose file may no longer exist, map and mask are drawn alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from actstore.engine.multimodal.noun_maps import map_nouns
from actstore.engine.multimodal.patch_maps import PERCENTILE, mask_of
from actstore.engine.multimodal.source_images import find_image
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_file
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from actstore.engine.multimodal.patch_maps import PatchMap
    from actstore.engine.multimodal.result import Multimodal
    from actstore.store.reader import Capture

RAMP: Final = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float64)
"""Dark blue to yellow: lightness rises throughout, so that it can be read in print and by colour-blind people."""
NO_PATCH: Final = (96, 96, 96)
"""Colour of what no patch shows."""
OPACITY: Final = 0.62
"""Of the map over the image."""
MIN_SIDE, MAX_SIDE = 288, 1024
"""Pixels of a panel's longer side: smaller images are enlarged by a whole number, larger ones reduced."""
MARGIN, LINE = 10, 16
"""Pixels around panels, and of a line of text."""


@dataclass(frozen=True)
class Drawn:
    """A picture that was written."""

    path: Path
    with_image: bool
    note: str = ""
    """Why the image is not in it."""


def colours(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The colours [row, column, 3] of a map between its smallest and its largest value."""
    has_value = np.isfinite(pixels)
    low, high = (float(pixels[has_value].min()), float(pixels[has_value].max())) if has_value.any() else (0.0, 0.0)
    strength = np.where(has_value, (pixels - low) / (high - low if high > low else 1.0), 0.0)
    steps = np.linspace(0, 1, len(RAMP))
    coloured = np.stack([np.interp(strength, steps, RAMP[:, i]) for i in range(3)], axis=-1)
    coloured[~has_value] = NO_PATCH
    return np.rint(coloured).astype(np.uint8)


def draw_map(path: Path, patch_map: PatchMap, image: Image | None, lines: Sequence[str] = (), note: str = "") -> Drawn:
    """Write a map as PNG: image, map over the image, image inside the mask; without an image, map and mask alone.

    `lines` of text go below; `note` says why there is no image. Raises `InvalidInputError` where the file cannot be written.
    """
    from PIL import Image

    check_picture(path)
    longer = max(patch_map.width, patch_map.height)
    scale = min(max(1, -(-MIN_SIDE // longer)), MAX_SIDE / longer)
    width, height = (max(1, round(side * scale)) for side in (patch_map.width, patch_map.height))
    pixels = patch_map.grid.spread(patch_map.values, width, height)
    mask, heat = mask_of(pixels, PERCENTILE), colours(pixels)
    if image is None:
        panels = [heat, np.where(mask[..., None], heat, heat // 4)]
        lines = (*lines, f"Without the image: {note}." if note else "Without the image.")
    else:
        resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        original = np.asarray(image.resize((width, height), resampling), np.float64)
        blended = OPACITY * heat + (1 - OPACITY) * original
        overlaid = np.where(np.isfinite(pixels)[..., None], blended, original * 0.5)
        panels = [original, overlaid, np.where(mask[..., None], original, 0.2 * original)]
    drawn = [Image.fromarray(np.rint(panel).astype(np.uint8)) for panel in panels]
    try:
        with replacing(path) as partial:
            _side_by_side(drawn, lines).save(partial, "PNG", compress_level=2)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror or error}.") from None
    return Drawn(path, image is not None, note)


def draw_document_map(
    capture: Capture, path: Path, patch_map: PatchMap, image: str | None, lines: Sequence[str] = ()
) -> Drawn:
    """Write the map of a document of a capture over its image, whose path the capture recorded, if that still exists."""
    opened, note = find_image(image, capture.record.plan.corpus, (patch_map.width, patch_map.height))
    return draw_map(path, patch_map, opened, lines, note)


class NounPicture(NamedTuple):
    """The picture of one noun's map."""

    drawn: Drawn
    document: int
    noun: str


def draw_nouns(result: Multimodal, folder: Path, kind: str = "contribution") -> list[NounPicture]:
    """Write a map for every noun of every caption, as `draw_noun_maps`; `kind`: a key of `noun_maps.MAPS`."""
    return draw_noun_maps(result, folder, map_nouns(result, kind))


def draw_noun_maps(result: Multimodal, folder: Path, maps: Iterable[tuple[int, PatchMap]]) -> list[NounPicture]:
    """Write some nouns' maps, (number of the noun, map), each as `folder/<document>-<noun>.png`."""
    from actstore.engine.multimodal.describe import plain  # only here: it loads torch

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, patch_map in maps:
        noun = result.nouns[number]
        caption, numbers = result.captions[noun.caption], result.first.tokens[number]
        lines = (plain(caption.text), f"{noun.word}: {' '.join(result.numbering.names(numbers[numbers >= 0]))}")
        name = f"{caption.document:04d}-{''.join(c if c.isalnum() else '_' for c in noun.word)}.png"
        drawn = draw_document_map(result.capture, folder / name, patch_map, caption.image, lines)
        pictures.append(NounPicture(drawn, caption.document, noun.word))
    return pictures


def check_picture(path: Path) -> None:
    """Raise `InvalidInputError` unless a PNG can be written to a path."""
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"Maps are written as PNG: expected a name that ends in .png, found {path.name!r}.")
    output_file(path)


def _side_by_side(panels: Sequence[Image], lines: Sequence[str]) -> Image:
    """Panels of one size in a row, and text below them, as wide as they are."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    width, height = panels[0].size
    total = len(panels) * (width + MARGIN) + MARGIN
    wrapped = [row for line in lines for row in _wrap(line, font, total - 2 * MARGIN)]
    picture = Image.new("RGB", (total, height + 2 * MARGIN + LINE * len(wrapped)), (255, 255, 255))
    for number, panel in enumerate(panels):
        picture.paste(panel, (MARGIN + number * (width + MARGIN), MARGIN))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(wrapped):
        pen.text((MARGIN, height + MARGIN + 4 + LINE * number), line, fill=(26, 26, 26), font=font)
    return picture


def _wrap(line: str, font: FreeTypeFont | ImageFont, width: int, max_rows: int = 4) -> list[str]:
    rows: list[str] = [""]
    for word in line.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows if len(rows) <= max_rows else [*rows[: max_rows - 1], f"{rows[max_rows - 1]} …"]

"""Heat maps as PNG: the image, the map over it, and what the mask leaves of it, side by side.

Needs Pillow, and the image's file where it is still there; without it, the map is drawn alone. Knows nothing about stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.multimodal.patch_maps import PERCENTILE, mask_of
from actstore.store.errors import InvalidInputError
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.patch_maps import PatchMap

RAMP: Final = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float64)
"""Dark blue to yellow: lightness rises all the way, which survives print and colour blindness."""
NOTHING: Final = (96, 96, 96)
"""Where no patch shows the image."""
OVER: Final = 0.62
"""Share of the map's colour over the image."""
LEAST, MOST = 288, 1024
"""Pixels of a panel's longer side: smaller images are shown by whole multiples, larger ones reduced."""
MARGIN, LINE = 10, 16
"""Pixels about panels, and of a line of text."""


@dataclass(frozen=True)
class Drawn:
    """A picture that was written."""

    path: Path
    with_image: bool
    note: str = ""
    """Why the image is not in it."""


def find_image(path: str | None, corpus: str, size: tuple[int, int]) -> tuple[Any, str]:
    """(the image as Pillow opens it, "") where its file is still there and as large as it was, else (None, why not).

    Looked for as the path was given, and in the folder that the corpus was.
    """
    from PIL import Image, ImageOps

    if path is None:
        return None, "the capture names no file for it"
    beside = Path(corpus) if Path(corpus).is_dir() else Path(corpus).parent
    file = next((file for file in (Path(path), beside / path) if file.is_file()), None)
    if file is None:
        return None, f"{path} is no longer there"
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, f"{file} cannot be read ({' '.join(str(error).split())})"
    if image.size != size:
        return None, f"{file} has {image.size[0]} × {image.size[1]} pixels and had {size[0]} × {size[1]}"
    return image, ""


def colours(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The colours [row, column, 3] of a map between its smallest and its largest value."""
    known = np.isfinite(pixels)
    low, high = (float(pixels[known].min()), float(pixels[known].max())) if known.any() else (0.0, 0.0)
    strength = np.where(known, (pixels - low) / (high - low if high > low else 1.0), 0.0)
    steps = np.linspace(0, 1, len(RAMP))
    found = np.stack([np.interp(strength, steps, RAMP[:, i]) for i in range(3)], axis=-1)
    found[~known] = NOTHING
    return np.rint(found).astype(np.uint8)


def draw_map(path: Path, found: PatchMap, image: Any, lines: Sequence[str] = (), note: str = "") -> Drawn:
    """Write a map as PNG: image, map over the image, image inside the mask; without an image map and mask alone.

    `lines` of text go below. Raises `InvalidInputError` where the file cannot be written.
    """
    from PIL import Image

    check_picture(path)
    longer = max(found.width, found.height)
    scale = min(max(1, -(-LEAST // longer)), MOST / longer)
    width, height = (max(1, round(side * scale)) for side in (found.width, found.height))
    pixels = found.grid.spread(found.values, width, height)
    mask, heat = mask_of(pixels, PERCENTILE), colours(pixels)
    if image is None:
        panels = [heat, np.where(mask[..., None], heat, heat // 4)]
        lines = (*lines, f"Without the image: {note}." if note else "Without the image.")
    else:
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        shown = np.asarray(image.resize((width, height), how), np.float64)
        over = np.where(np.isfinite(pixels)[..., None], OVER * heat + (1 - OVER) * shown, shown * 0.5)
        panels = [shown, over, np.where(mask[..., None], shown, 0.2 * shown)]
    drawn = [Image.fromarray(np.rint(panel).astype(np.uint8)) for panel in panels]
    try:
        with replacing(path) as partial:
            _beside(drawn, lines).save(partial, "PNG", compress_level=2)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror or error}.") from None
    return Drawn(path, image is not None, note)


def check_picture(path: Path) -> None:
    """Raise `InvalidInputError` unless a PNG can be written to a path."""
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"Maps are written as PNG: expected a name that ends in .png, found {path.name!r}.")
    if not path.parent.is_dir():
        raise InvalidInputError(f"The folder of {path} does not exist. Make it first, or write elsewhere.")


def _beside(panels: Sequence[Any], lines: Sequence[str]) -> Any:
    """Panels of one size in a row, and text below them, as wide as they are."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    width, height = panels[0].size
    total = len(panels) * (width + MARGIN) + MARGIN
    wrapped = [part for line in lines for part in _wrapped(line, font, total - 2 * MARGIN)]
    picture = Image.new("RGB", (total, height + 2 * MARGIN + LINE * len(wrapped)), (255, 255, 255))
    for number, panel in enumerate(panels):
        picture.paste(panel, (MARGIN + number * (width + MARGIN), MARGIN))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(wrapped):
        pen.text((MARGIN, height + MARGIN + 4 + LINE * number), line, fill=(26, 26, 26), font=font)
    return picture


def _wrapped(line: str, font: Any, width: int, at_most: int = 4) -> list[str]:
    parts: list[str] = [""]
    for word in line.split():
        longer = f"{parts[-1]} {word}".strip()
        if font.getlength(longer) <= width or not parts[-1]:
            parts[-1] = longer
        else:
            parts.append(word)
    return parts if len(parts) <= at_most else [*parts[: at_most - 1], f"{parts[at_most - 1]} …"]

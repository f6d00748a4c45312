"""The images that a capture read: found again by the paths that it recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def find_image(path: str | None, corpus: str, size: tuple[int, int]) -> tuple[Image | None, str]:
    """(the image upright in RGB, "") if its file still exists and has the size (width, height), else (None, why not).

    Looked for at the path as it was given, and in the folder that the corpus was, or was in.
    """
    from PIL import Image, ImageOps

    if path is None:
        return None, "the capture names no file for it"
    folder = Path(corpus) if Path(corpus).is_dir() else Path(corpus).parent
    file = next((file for file in (Path(path), folder / path) if file.is_file()), None)
    if file is None:
        return None, f"{path} no longer exists"
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, f"{file} cannot be read ({' '.join(str(error).split())})"
    if image.size != size:
        return None, f"{file} has {image.size[0]} × {image.size[1]} pixels and had {size[0]} × {size[1]}"
    return image, ""

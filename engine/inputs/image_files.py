"""Image files: their bytes, their fingerprint, and the picture in them as upright RGB, whatever the format.

One that cannot be opened is an `ImageError` that names it.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL import Image

FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""Format → suffixes of its files."""
SUFFIXES: Final = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_PILLOW_FORMATS: Final = tuple(name.upper() for name in FORMATS)
MAX_PIXELS: Final = 89_478_485
"""Pillow's own limit: a quarter of a gigabyte as RGB. A larger image is taken for a decompression bomb."""


class ImageError(InvalidInputError):
    """An image that cannot be used: missing, unreadable, damaged, or too large."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source} {reason}.")
        self.source, self.reason = source, reason


@dataclass(frozen=True, eq=False)
class ImageFile:
    """One image, not opened yet: a `path`, or the `content` of a file."""

    source: str
    """For messages."""
    name: str = ""
    """The path; "" where none is known."""
    path: Path | None = None
    content: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The file's bytes; `ImageError` where it cannot be read or is empty."""
        if self.content is not None:
            content = self.content
        elif self.path is None:
            raise ImageError(self.source, "names no image")
        else:
            try:
                content = self.path.read_bytes()
            except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
                reason = getattr(error, "strerror", None) or str(error)
                raise ImageError(self.source, f"cannot be read ({reason})") from None
        if not content:
            raise ImageError(self.source, "is empty (0 bytes)")
        return content

    @cached_property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, of the file's bytes; empty where it cannot be read."""
        try:
            return hashlib.sha256(self.read()).hexdigest()
        except ImageError:
            return ""

    def open(self) -> Image.Image:
        """The image in RGB, upright by its EXIF orientation; of an animated one the first frame. `ImageError` if damaged."""
        return decode(self.read(), self.source)[0]


def decode(content: bytes, source: str) -> tuple[Image.Image, int]:
    """The image in a file's bytes as RGB, the first frame of an animated one, and the number of frames.

    Transparent pixels become white; 16 bits per channel become 8. Raises `ImageError` naming `source`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS) as opened:
            warnings.simplefilter(
                "ignore"
            )  # about large images, which are refused here, and about metadata, which is not needed
            _check_size(source, *opened.size)
            n_frames = int(getattr(opened, "n_frames", 1)) if opened.format != "MPO" else 1
            opened.seek(0)
            opened.load()
            try:
                upright = ImageOps.exif_transpose(opened)
            except Exception:  # EXIF that cannot be read does not change the pixels
                upright = opened
            return _to_rgb(upright, source), n_frames
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(source, f"is not an image that can be read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(source, f"is too large (more than {2 * MAX_PIXELS:,} pixels)") from None
    except Exception as error:  # decoders may raise anything on damaged bytes
        raise ImageError(source, f"is damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def _check_size(source: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(source, f"is too large ({width:,} × {height:,} pixels; at most {MAX_PIXELS:,} in all)")


def _to_rgb(image: Image.Image, source: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(source, f"has grey values from {values.min():g} to {values.max():g}, not 8 or 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(source, "has floating-point grey values, not 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")

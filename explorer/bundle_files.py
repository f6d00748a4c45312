"""The front end as it is shipped: built from `frontend/` by `make explorer`, and read by servers, sites and notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BUNDLE: Final = Path(__file__).parent / "bundle"
FILES: Final = {
    "index.html": "text/html; charset=utf-8",
    "explorer.js": "text/javascript; charset=utf-8",
    "explorer.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""File → its media type."""
WIDGET: Final = "widget.js"
"""The module that a notebook's page runs; servers and sites have no use for it."""


def bundle_file(name: str) -> tuple[bytes, str]:
    """A file of the bundle, and its media type."""
    return (BUNDLE / name).read_bytes(), FILES[name]


def bundle_text(name: str) -> str:
    """A file of the bundle as text."""
    return (BUNDLE / name).read_text(encoding="utf-8")

"""The version of this program, installed or not."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path


def version() -> str:
    """Of the installed package; of a bare checkout, that in its pyproject.toml, "unknown" where there is none."""
    try:
        return importlib.metadata.version("actstore")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
    except (OSError, KeyError, ValueError):
        return "unknown"

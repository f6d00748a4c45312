"""The journal of a change to a model's own files: where there is one, the folder may hold a mixture of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from actstore.store.errors import ModelError

JOURNAL: Final = ".actstore-edit.json"
"""The file in a model's folder that stands there from the first to the last file that `edit apply --in-place` replaces."""


def refuse_interrupted_edit(name: str) -> None:
    """Raise `ModelError` where a change of the folder's own files was interrupted half-way; a Hub id may name the folder."""
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        try:
            config = cached_file(name, "config.json", local_files_only=True)
        except (OSError, ValueError):
            return
        if config is None:
            return
        folder = Path(config).parent
    if (folder / JOURNAL).exists():
        raise ModelError(
            f"The files of {folder} are half changed: an edit was being written into them, in place, when the process was "
            "stopped. Run that `actstore edit apply` or `actstore edit revert` again, which finishes it."
        )

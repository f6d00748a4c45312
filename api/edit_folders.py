"""`store.edits`, in folders of models: edits applied to one, and taken out of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.api.light import explains
from actstore.api.method import Method

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actstore.store.edits import Edit


@explains
class EditsInFolders(Method):
    """The edits of a store, by name, and folders of models that have them."""

    _reached_as = "store.edits"

    def __getitem__(self, name: str) -> Edit:
        from actstore.store.edits import read_edit

        return read_edit(self._store.folder, name)

    def apply(
        self,
        names: str | Sequence[str],
        output: str | Path | None = None,
        *,
        model: str | Path | None = None,
        in_place: bool = False,
        force: bool = False,
        trust_remote_code: bool = False,
    ) -> Path:
        """Writes a model folder with edits in it, which plain transformers loads; the folder.

        Every byte but the edited rows is the model's own. `in_place` changes the folder `model` itself instead of `output`.
        """
        from actstore.engine.edit.folders import FolderRequest, apply_to_folder

        place, edits, target = self._in_folder(names, output, model, in_place=in_place)
        return apply_to_folder(FolderRequest(place, edits, target, force, trust_remote_code))

    def revert(
        self,
        names: str | Sequence[str],
        output: str | Path | None = None,
        *,
        model: str | Path | None = None,
        in_place: bool = False,
        force: bool = False,
        trust_remote_code: bool = False,
    ) -> Path:
        """Writes a model folder without edits that are in it: its weights are again what they were, byte for byte."""
        from actstore.engine.edit.folders import FolderRequest, revert_in_folder

        place, edits, target = self._in_folder(names, output, model, in_place=in_place)
        return revert_in_folder(FolderRequest(place, edits, target, force, trust_remote_code))

    def _in_folder(
        self, names: str | Sequence[str], output: str | Path | None, model: str | Path | None, *, in_place: bool
    ) -> tuple[str, list[Edit], str | Path | None]:
        from actstore.engine.models.fingerprint import location_of
        from actstore.store.errors import InvalidInputError

        if (output is None) != in_place:
            raise InvalidInputError(
                "Say where the model is written: `output`, a new folder, or `in_place=True`, one of the two."
            )
        edits = [self[name] for name in ([names] if isinstance(names, str) else names)]
        return str(location_of(self._store.model) if model is None else model), edits, output

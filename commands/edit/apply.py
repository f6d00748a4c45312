"""`edit apply` and `edit revert`: edits in ordinary Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.commands.options import (  # noqa: TC001  (Typer reads them)
    Force,
    Json,
    ModelName,
    Quiet,
    TrustRemoteCode,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.store.edits import Edit

Edits = Annotated[
    list[Path],
    typer.Argument(metavar="EDIT…", help="Folders of edits, such as gpt2.actstore/edits/suppress; in order."),
]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="The model folder to write.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Change MODEL's own files instead.")]


def register(group: typer.Typer) -> None:
    """Add the subcommands to `edit`."""
    group.command()(apply)
    group.command()(revert)


def apply(
    model: ModelName,
    edits: Edits,
    output: Output = None,
    in_place: InPlace = False,
    force: Force = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write MODEL with edits in it, as a folder that plain transformers loads; every byte but the edited rows is MODEL's own.

    Refused for a model that the edits are not of, for edits that are in it already, and where two change the same neuron.

    Example: `actstore edit apply gpt2 gpt2.actstore/edits/suppress --output gpt2-edited`
    """
    from actstore.engine.edit.folders import FolderRequest, apply_to_folder

    with terminal.spinner("writing the model", enabled=not quiet):
        target = apply_to_folder(
            FolderRequest(model, _opened(edits), _target(output, in_place), force, trust_remote_code)
        )
    _say(target, edits, as_json, "applied")


def revert(
    model: ModelName,
    edits: Edits,
    output: Output = None,
    in_place: InPlace = False,
    force: Force = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write MODEL without edits that are in it: its weights are again what they were, byte for byte.

    Example: `actstore edit revert gpt2-edited gpt2.actstore/edits/suppress --in-place`
    """
    from actstore.engine.edit.folders import FolderRequest, revert_in_folder

    with terminal.spinner("writing the model", enabled=not quiet):
        target = revert_in_folder(
            FolderRequest(model, _opened(edits), _target(output, in_place), force, trust_remote_code)
        )
    _say(target, edits, as_json, "reverted")


def _opened(edits: list[Path]) -> list[Edit]:
    from actstore.store.edits import read_edit

    return [read_edit(edit) for edit in edits]


def _target(output: Path | None, in_place: bool) -> Path | None:
    if (output is None) != in_place:
        raise InvalidInputError("Say where the model is to be written: --output FOLDER, or --in-place, one of the two.")
    return output


def _say(target: Path, edits: list[Path], as_json: bool, what: str) -> None:
    names = [edit.name for edit in edits]
    if as_json:
        print_json({"model": str(target), what: names})
    else:
        terminal.out.print(f"{target}: {what} {', '.join(names)}.", soft_wrap=True, markup=False)

"""`edit apply` and `edit revert`: edits of a store in ordinary Hugging Face model folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.commands import completion
from actstore.commands.options import (
    Force,
    Json,
    ModelOption,
    Quiet,
    StorePath,
    TrustRemoteCode,
    captured_model,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.store.edits import Edit

EditNames = Annotated[
    list[str],
    typer.Argument(
        metavar="EDIT…",
        help="Names of edits in STORE, in the order in which they are applied.",
        autocompletion=completion.edits,
    ),
]
EditedModel = Annotated[str, typer.Option("--model", metavar="MODEL", help="The folder of the model with the edits.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="The model folder to write.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Change the model's own files instead.")]


def register(group: typer.Typer) -> None:
    """Add the subcommands to `edit`."""
    group.command()(apply)
    group.command()(revert)


def apply(
    store: StorePath,
    edits: EditNames,
    model: ModelOption = None,
    output: Output = None,
    in_place: InPlace = False,
    force: Force = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the model with edits applied, as a folder that plain transformers loads; all bytes but the edited rows stay.

    Refused for another model than that of the edits, for edits that are applied already, and where two change the same
    neuron.

    Example: `actstore edit apply gpt2.actstore suppress --output gpt2-edited`
    """
    from actstore.engine.edit.folders import FolderRequest, apply_to_folder

    opened, target = Store(store), _target(output, in_place)
    source = captured_model(opened, model)
    with terminal.spinner("writing the model", enabled=not quiet):
        folder = apply_to_folder(FolderRequest(source, _read(opened, edits), target, force, trust_remote_code))
    _report(folder, edits, as_json, "applied")


def revert(
    store: StorePath,
    edits: EditNames,
    model: EditedModel,
    output: Output = None,
    in_place: InPlace = False,
    force: Force = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a model without edits that were applied to it: its weights are again the original ones, byte for byte.

    Example: `actstore edit revert gpt2.actstore suppress --model gpt2-edited --in-place`
    """
    from actstore.engine.edit.folders import FolderRequest, revert_in_folder

    opened, target = Store(store), _target(output, in_place)
    with terminal.spinner("writing the model", enabled=not quiet):
        folder = revert_in_folder(FolderRequest(model, _read(opened, edits), target, force, trust_remote_code))
    _report(folder, edits, as_json, "reverted")


def _read(store: Store, names: list[str]) -> list[Edit]:
    from actstore.store.edits import read_edit

    return [read_edit(store.folder, name) for name in names]


def _target(output: Path | None, in_place: bool) -> Path | None:
    if (output is None) != in_place:
        raise InvalidInputError("Name the folder to write with --output FOLDER, or pass --in-place: one of the two.")
    return output


def _report(folder: Path, names: list[str], as_json: bool, verb: str) -> None:
    if as_json:
        print_json({"model": str(folder), verb: names})
    else:
        terminal.out.print(f"{folder}: {verb} {', '.join(names)}.", soft_wrap=True, markup=False)

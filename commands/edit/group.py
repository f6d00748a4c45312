"""`actstore edit`: the edits of a store, and the simplest of them; other subcommands have files of their own."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from textwrap import wrap
from typing import Annotated, Any

import typer
from rich.text import Text

from actstore.api.neurons import neuron_pairs
from actstore.commands.choices import EditKind
from actstore.commands.edit import apply as edit_apply
from actstore.commands.edit import erase as edit_erase
from actstore.commands.edit import evaluate as edit_evaluate
from actstore.commands.edit import rewrite as edit_rewrite
from actstore.commands.edit.reports import describe_edit, sentence, words_of
from actstore.commands.edit.rewrite import EditName, EditToMake  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    CommandGroup,
    Force,
    Json,
    NamedNeurons,
    Quiet,
    StorePath,
    complete,
    family,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import GAP, WIDTH, fitted_table
from actstore.engine.edit.positions import POSITIONS
from actstore.store.edits import Edit, EditRecord, delete_edit, edit_names, read_record, write_edit
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_name
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

Kind = Annotated[
    EditKind,
    typer.Option("--kind", help="Scale rows of the weights, or activations while the model runs."),
]
Positions = Annotated[
    str,
    typer.Option(
        metavar="POSITIONS",
        help="Where the intervention acts: all, prompt, last, generated, predicting, image, or numbers such as 0,3,-1.",
        autocompletion=complete(POSITIONS),
        rich_help_panel="Kind intervention",
    ),
]

group = family(
    """Change what a model says by changing what its neurons write: suppress, boost, rewrite, apply, evaluate.

    Example: `actstore edit rewrite captions.actstore --from red --to green`""",
    CommandGroup,
)
edit_rewrite.register(group)
edit_erase.register(group)
edit_apply.register(group)
edit_evaluate.register(group)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="edit")


@group.command()
def suppress(
    store: StorePath,
    neurons: NamedNeurons,
    name: EditToMake = "suppress",
    kind: Kind = "weights",
    positions: Positions = "all",
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make an edit that suppresses neurons: their activations become 0, or their write vectors, which has the same effect.

    Example: `actstore edit suppress gpt2.actstore --neurons L3.N17,L4.N2`
    """
    opened = Store(store)
    _write(opened, _scaled(opened, neurons, name, ("suppress", 0.0), (kind, positions), quiet), force, as_json)


@group.command()
def boost(
    store: StorePath,
    neurons: NamedNeurons,
    factor: Annotated[float, typer.Option(help="Factor of the activations, or of the write vectors.")] = 2.0,
    name: EditToMake = "boost",
    kind: Kind = "weights",
    positions: Positions = "all",
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make an edit that boosts neurons: their activations, or their write vectors, are multiplied by a factor.

    Example: `actstore edit boost gpt2.actstore --neurons L3.N17 --factor 3 --kind intervention --positions last`
    """
    opened = Store(store)
    _write(opened, _scaled(opened, neurons, name, ("boost", factor), (kind, positions), quiet), force, as_json)


def _scaled(
    opened: Store, neurons: str, name: str, change: tuple[str, float], target: tuple[str, str], quiet: bool
) -> Edit:
    """An edit that multiplies neurons: `change` is its form and factor, `target` its kind and positions."""
    from actstore.engine.edit.positions import parse_positions
    from actstore.engine.edit.scaling import scaled_edit
    from actstore.engine.edit.specification import Operation

    (form, factor), (kind, positions) = change, target
    selection = neuron_pairs(neurons)
    operation = Operation(
        form, tuple(neuron_name(a, b) for a, b in selection), parse_positions(positions), factor=factor
    )
    with terminal.spinner("scaling neurons", enabled=not quiet):
        return scaled_edit(opened, name, operation, kind)


def _write(store: Store, edit: Edit, force: bool, as_json: bool) -> None:
    folder = Folder(store.folder, read_only=False)
    record = write_edit(folder, edit, replace=force)
    if as_json:
        print_json(describe_edit(record))
    else:
        terminal.out.print(sentence(folder, record), soft_wrap=True, markup=False)


@group.command()
def add(
    store: StorePath,
    specification: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON: a list of operations with kind, neurons and positions.")
    ],
    name: EditToMake = "intervention",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Store an intervention that a file specifies: suppress, boost, set, noise and patch, in the order of the file.

    Such a file is `{"operations": [{"kind": "set", "neurons": ["L3.N17"], "positions": "last", "value": 2.5}]}`; kinds have
    `factor`, `value`, `sigma` and `seed`, or `capture` and `source` (a document, or a position DOC:POS).

    Example: `actstore edit add gpt2.actstore louder.json --name louder`
    """
    from actstore.engine.edit.scaling import intervention
    from actstore.engine.edit.specification import Specification, check_neurons

    opened = Store(store)
    try:
        value = json.loads(specification.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{specification} cannot be read as JSON: {error}.") from None
    parsed = Specification.from_json(value, str(specification))
    widths = {layer.layer: layer.neurons for layer in opened.model.layers}
    check_neurons(parsed.neurons(), widths, opened.model.name)
    _write(opened, intervention(opened, name, "intervention", parsed.operations), force, as_json)


@group.command("list")
def list_(store: StorePath, as_json: Json = False) -> None:
    """List the edits of STORE.

    Example: `actstore edit list gpt2.actstore`
    """
    folder = Store(store).folder
    records = [read_record(folder, name) for name in edit_names(folder)]
    if as_json:
        print_json({"edits": [describe_edit(record) for record in records]})
        return
    rows = [(r.name, r.form, r.kind, _count(r), _words(r), r.created) for r in records]
    columns = ["edit", "form", "kind", ("neurons", "right"), "words", "created"]
    terminal.out.print(fitted_table(None, columns, rows))


@group.command()
def show(store: StorePath, name: EditName, as_json: Json = False) -> None:
    """Show an edit: its form, its settings, the neurons it changes, its predicted effect.

    Example: `actstore edit show gpt2.actstore suppress`
    """
    record = read_record(Store(store).folder, name)
    if as_json:
        print_json(record.to_json())
        return
    described: dict[str, Any] = describe_edit(record)
    names = described.pop("neurons")
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    rows = [(key, _shown(value)) for key, value in described.items()]
    rows += [("neurons", shown), *((key, _shown(value)) for key, value in record.settings.items() if value is not None)]
    width = WIDTH - GAP - max(len(key) for key, _ in rows)
    folded = [(key, Text("\n".join(wrap(terminal.visible(value), width)))) for key, value in rows]
    terminal.out.print(terminal.table(None, ["", ""], folded))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"


@group.command()
def delete(store: StorePath, name: EditName, as_json: Json = False) -> None:
    """Remove an edit from STORE; models that it was applied to are not changed.

    Example: `actstore edit delete gpt2.actstore suppress`
    """
    delete_edit(Folder(Store(store).folder, read_only=False), name)
    if as_json:
        print_json({"deleted": name})
    else:
        terminal.out.print(f"Edit {name!r} is removed from {store}.", markup=False, soft_wrap=True)


def _count(record: EditRecord) -> int:
    return len(describe_edit(record)["neurons"])


def _words(record: EditRecord) -> str:
    old, new = words_of(record)
    return f"{_tail(old)!r} → {_tail(new)!r}" if new else ""


def _tail(text: str, n: int = 12) -> str:
    """The end of a text, which of a prompt is what the target follows."""
    return text if len(text) <= n else f"…{text[-n:]}"

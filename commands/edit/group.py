"""`actstore edit`: what edits there are, and the simplest of them; rewriting, applying and judging have files of their own."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from actstore.commands.edit import apply as edit_apply
from actstore.commands.edit import evaluate as edit_evaluate
from actstore.commands.edit import rewrite as edit_rewrite
from actstore.commands.edit.rewrite import EditName, EditToMake, describe_edit
from actstore.commands.options import CommandGroup, Force, Json, NamedNeurons, Quiet, StorePath, family, parse_neurons
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import GAP, WIDTH
from actstore.store.edits import Edit, EditRecord, delete_edit, edit_names, read_record, write_edit
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_name
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from actstore.engine.edit.specification import Operation

As = Annotated[
    str,
    typer.Option(
        "--as", help="weights: rows are scaled, for good; intervention: activations are, while the model runs."
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        metavar="POSITIONS",
        help="Of an intervention: all, prompt, last, generated, predicting, image, or numbers such as 0,3,-1.",
    ),
]

group = family(
    """Change what a model says by changing what its neurons write: suppress, boost, rewrite, apply, evaluate.

    Example: `actstore edit rewrite captions.actstore --from red --to green`""",
    CommandGroup,
)
edit_rewrite.register(group)
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
    as_: As = "weights",
    positions: Positions = "all",
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """An edit that silences neurons: their activations become 0, or their write vectors, which amounts to the same.

    Example: `actstore edit suppress gpt2.actstore --neurons L3.N17,L4.N2`
    """
    opened = Store(store)
    _keep(opened, _scaled(opened, neurons, name, ("suppress", 0.0), (as_, positions), quiet), force, as_json)


@group.command()
def boost(
    store: StorePath,
    neurons: NamedNeurons,
    factor: Annotated[float, typer.Option(help="What activations, or write vectors, are multiplied by.")] = 2.0,
    name: EditToMake = "boost",
    as_: As = "weights",
    positions: Positions = "all",
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """An edit that makes neurons louder: their activations, or their write vectors, are multiplied.

    Example: `actstore edit boost gpt2.actstore --neurons L3.N17 --factor 3 --as intervention --positions last`
    """
    opened = Store(store)
    _keep(opened, _scaled(opened, neurons, name, ("boost", factor), (as_, positions), quiet), force, as_json)


def _scaled(
    opened: Store, neurons: str, name: str, change: tuple[str, float], how: tuple[str, str], quiet: bool
) -> Edit:
    """An edit that multiplies neurons: `change` is what it is called and the factor, `how` --as and --positions."""
    from actstore.engine.edit.passes import parse_positions
    from actstore.engine.edit.specification import Operation, check_neurons

    (kind, factor), (as_, positions) = change, how
    chosen = parse_neurons(neurons)
    operation = Operation(kind, tuple(neuron_name(a, b) for a, b in chosen), parse_positions(positions), factor=factor)
    widths = {layer.layer: layer.neurons for layer in opened.model.layers}
    check_neurons(operation.by_layer(), widths, opened.model.name)
    if as_ == "intervention":
        return _intervention(opened, name, kind, (operation,))
    if as_ != "weights":
        raise InvalidInputError(f"--as is weights or intervention, found {as_!r}.")
    if positions != "all":
        raise InvalidInputError(
            f"Weights are the same at every position: --positions {positions} needs --as intervention."
        )
    with terminal.spinner("scaling neurons", enabled=not quiet):
        return _scaled_weights(opened, name, kind, operation)


def _scaled_weights(store: Store, name: str, kind: str, operation: Operation) -> Edit:
    from actstore.engine.edit.rows import make_edit, scaled_rows
    from actstore.store.model.weights import read_rows

    neurons = operation.by_layer()
    experts = [n for n in neurons if store.model.layers[n].expert is not None]
    if experts:
        raise InvalidInputError(f"Layer {experts[0]} is a routed expert, whose rows no edit can export. Choose others.")
    before = {n: read_rows(store.folder, f"layer-{n}", "write_vectors", chosen) for n, chosen in neurons.items()}
    rows = scaled_rows(neurons, before, operation.factor)
    return make_edit(name, kind, store.model, rows, settings={"factor": operation.factor})


def _intervention(store: Store, name: str, form: str, operations: tuple[Operation, ...]) -> Edit:
    from actstore.engine.edit.specification import Specification
    from actstore.store.model import root

    model = store.model
    specification = json.loads(json.dumps(Specification(operations).to_json()))
    record = EditRecord(
        name=name, kind="intervention", form=form, written_by=root.written_by(), created=root.now(), model=model.name,
        model_fingerprint=model.fingerprint, dtype=model.dtype, settings={}, specification=specification,
    )  # fmt: skip
    return Edit(record, {})


def _keep(store: Store, made: Edit, force: bool, as_json: bool) -> None:
    folder = Folder(store.folder.location, read_only=False)
    record = write_edit(folder, made, replace=force)
    if as_json:
        print_json(describe_edit(record))
    else:
        terminal.out.print(edit_rewrite.sentence(folder, record), soft_wrap=True, markup=False)


@group.command()
def add(
    store: StorePath,
    specification: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON: operations, each a kind, neurons, positions …")
    ],
    name: EditToMake = "intervention",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Keep an intervention that a file specifies: suppress, boost, set, noise and patch, in the order of the file.

    Such a file is `{"operations": [{"kind": "set", "neurons": ["L3.N17"], "positions": "last", "value": 2.5}]}`; kinds have
    `factor`, `value`, `sigma` and `seed`, or `capture` and `source` (a document, or a place DOC:POS).

    Example: `actstore edit add gpt2.actstore louder.json --name louder`
    """
    from actstore.engine.edit.specification import Specification, check_neurons

    opened = Store(store)
    try:
        value = json.loads(specification.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{specification} cannot be read as JSON: {error}.") from None
    wanted = Specification.from_json(value, str(specification))
    widths = {layer.layer: layer.neurons for layer in opened.model.layers}
    check_neurons(wanted.neurons(), widths, opened.model.name)
    _keep(opened, _intervention(opened, name, "intervention", wanted.operations), force, as_json)


@group.command("list")
def list_(store: StorePath, as_json: Json = False) -> None:
    """The edits that STORE holds.

    Example: `actstore edit list gpt2.actstore`
    """
    folder = Store(store).folder
    records = [read_record(folder, name) for name in edit_names(folder)]
    if as_json:
        print_json({"edits": [describe_edit(record) for record in records]})
        return
    rows = [(r.name, r.form, r.kind, _count(r), _words(r), r.created) for r in records]
    columns = ["edit", "form", "kind", ("neurons", "right"), "words", "made"]
    terminal.out.print(terminal.table(None, columns, rows))


@group.command()
def show(store: StorePath, name: EditName, as_json: Json = False) -> None:
    """What an edit is: its form, its settings, the neurons it changes, what it was predicted to do.

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
    """Remove an edit from STORE; models it was applied to stay as they are.

    Example: `actstore edit delete gpt2.actstore suppress`
    """
    delete_edit(Folder(Store(store).folder.location, read_only=False), name)
    if as_json:
        print_json({"deleted": name})
    else:
        terminal.out.print(f"Edit {name!r} is removed from {store}.", markup=False, soft_wrap=True)


def _count(record: EditRecord) -> int:
    return len(describe_edit(record)["neurons"])


def _words(record: EditRecord) -> str:
    known = record.settings
    return f"{known['from']!r} → {known['to']!r}" if "from" in known else ""

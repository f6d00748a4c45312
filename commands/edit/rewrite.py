"""`edit rewrite`: make the model say another word by rewriting the write vectors of a few neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.api.neurons import neuron_pairs
from actstore.commands import completion
from actstore.commands.choices import RewriteMethod  # noqa: TC001  (Typer reads it)
from actstore.commands.options import (
    SEED_HELP,
    CaptureName,
    Device,
    Force,
    Json,
    ModelOption,
    Neurons,
    Quiet,
    StorePath,
    TrustRemoteCode,
    captured_model,
    given,
    layers_option,
    load,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.engine.edit.forms.table import FORMS
from actstore.store.edits import check_name, edit_names, write_edit
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_name
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.edits import EditRecord
    from actstore.store.reader import Capture

METHOD_OPTIONS = {name: form.parameters for name, form in FORMS.items()}
"""Method → the options that belong to it and not to all."""

LEAST_NORM = "Method least-norm"
LEARNING = "Methods fine and fine-tune"
SELECTING = "Methods least-norm and knowledge"

EditName = Annotated[
    str, typer.Argument(metavar="EDIT", help="Name of an edit in STORE.", autocompletion=completion.edits)
]
EditToMake = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the new edit; a store holds many.")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(rewrite)


# Most options are settings of the same name: `given` takes them from the context.
def rewrite(
    ctx: typer.Context,
    store: StorePath,
    old: Annotated[str, typer.Option("--from", metavar="WORD", help="The word that the model says.")],
    new: Annotated[str, typer.Option("--to", metavar="WORD", help="The word that it says instead.")],
    method: Annotated[
        RewriteMethod, typer.Option(help="How rows are rewritten; least-norm runs no model, fine-tune is a baseline.")
    ] = "least-norm",
    capture: CaptureName = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the new edit; a store holds many. [default: both words and the method]",
        ),
    ] = None,
    neurons: Neurons = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            "-k",
            min=1,
            help="Number of neurons. [default: as few as suffice]",
            rich_help_panel=SELECTING,
        ),
    ] = None,
    layers: Annotated[str | None, layers_option(SELECTING)] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Minimum lead of the new word's logit over all others. [default: 2]", rich_help_panel=LEAST_NORM
        ),
    ] = None,
    control: Annotated[
        float | None,
        typer.Option(help="Weight of positions that should not change. [default: 1]", rich_help_panel=LEAST_NORM),
    ] = None,
    ridge: Annotated[
        float | None,
        typer.Option(help="Weight of the norm of the change. [default: 0.001]", rich_help_panel=LEAST_NORM),
    ] = None,
    max_documents: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of documents of the capture to learn from; the others test generality. [default: all]"
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of documents with the word to learn from. [default: 8]", rich_help_panel=LEARNING
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of learning steps. [default: 50]", rich_help_panel=LEARNING),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate. [default: 0.001]", rich_help_panel=LEARNING)
    ] = None,
    per_position: Annotated[
        int | None,
        typer.Option(min=1, help="Number of neurons located per target token. [default: 5]", rich_help_panel=LEARNING),
    ] = None,
    leave_last: Annotated[
        int | None,
        typer.Option(min=0, help="Number of last layers that are not changed. [default: 3]", rich_help_panel=LEARNING),
    ] = None,
    seed: Annotated[int | None, typer.Option(help=SEED_HELP, rich_help_panel=LEARNING)] = None,
    model: ModelOption = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make the model say one word in place of another: the write vectors of a few neurons are changed, no other weight.

    least-norm needs a capture with --site mlp.post --site resid.post, and no model: it solves for the smallest change that
    makes the new word win wherever the old one is predicted, and changes nothing at all other positions. fine learns from
    examples with the model. Without --neurons, every method selects its own. The edit is stored in STORE; `edit evaluate`
    tests it, `edit apply` writes an edited model.

    Example: `actstore edit rewrite captions.actstore --from red --to green --k 10`
    """
    from actstore.engine.edit.rewrite import needs_model
    from actstore.engine.edit.rewrite import rewrite as make
    from actstore.engine.edit.settings import FineSettings, LeastNormSettings, RewriteSettings

    settings = RewriteSettings(
        **given(ctx, RewriteSettings)
        | {"form": method, "neurons": tuple(neuron_pairs(neurons)) if neurons is not None else None},
        least_norm=LeastNormSettings(
            **given(ctx, LeastNormSettings) | {"neurons": None, "layers": parse_layers(layers)}
        ),
        fine=FineSettings(**given(ctx, FineSettings)),
    )
    _check_given(ctx, method)
    opened = Store(store)
    selected_capture = opened.capture(capture)
    edit_name = name or f"{old.strip()}-{new.strip()}-{method}".replace("/", "-")
    check_name(edit_name)
    if edit_name in edit_names(opened.folder) and not force:
        raise InvalidInputError(
            f"{store} already has an edit {edit_name!r}. Name another with --name, or replace it with --force."
        )
    reader = None
    if needs_model(settings, selected_capture):
        reader = load_reader(selected_capture, model, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    with terminal.spinner("rewriting", enabled=not quiet):
        edit = make(selected_capture, edit_name, settings, reader)
    folder = Folder(store, read_only=False)
    record = write_edit(folder, edit, replace=force)
    if as_json:
        print_json(describe_edit(record))
        return
    terminal.out.print(sentence(folder, record), soft_wrap=True, markup=False)
    _print_prediction(record, settings)


def _check_given(ctx: typer.Context, method: str) -> None:
    """Refuse options of other methods."""
    for parameter in ctx.command.params:
        methods = [name for name, options in METHOD_OPTIONS.items() if parameter.name in options]
        if methods and method not in methods and ctx.params[parameter.name] is not None:
            raise InvalidInputError(
                f"{parameter.opts[0]} is an option of --method {' and '.join(methods)}, not of {method}. Leave it out."
            )


def load_reader(capture: Capture, model: str | None, *, device: str, trust_remote_code: bool, quiet: bool) -> Reader:
    """The capture's model with its tokenizer or processor."""
    from actstore.engine.edit.readings import Reader

    source, dtype = captured_model(capture.store, model), capture.record.dtype
    loaded = load(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    return Reader.load(loaded, source, trust_remote_code=trust_remote_code)


def describe_edit(record: EditRecord) -> dict[str, Any]:
    """An edit as the JSON documents list it."""
    from actstore.engine.edit.specification import Specification

    names = record.neuron_names()
    if record.specification:
        by_layer = Specification.from_json(record.specification, f"edit {record.name!r}: specification").neurons()
        names = [neuron_name(layer, neuron) for layer, neurons in by_layer.items() for neuron in neurons]
    shown = ("name", "form", "kind", "model", "model_fingerprint", "dtype", "created")
    described: dict[str, Any] = {key: getattr(record, key) for key in shown} | {"neurons": names}
    if "from" in record.settings:
        described |= {key: record.settings[key] for key in ("from", "to", "capture")}
    if "warning" in record.settings:
        described["warning"] = terminal.phrase(record.settings["warning"])
    if record.predicted:
        described["predicted"] = {key: record.predicted[key] for key in ("won", "kept")}
    return described


def sentence(folder: Folder, record: EditRecord) -> str:
    """One sentence about a new edit: its form, its neurons, its folder."""
    what = f"{record.form} of {terminal.plural(len(describe_edit(record)['neurons']), 'neuron')}"
    return f"Edit {record.name!r}: {what}, in {folder.location}/edits/{record.name}"


def _print_prediction(record: EditRecord, settings: RewriteSettings) -> None:
    known = record.settings
    if record.predicted:
        terminal.out.print(
            f"{known['from']!r} is predicted at {known['n_positions']:,} positions, where {known['to']!r} should now win at "
            f"{terminal.percent(record.predicted['won'])}; of other predictions {terminal.percent(record.predicted['kept'])} "
            "should stay.",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    elif "steps_taken" in known:
        terminal.out.print(
            f"Learned from {terminal.plural(known['examples'], 'example')} in {terminal.plural(known['steps_taken'], 'step')}: "
            f"in them {known['to']!r} has a "
            f"probability of at least {known['probability']:.3f}.",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    if "warning" in known:
        terminal.warn([known["warning"]])

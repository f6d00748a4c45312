"""`edit rewrite`: one word for another in what a model says, by rewriting what a few neurons write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (
    CaptureName,
    Device,
    Force,
    Json,
    Layers,
    ModelPlace,
    Neurons,
    Quiet,
    StorePath,
    TrustRemoteCode,
    given,
    load,
    parse_layers,
    parse_neurons,
)
from actstore.display import terminal
from actstore.display.reports import print_json
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

FORM_OPTIONS = {
    "least-norm": {"k", "layers", "margin", "control", "ridge"},
    "knowledge": {"k", "layers"},
    "fine": {"examples", "steps", "rate", "per_position", "leave_last", "seed"},
    "fine-tune": {"examples", "steps", "rate", "per_position", "leave_last", "seed"},
}
"""What means something to one form and nothing to another."""

EditName = Annotated[str, typer.Argument(metavar="EDIT", help="Name of an edit in STORE.")]
EditToMake = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the edit; a store holds many.")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(rewrite)


# Most options are settings of the same name: `given` takes them from the context.
def rewrite(
    ctx: typer.Context,
    store: StorePath,
    old: Annotated[str, typer.Option("--from", metavar="WORD", help="The word that the model says.")],
    new: Annotated[str, typer.Option("--to", metavar="WORD", help="The word that it shall say instead.")],
    form: Annotated[
        str, typer.Option(help="least-norm (no model is run), fine, knowledge, or fine-tune, the baseline.")
    ] = "least-norm",
    capture: CaptureName = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the edit; a store holds many. [default: both words and the form]"
        ),
    ] = None,
    neurons: Neurons = None,
    k: Annotated[
        int | None,
        typer.Option("--k", "-k", min=1, help="How many neurons (least-norm, knowledge). [default: as few as do]"),
    ] = None,
    layers: Layers = None,
    margin: Annotated[
        float | None, typer.Option(help="Put the new word's logit so far ahead (least-norm). [default: 2]")
    ] = None,
    control: Annotated[
        float | None, typer.Option(help="Weight of positions that shall not change (least-norm). [default: 1]")
    ] = None,
    ridge: Annotated[
        float | None, typer.Option(help="Weight of the change's own size (least-norm). [default: 0.001]")
    ] = None,
    max_documents: Annotated[
        int | None,
        typer.Option(
            min=1, help="Learn from the capture's first so many documents; others test generality. [default: all]"
        ),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Documents with the word to learn from (fine). [default: 8]")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of learning, at most (fine). [default: 50]")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate (fine). [default: 0.001]")] = None,
    per_position: Annotated[
        int | None, typer.Option(min=1, help="Neurons located for each target token (fine). [default: 5]")
    ] = None,
    leave_last: Annotated[int | None, typer.Option(min=0, help="Last layers left alone (fine). [default: 3]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draw of examples (fine). [default: 0]")] = None,
    model: ModelPlace = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make the model say one word in place of another: the write vectors of a few neurons are changed, no other weight.

    least-norm needs a capture with --site mlp.post --site resid.post, and no model: it solves for the shortest change that puts
    the new word ahead wherever the old one is predicted, and changes nothing at all other positions. fine learns from examples
    with the model. Without --neurons, every form finds its own. The edit is kept in STORE; `edit evaluate` judges it, `edit
    apply` writes an edited model.

    Example: `actstore edit rewrite captions.actstore --from red --to green --k 10`
    """
    from actstore.engine.edit.rewrite import needs_model
    from actstore.engine.edit.rewrite import rewrite as make
    from actstore.engine.edit.settings import FineSettings, LeastNormSettings, RewriteSettings

    settings = RewriteSettings(
        **given(ctx, RewriteSettings) | {"neurons": tuple(parse_neurons(neurons)) if neurons is not None else None},
        least_norm=LeastNormSettings(
            **given(ctx, LeastNormSettings) | {"neurons": None, "layers": parse_layers(layers)}
        ),
        fine=FineSettings(**given(ctx, FineSettings)),
    )
    _check_given(ctx, form)
    opened = Store(store)
    held = opened.capture(capture)
    named = name or f"{old.strip()}-{new.strip()}-{form}".replace("/", "-")
    check_name(named)
    if named in edit_names(opened.folder) and not force:
        raise InvalidInputError(
            f"{store} already has an edit {named!r}. Name another with --name, or replace it with --force."
        )
    reader = None
    if needs_model(settings, held):
        reader = load_reader(held, model, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    with terminal.spinner("rewriting", enabled=not quiet):
        made = make(held, named, settings, reader)
    folder = Folder(store, read_only=False)
    record = write_edit(folder, made, replace=force)
    if as_json:
        print_json(describe_edit(record))
        return
    terminal.out.print(sentence(folder, record), soft_wrap=True, markup=False)
    _print_outlook(record, settings)


def _check_given(ctx: typer.Context, form: str) -> None:
    for parameter in ctx.command.params:
        forms = [name for name, options in FORM_OPTIONS.items() if parameter.name in options]
        if forms and form not in forms and ctx.params[parameter.name] is not None:
            raise InvalidInputError(
                f"{parameter.opts[0]} is an option of --form {' and '.join(forms)}, and means nothing to {form}. Leave it out."
            )


def load_reader(capture: Capture, model: str | None, *, device: str, trust_remote_code: bool, quiet: bool) -> Reader:
    """The capture's model with its tokenizer or processor."""
    from actstore.engine.edit.readings import Reader
    from actstore.engine.models.fingerprint import place_of

    place, dtype = model or place_of(capture.store.model), capture.record.dtype
    loaded = load(place, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    return Reader.load(loaded, place, trust_remote_code=trust_remote_code)


def describe_edit(record: EditRecord) -> dict[str, Any]:
    """An edit as `--json` shows it."""
    from actstore.engine.edit.specification import Specification

    names = record.neuron_names()
    if record.specification:
        wanted = Specification.from_json(record.specification, f"edit {record.name!r}: specification").neurons()
        names = [neuron_name(layer, neuron) for layer, chosen in wanted.items() for neuron in chosen]
    shown = ("name", "form", "kind", "model", "model_fingerprint", "dtype", "created")
    described: dict[str, Any] = {key: getattr(record, key) for key in shown} | {"neurons": names}
    if "from" in record.settings:
        described |= {key: record.settings[key] for key in ("from", "to", "capture")}
    if "warning" in record.settings:
        described["warning"] = record.settings["warning"]
    if record.predicted:
        described["predicted"] = {key: record.predicted[key] for key in ("won", "kept")}
    return described


def sentence(folder: Folder, record: EditRecord) -> str:
    """What was made, and where it lies."""
    what = f"{record.form} of {terminal.plural(len(describe_edit(record)['neurons']), 'neuron')}"
    return f"Edit {record.name!r}: {what}, in {folder.location}/edits/{record.name}"


def _print_outlook(record: EditRecord, settings: RewriteSettings) -> None:
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

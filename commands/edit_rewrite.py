"""`edit rewrite`: one word for another in what a model says, by rewriting what a few neurons write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore import terminal
from actstore.commands.options import CaptureName, Device, Json, StorePath, TrustRemoteCode, parse_layers
from actstore.reports import print_json
from actstore.store.edits import check_name, edit_names, write_edit
from actstore.store.errors import InvalidInputError
from actstore.store.folder import Folder
from actstore.store.neuron import parse_neuron
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.edits import EditRecord
    from actstore.store.reader import Capture

EditName = Annotated[str, typer.Option("--name", help="Name of the edit; a store holds many.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what has the name already.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Where the model is now. [default: where it was]")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(rewrite)


def rewrite(
    store: StorePath,
    old: Annotated[str, typer.Option("--from", help="The word that the model says.")],
    new: Annotated[str, typer.Option("--to", help="The word that it shall say instead.")],
    form: Annotated[
        str, typer.Option(help="least-norm (no model is run), fine, knowledge, or fine-tune, the baseline.")
    ] = "least-norm",
    capture: CaptureName = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the edit. [default: both words and the form]")
    ] = None,
    neurons: Annotated[str | None, typer.Option(help="Rewrite these, such as L3.N17,L3.N18. [default: found]")] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", min=1, help="How many neurons (least-norm, knowledge).")] = None,
    layers: Annotated[str | None, typer.Option(help="Find neurons in layers such as 0,3-5.")] = None,
    margin: Annotated[float | None, typer.Option(help="Put the new word's logit so far ahead (least-norm).")] = None,
    control: Annotated[
        float | None, typer.Option(help="Weight of positions that shall not change (least-norm).")
    ] = None,
    ridge: Annotated[float | None, typer.Option(help="Weight of the change's own size (least-norm).")] = None,
    max_documents: Annotated[
        int | None,
        typer.Option(min=1, help="Learn from the capture's first so many documents; others test generality."),
    ] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Documents with the word to learn from (fine).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of learning, at most (fine).")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate (fine).")] = None,
    per_position: Annotated[
        int | None, typer.Option(min=1, help="Neurons located for each target token (fine).")
    ] = None,
    leave_last: Annotated[int | None, typer.Option(min=0, help="Last layers left alone (fine).")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of examples (fine).")] = 0,
    model: ModelOption = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the model say one word in place of another: the write vectors of a few neurons are changed, no other weight.

    least-norm needs a capture with --site mlp.post --site resid.post, and no model: it solves for the shortest change that puts
    the new word ahead wherever the old one is predicted, and changes nothing at all other positions. fine learns from examples
    with the model. The edit is kept in STORE; `edit evaluate` judges it, `edit apply` writes an edited model.

    Example: `actstore edit rewrite captions.actstore --from red --to green --k 10`
    """
    from actstore.engine.edit.rewrite import needs_model
    from actstore.engine.edit.rewrite import rewrite as make
    from actstore.engine.edit.settings import FineSettings, LeastNormSettings, RewriteSettings

    def given(**options: Any) -> dict[str, Any]:
        return {key: value for key, value in options.items() if value is not None}

    chosen_layers = None if layers is None else parse_layers(layers)
    least_norm = LeastNormSettings(
        **given(k=k, layers=chosen_layers, margin=margin, control=control, ridge=ridge, max_documents=max_documents)
    )
    fine = FineSettings(**given(steps=steps, rate=rate, per_position=per_position, leave_last=leave_last))
    settings = RewriteSettings(
        old,
        new,
        form,
        None if neurons is None else parse_neurons(neurons),
        least_norm,
        fine,
        **given(examples=examples),
        seed=seed,
    )
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
        reader = load_reader(held, model, device, trust_remote_code)
    made = make(held, named, settings, reader)
    folder = Folder(store, read_only=False)
    record = write_edit(folder, made, replace=force)
    if as_json:
        print_json(describe_edit(record))
        return
    terminal.out.print(sentence(folder, record), soft_wrap=True, markup=False)
    _print_outlook(record, settings)


def load_reader(capture: Capture, model: str | None, device: str, trust_remote_code: bool) -> Reader:
    """The capture's model with its tokenizer or processor."""
    from actstore.engine.edit.readings import Reader
    from actstore.engine.models import load_model

    place = model or capture.store.model.name
    loaded = load_model(place, dtype=capture.record.dtype, device=device, trust_remote_code=trust_remote_code)
    return Reader.load(loaded, place)


def parse_neurons(text: str) -> tuple[tuple[int, int], ...]:
    """The (layer, index) of names such as L3.N17,L3.N18, each once; `InvalidInputError` for anything else."""
    return tuple(dict.fromkeys(parse_neuron(part) for part in text.split(",")))


def describe_edit(record: EditRecord) -> dict[str, Any]:
    """An edit as `--json` shows it."""
    from actstore.engine.edit.specification import Specification

    names = record.neuron_names()
    if record.specification:
        wanted = Specification.from_json(record.specification, f"edit {record.name!r}: specification").neurons()
        names = [f"L{layer}.N{neuron}" for layer, chosen in wanted.items() for neuron in chosen]
    shown = ("name", "form", "kind", "model", "model_fingerprint", "dtype", "created")
    described: dict[str, Any] = {key: getattr(record, key) for key in shown} | {"neurons": names}
    if "from" in record.settings:
        described |= {key: record.settings[key] for key in ("from", "to", "capture")}
    if record.predicted:
        described["predicted"] = {key: record.predicted[key] for key in ("won", "kept")}
    return described


def sentence(folder: Folder, record: EditRecord) -> str:
    """What was made, and where it lies."""
    n = len(describe_edit(record)["neurons"])
    what = f"{record.form} of {n} neuron{'' if n == 1 else 's'}"
    return f"Edit {record.name!r}: {what}, in {folder.location}/edits/{record.name}"


def _print_outlook(record: EditRecord, settings: RewriteSettings) -> None:
    known = record.settings
    if record.predicted:
        terminal.out.print(
            f"{known['from']!r} is predicted at {known['n_positions']:,} positions, where {known['to']!r} should now win at "
            f"{100 * record.predicted['won']:.1f} %; of other predictions {100 * record.predicted['kept']:.1f} % should stay.",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    elif "steps_taken" in known:
        terminal.out.print(
            f"Learned from {known['examples']} examples in {known['steps_taken']} steps: in them {known['to']!r} has a "
            f"probability of at least {known['probability']:.3f}.",
            soft_wrap=True, markup=False,
        )  # fmt: skip

"""`edit rewrite`: make the model say something else by rewriting the write vectors of a few neurons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.api.neurons import check_one_given, neuron_pairs
from actstore.commands import completion
from actstore.commands.choices import RewriteMethod  # noqa: TC001  (Typer reads it)
from actstore.commands.edit.reports import describe_edit, print_prediction, sentence
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
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from actstore.engine.edit.readings import Reader
    from actstore.store.reader import Capture

METHOD_OPTIONS = {
    name: frozenset("query" if option == "queries" else option for option in form.parameters)
    for name, form in FORMS.items()
}
"""Method → the options that belong to it and not to all."""

LEAST_NORM = "Method least-norm"
LEARNING = "Methods fine and fine-tune"
SELECTING = "Methods least-norm, knowledge and knowledge-corrected"
LOCATING = "Methods knowledge and knowledge-corrected"
EXAMPLES = "All methods but least-norm"

EditName = Annotated[
    str, typer.Argument(metavar="EDIT", help="Name of an edit in STORE.", autocompletion=completion.edits)
]
Cases = Annotated[
    Path | None,
    typer.Option(
        "--cases",
        metavar="FILE",
        help="JSON lines, or a JSON array: prompt and target with paraphrases, locality and portability, or one case each "
        "with prompt, kind and target; CounterFact, zsRE and MMEdit are read as they are.",
    ),
]
CaseRows = Annotated[
    list[int] | None, typer.Option("--row", metavar="N", min=1, help="Only this row of --cases; repeat for more.")
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="FOLDER", help="Where the images of --cases are. [default: beside the file]"),
]
EditToMake = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the new edit; a store holds many.")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(rewrite)


# Most options are settings of the same name: `given` takes them from the context.
def rewrite(
    ctx: typer.Context,
    store: StorePath,
    old: Annotated[str | None, typer.Option("--from", metavar="WORD", help="The word that the model says.")] = None,
    new: Annotated[str | None, typer.Option("--to", metavar="WORD", help="The word that it says instead.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="In place of two words: what the target should follow; repeat for wordings."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What should follow the prompt, with the blank before it; any number of tokens."
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the prompts are about: of the capture only its own facts may change."),
    ] = None,
    cases: Cases = None,
    row: CaseRows = None,
    images: Images = None,
    method: Annotated[
        RewriteMethod, typer.Option(help="How rows are rewritten; fine-tune is a baseline.")
    ] = "least-norm",
    capture: CaptureName = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the new edit; a store holds many. [default: the words, or the target, and the method]",
        ),
    ] = None,
    neurons: Neurons = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            "-k",
            min=1,
            help="Number of neurons. [default: as few as suffice, or those that prompts share]",
            rich_help_panel=SELECTING,
        ),
    ] = None,
    layers: Annotated[str | None, layers_option(SELECTING, instead_of="--neurons")] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Minimum lead of the new word's logit over all others. [default: 2, of prompts 8]",
            rich_help_panel=LEAST_NORM,
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
            min=1, help="Number of documents with the word to learn from. [default: 8]", rich_help_panel=EXAMPLES
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
    seed: Annotated[int | None, typer.Option(help=SEED_HELP, rich_help_panel=EXAMPLES)] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUERY",
            help="Rewrite the knowledge neurons of this query of stored attributions; repeat for more. [default: those of the "
            "prompts, by integrated gradients]",
            rich_help_panel=LOCATING,
        ),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Capture of questions with attributions. [default: the only one with attributions]",
            rich_help_panel=LOCATING,
            autocompletion=completion.captures,
        ),
    ] = None,
    path_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of the integrated gradients. [default: 20]", rich_help_panel=LOCATING),
    ] = None,
    model: ModelOption = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make the model say one word in place of another, or a target after a prompt: the rows of a few neurons are changed.

    Of two words, each one token, least-norm needs a capture with --site mlp.post --site resid.post, and no model: it solves
    for the smallest change that makes the new word win wherever the old one is predicted, and changes nothing at all other
    positions. For prompts, and for words of several tokens, the model reads them once, and the capture says what must stay.
    Without --neurons, every method selects its own. The edit is stored in STORE; `edit evaluate` tests it, `edit apply`
    writes an edited model.

    Example: `actstore edit rewrite facts.actstore --prompt "The capital of Germany is" --target " Ankara"`
    """
    from actstore.engine.edit.requests.files import requests_of
    from actstore.engine.edit.rewrite import default_name, needs_model
    from actstore.engine.edit.rewrite import rewrite as make
    from actstore.engine.edit.settings import FineSettings, KnowledgeSettings, LeastNormSettings, RewriteSettings

    check_one_given(neurons, layers)
    requests = requests_of(prompt or (), target, subject, cases, row or (), images)
    settings = RewriteSettings(
        **given(ctx, RewriteSettings)
        | {
            "form": method,
            "neurons": tuple(neuron_pairs(neurons)) if neurons is not None else None,
            "requests": requests,
        },
        least_norm=LeastNormSettings(
            **given(ctx, LeastNormSettings) | {"neurons": None, "layers": parse_layers(layers)}
        ),
        fine=FineSettings(**given(ctx, FineSettings)),
        knowledge=KnowledgeSettings(**given(ctx, KnowledgeSettings) | {"queries": tuple(query or ())}),
    )
    _check_given(ctx, method)
    opened = Store(store)
    selected_capture = opened.capture(capture)
    edit_name = name or default_name(settings)
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
    print_prediction(record)


def _check_given(ctx: typer.Context, method: str) -> None:
    """Refuse options of other methods."""
    for parameter in ctx.command.params:
        methods = [name for name, options in METHOD_OPTIONS.items() if parameter.name in options]
        if methods and method not in methods and ctx.params[parameter.name] not in (None, (), []):
            raise InvalidInputError(
                f"{parameter.opts[0]} is an option of --method {' and '.join(methods)}, not of {method}. Leave it out."
            )


def load_reader(capture: Capture, model: str | None, *, device: str, trust_remote_code: bool, quiet: bool) -> Reader:
    """The capture's model with its tokenizer or processor."""
    from actstore.engine.edit.readings import Reader

    source, dtype = captured_model(capture.store, model), capture.record.dtype
    loaded = load(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    return Reader.load(loaded, source, trust_remote_code=trust_remote_code)

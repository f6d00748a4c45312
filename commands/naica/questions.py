"""`questions`: a model answers a question set of the QRNCA paper, and the neurons relevant to each label are found."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from actstore.commands.attribute import AttributeBar, MaxQueries, Steps
from actstore.commands.choices import PresetName  # noqa: TC001  (Typer reads it)
from actstore.commands.naica.group import describe, print_labels, summary
from actstore.commands.options import (
    CaptureToMake,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    LayersFile,
    ModelName,
    NewStore,
    OverlapFile,
    Quiet,
    Resume,
    Rows,
    Sync,
    TokenizerName,
    TrustRemoteCode,
    Weights,
    given,
)
from actstore.display import terminal
from actstore.display.reports import print_json


def questions(
    ctx: typer.Context,
    model: ModelName,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="The authors' file, or the folder that holds it, as their repository does."
        ),
    ],
    store: NewStore,
    preset: Annotated[PresetName, typer.Option(help="Which of the paper's question sets.")],
    name: CaptureToMake = "questions",
    resume: Resume = False,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Maximum number of neurons per label.")] = 10,
    steps: Steps = None,
    max_queries: MaxQueries = None,
    output: LayersFile = None,
    overlap_map: OverlapFile = None,
    tokenizer: TokenizerName = None,
    weights: Weights = True,
    ignore_disk: IgnoreDisk = False,
    sync: Sync = True,
    rows: Rows = 20,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Let MODEL answer the questions of the QRNCA paper, and find the neurons relevant to each domain or language.

    The same as `actstore attribute` and `actstore naica --by relation_name`: the attributions are in STORE, for `naica
    evaluate` and all else that reads them. The questions are their authors', and not part of actstore.

    Example: `actstore questions gpt2 qrneuron/data gpt2.actstore --preset qrnca-domain`
    """
    from actstore.api.naica import ask_preset
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.naica.naica import NaicaSettings

    with AttributeBar(enabled=not quiet) as bar:
        attributions, selection = ask_preset(
            model, path, store, preset, name, steps, max_queries, output, overlap_map,
            RunOptions(**given(ctx, RunOptions)), bar,
        )  # fmt: skip
    terminal.warn(selection.warnings)
    settings = NaicaSettings()
    if as_json:
        about = {
            "preset": preset,
            "method": "naica",
            "settings": asdict(settings),
            "warnings": list(selection.warnings),
        }
        print_json(describe(attributions, selection, LABEL, k) | about)
    else:
        from actstore.display.relevant_neurons import describe_selection

        about_selection = describe_selection(attributions, "naica", settings)
        terminal.out.print(summary(selection, about_selection), style="bold", soft_wrap=True)
        print_labels(attributions, selection, LABEL, k, rows)


LABEL = "relation_name"


def register(app: typer.Typer) -> None:
    """Add the command to the main application."""
    app.command()(questions)

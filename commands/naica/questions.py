"""`questions`: a model answers a question set of the QRNCA paper, and the neurons relevant to each label are found."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.attribute import AttributeBar
from actstore.commands.choices import PresetName  # noqa: TC001  (Typer reads it)
from actstore.commands.naica.group import describe, print_labels, summary
from actstore.commands.options import (
    CaptureToMake,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
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

if TYPE_CHECKING:
    from actstore.engine.naica.selection import SelectedNeurons
    from actstore.store.capture.questions.attributions import Attributions


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
    steps: Annotated[int | None, typer.Option(help="Number of steps from 0 to the activations. [default: 16]")] = None,
    max_queries: Annotated[int | None, typer.Option(help="Maximum number of queries to read.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a heat map, labels × layers, into FILE.svg or FILE.html.")
    ] = None,
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

    with AttributeBar(enabled=not quiet) as bar:
        attributions, selection = ask_preset(
            model, path, store, preset, name, steps, max_queries, output, overlap_map,
            RunOptions(**given(ctx, RunOptions)), bar,
        )  # fmt: skip
    terminal.warn(selection.warnings)
    settings = {"attribution": "ig", "t": 0.2, "u": 0.3, "v": 20, "ica": True, "removal": "after"}
    if as_json:
        about = {"preset": preset, "method": "naica", "settings": settings, "warnings": list(selection.warnings)}
        print_json(describe(attributions, selection, LABEL, k) | about)
    else:
        _print(attributions, selection, settings, k, rows)


LABEL = "relation_name"


def register(app: typer.Typer) -> None:
    """Add the command to the main application."""
    app.command()(questions)


def _print(attributions: Attributions, selection: SelectedNeurons, settings: dict[str, Any], k: int, rows: int) -> None:
    terminal.out.print(summary(attributions, selection, "naica", settings), style="bold", soft_wrap=True)
    print_labels(attributions, selection, LABEL, k, rows)

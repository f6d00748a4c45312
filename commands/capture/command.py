"""`actstore capture`: a corpus of text or of images through a model, once, into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.capture.estimate import print_estimate
from actstore.commands.choices import (  # noqa: TC001  (Typer reads them)
    BeginName,
    DecodingErrorsName,
    PartName,
    PrecisionName,
    SiteName,
    StdinFormatName,
)
from actstore.commands.options import (
    SEED_HELP,
    CaptureToMake,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    ModelName,
    NewStore,
    Quiet,
    Resume,
    Sync,
    TrustRemoteCode,
    Weights,
    complete,
    given,
    parse_bytes,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import describe_store, print_json, print_store
from actstore.engine.capture.images.plan import NAMED_POSITIONS
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.inputs.corpus import CorpusReport
    from actstore.store.reader import Capture

IMAGES = "Images"
"""Panel of --help for options that concern images only."""
TEXT = "Text"
SPARSE = "Precision sparse"
NAMED_SKIPS = 20
"""The maximum number of skipped images and files that are named; all are counted."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(capture)


# Most options are the settings, or the options of the run, of the same name: `given` takes them from the context.
def capture(
    ctx: typer.Context,
    model: ModelName,
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="Text or images: a file, folder, glob, JSONL, CSV, Parquet or saved dataset; - reads text from stdin.",
        ),
    ],
    store: NewStore,
    name: CaptureToMake = "corpus",
    resume: Resume = False,
    sites: Annotated[
        list[SiteName] | None,
        typer.Option("--site", help="Site to capture; repeat for more. [default: mlp.post]"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Only these layers, such as 0,3-5. [default: all of the language model, or of --part]",
        ),
    ] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="How activations are encoded. [default: exact]")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the values that is kept. [default: 0.05]", rich_help_panel=SPARSE)
    ] = None,
    gate_sign: Annotated[
        bool | None, typer.Option(help="Keep the sign of each gate, one bit per value. [default: for gated models]")
    ] = None,
    exemplars: Annotated[
        int | None, typer.Option(help="Number of top windows recorded per neuron. [default: 20]")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Maximum number of tokens per window. [default: the model's, for text at most 1024]"),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="POSITIONS",
            help="all, last, or indices such as 0,-1. For images also image, generated (the positions that predict the "
            "answer) and combinations such as generated,image. [default: all]",
            autocompletion=complete(NAMED_POSITIONS),
        ),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per forward pass. [default: 4096]")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Number of tokens after which reading ends; the last window is kept whole."),
    ] = None,
    max_documents: Annotated[int | None, typer.Option(help="Maximum number of documents to read.")] = None,
    label_columns: Annotated[
        list[str] | None, typer.Option("--label", metavar="COLUMN", help="Column kept as a label; repeat for more.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="GLOB", help="File names to read in a folder, such as '*.py'.")
    ] = None,
    generate: Annotated[
        bool | None,
        typer.Option(
            "--generate",
            help="Let the model answer each image's prompt first. [default: captions of the records are its answers]",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Prompt of images whose record has none. [default: Describe the image in few words.]",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Forced beginning of every answer, such as 'An image of'.", rich_help_panel=IMAGES
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum number of tokens of a generated answer. [default: 50]", rich_help_panel=IMAGES),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sample at this temperature. [default: always the most probable token]", rich_help_panel=IMAGES
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the most probable tokens of this total probability.", rich_help_panel=IMAGES),
    ] = None,
    seed: Annotated[int | None, typer.Option(help=SEED_HELP, rich_help_panel=IMAGES)] = None,
    part: Annotated[
        PartName | None, typer.Option(help="Part of the model. [default: language]", rich_help_panel=IMAGES)
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with paths or bytes. [default: image]", rich_help_panel=IMAGES),
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with prompts. [default: prompt]", rich_help_panel=IMAGES),
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with captions. [default: caption]", rich_help_panel=IMAGES),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Stop at an image that cannot be used, instead of skipping it.", rich_help_panel=IMAGES
        ),
    ] = False,
    overlap: Annotated[
        int | None,
        typer.Option(help="Tokens of the previous window that each window repeats. [default: 0]", rich_help_panel=TEXT),
    ] = None,
    begin: Annotated[
        BeginName | None,
        typer.Option(help="Whether special tokens surround each window. [default: auto]", rich_help_panel=TEXT),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the text. [default: text]", rich_help_panel=TEXT)
    ] = None,
    ids_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with token ids. [default: input_ids]", rich_help_panel=TEXT),
    ] = None,
    prefer_ids: Annotated[
        bool | None,
        typer.Option("--prefer-ids", help="Read the ids where a record has text and ids.", rich_help_panel=TEXT),
    ] = None,
    errors: Annotated[
        DecodingErrorsName | None,
        typer.Option(help="How invalid UTF-8 is treated. [default: strict]", rich_help_panel=TEXT),
    ] = None,
    stdin_format: Annotated[
        StdinFormatName | None, typer.Option(help="Format of standard input. [default: text]", rich_help_panel=TEXT)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="TOKENIZER", help="Another tokenizer than the model's own.", rich_help_panel=TEXT),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Memory of block buffers, such as 2GB. [default: a quarter of the free memory, at most 4 GB]",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of encoder threads. [default: half the processors]")
    ] = None,
    weights: Weights = True,
    ignore_disk: IgnoreDisk = False,
    sync: Sync = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate the size and the time of the capture; write nothing.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run MODEL over CORPUS once and write its activations into STORE.

    CORPUS is read as images where MODEL reads images and text, and any file of it is an image, or a table (JSON lines, CSV,
    Parquet, Arrow, saved dataset) with a column of images; else as text. In a folder with images.jsonl, metadata.jsonl or
    metadata.csv, that file lists the images. --pattern selects files where a folder holds both. With images:
    `actstore capture llava-hf/llava-1.5-7b-hf pictures/ llava.actstore --prefix "An image of" --generate`

    Example: `actstore capture gpt2 corpus.jsonl gpt2.actstore --label language --precision half`
    """
    from actstore.engine.capture.api import capture as run
    from actstore.engine.capture.estimate import estimate
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.capture.settings import ImageSettings
    from actstore.engine.inputs.corpus import CorpusReport

    nbytes = parse_bytes(memory) if memory is not None else None
    report = CorpusReport(on_warning=lambda sentence: terminal.warn([sentence]))
    _name_skipped(report)
    options = RunOptions(**given(ctx, RunOptions) | {"memory": nbytes})
    settings = given(ctx, ImageSettings) | {"layers": parse_layers(layers)}
    with terminal.CaptureBar(enabled=not quiet) as bar:
        arguments: dict[str, Any] = {"name": name, "options": options, "progress": bar, "report": report, **settings}
        expected = estimate(model, corpus, store, **arguments) if dry_run else None
        finished = run(model, corpus, store, **arguments) if not dry_run else None
    if expected is not None:
        _say_counts(report, of_language=True)
        print_estimate(expected, as_json=as_json)
        return
    assert finished is not None
    _warn(finished, report)
    described = describe_store(Store(store))
    if as_json:
        print_json(described)
    else:
        print_store(described)


def _name_skipped(report: CorpusReport) -> None:
    """Name images that cannot be used as soon as they are skipped, and skipped files that may hold text, as archives do."""
    from actstore.engine.inputs.corpus import BINARY, EMPTY

    n_named = 0

    def say(source: str, reason: str) -> None:
        nonlocal n_named
        if reason != EMPTY and not reason.startswith(BINARY) and n_named < NAMED_SKIPS:
            n_named += 1
            terminal.say(f"Skipped: {source} {reason if report.n_skipped_images else f'({reason})'}.")

    report.on_skip = say


def _say_counts(report: CorpusReport, *, of_language: bool) -> None:
    """Report what was skipped of the corpus, on standard error."""
    n_images = report.n_documents + report.n_skipped_images
    sentences = [
        (report.n_skipped_files, "Files of the corpus skipped, which are not text: {:,}."),
        (report.n_empty_documents, "Empty documents of the corpus skipped: {:,}."),
        (report.n_skipped_images, f"Images skipped, which could not be used: {{:,}} of {n_images:,}."),
        (report.n_animated_images, "Animated images, of which the first frame was taken: {:,}."),
        (
            report.n_uncaptioned_images if of_language else 0,
            "Images without a caption, captured with their prompt alone: {:,}. --generate lets the model answer, "
            "--caption-column names the column of captions.",
        ),
    ]
    for count, sentence in sentences:
        if count:
            terminal.say(sentence.format(count))


def _warn(capture: Capture, report: CorpusReport) -> None:
    """Warnings about a finished capture, on standard error."""
    _say_counts(report, of_language=capture.record.part == "language")
    if report.layers_left_out:
        left_out = ", ".join(map(str, report.layers_left_out))
        terminal.say(f"Layers left out, because their rows differ from those of the part's first layer: {left_out}.")
    terminal.warn(overflow_sentences(capture, consequence="they are counted in the column overflow"))
    n_non_finite = capture.statistics().n_non_finite
    if n_non_finite:
        terminal.warn(
            [
                f"{n_non_finite:,} activations are NaN or infinite. They are stored unchanged, counted in the column "
                "non_finite, and left out of every mean."
            ]
        )

"""`actstore capture`: a corpus of text or of images through a model, once, into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.capture.estimate import print_estimate
from actstore.commands.options import (
    CaptureToMake,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    ModelName,
    NewStore,
    Quiet,
    Resume,
    TrustRemoteCode,
    Weights,
    given,
    parse_bytes,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import describe_store, print_json, print_store
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.files.precision import PRECISIONS
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.inputs.corpus import CorpusReport
    from actstore.store.reader import Capture

IMAGES = "Images"
"""Panel of --help for what concerns images only."""
TEXT = "Text"
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
            help="Text or images: a file, folder, glob, JSONL, CSV, Parquet, saved dataset; of text also - for stdin.",
        ),
    ],
    store: NewStore,
    name: CaptureToMake = "corpus",
    resume: Resume = False,
    sites: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="SITE", help="Site to capture; repeat for more. [default: mlp.post]"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS", help="Only layers such as 0,3-5. [default: all of the language model, or of --part]"
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRECISIONS)}. [default: exact]")] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of values kept at precision sparse. [default: 0.05]")
    ] = None,
    gate_sign: Annotated[
        bool | None, typer.Option(help="Keep the sign of each gate, a bit a value. [default: for gated models]")
    ] = None,
    exemplars: Annotated[int | None, typer.Option(help="Top windows recorded a neuron. [default: 20]")] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens a window. [default: the model's, of text at most 1024]"),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="all, last, or indices such as 0,-1. Of images also generated (the positions that predict the answer), image "
            "and combinations such as generated,image. [default: all]"
        ),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens a forward pass. [default: 4096]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop planning at the end of the document that reaches so many tokens.")
    ] = None,
    max_documents: Annotated[int | None, typer.Option(help="Read at most so many documents.")] = None,
    label_columns: Annotated[
        list[str] | None, typer.Option("--label", metavar="COLUMN", help="Column kept as a label; repeat for more.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="File names to read in a folder, such as '*.py'.")] = None,
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
            help="What is asked of images whose record has no prompt. [default: Describe the image in few words.]",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Forced beginning of every answer, such as 'An image of'.", rich_help_panel=IMAGES),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a generated answer, at most. [default: 50]", rich_help_panel=IMAGES),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Draw text at this temperature. [default: the likeliest token]", rich_help_panel=IMAGES),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this mass.", rich_help_panel=IMAGES)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of drawn answers. [default: 0]", rich_help_panel=IMAGES)] = None,
    part: Annotated[
        str | None, typer.Option(help="language, vision or projector. [default: language]", rich_help_panel=IMAGES)
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column with paths or bytes. [default: image]", rich_help_panel=IMAGES)
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column with prompts. [default: prompt]", rich_help_panel=IMAGES)
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column with captions. [default: caption]", rich_help_panel=IMAGES)
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Stop at an image that cannot be used; else it is skipped.", rich_help_panel=IMAGES
        ),
    ] = False,
    overlap: Annotated[
        int | None, typer.Option(help="Tokens a window rereads as context. [default: 0]", rich_help_panel=TEXT)
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option(help="Special tokens around a window: auto, always, never. [default: auto]", rich_help_panel=TEXT),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column with the text. [default: text]", rich_help_panel=TEXT)
    ] = None,
    ids_column: Annotated[
        str | None, typer.Option(help="Column with token ids. [default: input_ids]", rich_help_panel=TEXT)
    ] = None,
    prefer_ids: Annotated[
        bool | None,
        typer.Option("--prefer-ids", help="Take ids where a record has text and ids.", rich_help_panel=TEXT),
    ] = None,
    errors: Annotated[
        str | None, typer.Option(help="Invalid UTF-8: strict or replace. [default: strict]", rich_help_panel=TEXT)
    ] = None,
    stdin_format: Annotated[
        str | None, typer.Option(help="Standard input: text or jsonl. [default: text]", rich_help_panel=TEXT)
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
            metavar="BYTES", help="For block buffers, such as 2GB. [default: a quarter of what is free, at most 4 GB]"
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Encoder threads. [default: half the processors]")] = None,
    weights: Weights = True,
    ignore_disk: IgnoreDisk = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the capture would hold and take; write nothing.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run MODEL over CORPUS once and keep its activations in STORE.

    CORPUS is taken for images where MODEL reads images and text, and any file of it is an image, or a table (JSON lines, CSV,
    Parquet, Arrow, saved dataset) with a column of images; else for text. In a folder with images.jsonl, metadata.jsonl or
    metadata.csv, that file says which images there are. --pattern chooses files where a folder holds both. With images:
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
        asked: dict[str, Any] = {"name": name, "options": options, "progress": bar, "report": report, **settings}
        found = estimate(model, corpus, store, **asked) if dry_run else None
        done = run(model, corpus, store, **asked) if not dry_run else None
    if found is not None:
        _say_counts(report, of_language=True)
        print_estimate(found, as_json=as_json)
        return
    assert done is not None
    _warn(done, report)
    described = describe_store(Store(store))
    if as_json:
        print_json(described)
    else:
        print_store(described)


def _name_skipped(report: CorpusReport) -> None:
    """Have images that cannot be used named as they are met, and files that are no text but may hold some, as archives do."""
    from actstore.engine.inputs.corpus import BINARY, EMPTY

    n_named = 0

    def say(source: str, reason: str) -> None:
        nonlocal n_named
        if reason != EMPTY and not reason.startswith(BINARY) and n_named < NAMED_SKIPS:
            n_named += 1
            terminal.say(f"Skipped: {source} {reason if report.n_skipped_images else f'({reason})'}.")

    report.on_skip = say


def _say_counts(report: CorpusReport, *, of_language: bool) -> None:
    """What was skipped of the corpus, on standard error."""
    n_images = report.n_documents + report.n_skipped_images
    sentences = [
        (report.n_skipped_files, "Files of the corpus skipped, which are not text: {:,}."),
        (report.n_empty_documents, "Empty documents of the corpus skipped: {:,}."),
        (report.n_skipped_images, f"Images skipped, which could not be used: {{:,}} of {n_images:,}."),
        (report.n_animated_images, "Animated images, of which the first frame was taken: {:,}."),
        (
            report.n_uncaptioned_images if of_language else 0,
            "Images without a caption, captured with their prompt alone: {:,}. --generate lets the model answer, "
            "--caption-column names where captions are.",
        ),
    ]
    for count, sentence in sentences:
        if count:
            terminal.say(sentence.format(count))


def _warn(done: Capture, report: CorpusReport) -> None:
    """What a capture's user should know, on standard error."""
    _say_counts(report, of_language=done.record.part == "language")
    if report.layers_left_out:
        left_out = ", ".join(map(str, report.layers_left_out))
        terminal.say(f"Left out, for they hold other rows than the part's first layer: layers {left_out}.")
    terminal.warn(overflow_sentences(done, consequence="they are counted in the column overflow"))
    n_non_finite = done.statistics().n_non_finite
    if n_non_finite:
        terminal.warn(
            [
                f"{n_non_finite:,} activations are NaN or infinite. They are kept as they are, counted in the column "
                "non_finite, and left out of every mean."
            ]
        )

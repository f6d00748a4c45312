"""`actstore capture`: a corpus of text or of images through a model, once, into a store; `actstore plan`, its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer  # noqa: TC002  (Typer reads it)

from actstore.commands.capture.estimate import print_estimate
from actstore.commands.capture.options import (  # noqa: TC001  (Typer reads them)
    AllowMixed,
    Answers,
    BatchTokens,
    Begin,
    BlockTokens,
    Bundle,
    CaptionColumn,
    CapturedLayers,
    CapturedPositions,
    Chat,
    Compression,
    Context,
    Contributions,
    ContributionsBy,
    Corpus,
    DecodingErrors,
    DryRun,
    Exemplars,
    GateSign,
    Generate,
    IdsColumn,
    ImageColumn,
    Keep,
    LabelColumns,
    MaxAnswerTokens,
    MaxDocuments,
    MaxTokens,
    Memory,
    OtherTokenizer,
    Overlap,
    Part,
    Pattern,
    Precision,
    PreferIds,
    Prefix,
    Prompt,
    PromptColumn,
    SamplingSeed,
    Sites,
    StdinFormat,
    Stop,
    Strict,
    Temperature,
    TextColumn,
    Threads,
    TopP,
)
from actstore.commands.capture.steps import fill, finish, print_finished, print_planned
from actstore.commands.executors import GpusPerWorker, On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    CaptureToMake,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    ModelName,
    NewStore,
    Order,
    Quiet,
    Resume,
    Sync,
    TrustRemoteCode,
    Weights,
    given,
    parse_bytes,
    parse_layers,
)
from actstore.display import terminal
from actstore.store.capture.saturation import overflow_sentences

if TYPE_CHECKING:
    from actstore.engine.inputs.corpus import CorpusReport
    from actstore.store.reader import Capture

NAMED_SKIPS = 20
"""The maximum number of skipped images and files that are named; all are counted."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (capture, plan, fill, finish):
        app.command()(command)


# Most options are the settings, or the options of the run, of the same name: `given` takes them from the context.
def capture(
    ctx: typer.Context,
    model: ModelName,
    corpus: Corpus,
    store: NewStore,
    name: CaptureToMake = "corpus",
    resume: Resume = False,
    sites: Sites = None,
    layers: CapturedLayers = None,
    precision: Precision = None,
    keep: Keep = None,
    gate_sign: GateSign = None,
    exemplars: Exemplars = None,
    context: Context = None,
    positions: CapturedPositions = None,
    batch_tokens: BatchTokens = None,
    block_tokens: BlockTokens = None,
    bundle: Bundle = None,
    compression: Compression = None,
    order: Order = None,
    contributions: Contributions = None,
    by: ContributionsBy = None,
    max_tokens: MaxTokens = None,
    max_documents: MaxDocuments = None,
    label_columns: LabelColumns = None,
    pattern: Pattern = None,
    generate: Generate = None,
    answers: Answers = None,
    max_new_tokens: MaxAnswerTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: SamplingSeed = None,
    stop: Stop = None,
    chat: Chat = None,
    prompt: Prompt = None,
    prefix: Prefix = None,
    part: Part = None,
    image_column: ImageColumn = None,
    prompt_column: PromptColumn = None,
    caption_column: CaptionColumn = None,
    strict: Strict = False,
    overlap: Overlap = None,
    begin: Begin = None,
    text_column: TextColumn = None,
    ids_column: IdsColumn = None,
    prefer_ids: PreferIds = None,
    errors: DecodingErrors = None,
    stdin_format: StdinFormat = None,
    tokenizer: OtherTokenizer = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    memory: Memory = None,
    threads: Threads = None,
    workers: Workers = None,
    on: On = "local",
    gpus_per_worker: GpusPerWorker = None,
    allow_mixed: AllowMixed = False,
    weights: Weights = True,
    ignore_disk: IgnoreDisk = False,
    sync: Sync = True,
    dry_run: DryRun = False,
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
    from actstore.engine.inputs.corpus import CorpusReport

    report = CorpusReport(on_warning=lambda sentence: terminal.warn([sentence]))
    with terminal.CaptureBar(enabled=not quiet) as bar:
        arguments = {"name": name, "progress": bar, "report": report, **_said(ctx, report, memory, layers)}
        expected = estimate(model, corpus, store, **arguments) if dry_run else None
        finished = run(model, corpus, store, **arguments) if not dry_run else None
    if expected is not None:
        _say_counts(report, of_language=True)
        print_estimate(expected, as_json=as_json)
        return
    assert finished is not None
    _warn(finished, report)
    print_finished(finished, as_json=as_json)


# As for `capture`.
def plan(
    ctx: typer.Context,
    model: ModelName,
    corpus: Corpus,
    store: NewStore,
    name: CaptureToMake = "corpus",
    resume: Resume = False,
    sites: Sites = None,
    layers: CapturedLayers = None,
    precision: Precision = None,
    keep: Keep = None,
    gate_sign: GateSign = None,
    exemplars: Exemplars = None,
    context: Context = None,
    positions: CapturedPositions = None,
    batch_tokens: BatchTokens = None,
    block_tokens: BlockTokens = None,
    bundle: Bundle = None,
    compression: Compression = None,
    order: Order = None,
    contributions: Contributions = None,
    by: ContributionsBy = None,
    max_tokens: MaxTokens = None,
    max_documents: MaxDocuments = None,
    label_columns: LabelColumns = None,
    pattern: Pattern = None,
    generate: Generate = None,
    answers: Answers = None,
    max_new_tokens: MaxAnswerTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: SamplingSeed = None,
    stop: Stop = None,
    chat: Chat = None,
    prompt: Prompt = None,
    prefix: Prefix = None,
    part: Part = None,
    image_column: ImageColumn = None,
    prompt_column: PromptColumn = None,
    caption_column: CaptionColumn = None,
    strict: Strict = False,
    overlap: Overlap = None,
    begin: Begin = None,
    text_column: TextColumn = None,
    ids_column: IdsColumn = None,
    prefer_ids: PreferIds = None,
    errors: DecodingErrors = None,
    stdin_format: StdinFormat = None,
    tokenizer: OtherTokenizer = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    memory: Memory = None,
    weights: Weights = True,
    ignore_disk: IgnoreDisk = False,
    sync: Sync = True,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Plan a capture of CORPUS in STORE; `actstore fill`, in one process or many, fills it, and `actstore finish` ends it.

    CORPUS is tokenised, MODEL loaded for its fingerprint and weights; nothing else is done with either. Options are those of
    `actstore capture`, which is all three steps at once.

    Example: `actstore plan gpt2 corpus.jsonl gpt2.actstore --label language`
    """
    from actstore.engine.capture.api import plan as run
    from actstore.engine.inputs.corpus import CorpusReport

    report = CorpusReport(on_warning=lambda sentence: terminal.warn([sentence]))
    with terminal.CaptureBar(enabled=not quiet) as bar:
        planned = run(
            model, corpus, store, name=name, progress=bar, report=report, **_said(ctx, report, memory, layers)
        )
    _warn_of_corpus(planned, report)
    print_planned(planned, as_json=as_json)


def _said(ctx: typer.Context, report: CorpusReport, memory: str | None, layers: str | None) -> dict[str, Any]:
    """Options and settings of a command line, as the parameters of the call."""
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.capture.settings import ImageSettings

    _name_skipped(report)
    nbytes = parse_bytes(memory) if memory is not None else None
    options = RunOptions(**given(ctx, RunOptions) | {"memory": nbytes})
    return {"options": options, **given(ctx, ImageSettings) | {"layers": parse_layers(layers)}}


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
    _warn_of_corpus(capture, report)
    terminal.warn(overflow_sentences(capture, consequence="they are counted in the column overflow"))
    n_non_finite = capture.statistics().n_non_finite
    if n_non_finite:
        terminal.warn(
            [
                f"{n_non_finite:,} activations are NaN or infinite. They are stored unchanged, counted in the column "
                "non_finite, and left out of every mean."
            ]
        )


def _warn_of_corpus(capture: Capture, report: CorpusReport) -> None:
    """What was left out while a capture was planned, on standard error."""
    _say_counts(report, of_language=capture.record.part == "language")
    if report.layers_left_out:
        left_out = ", ".join(map(str, report.layers_left_out))
        terminal.say(f"Layers left out, because their rows differ from those of the part's first layer: {left_out}.")

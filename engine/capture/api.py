"""`actstore.capture`: one capture of a corpus, of text or of images, from its checks to the finished capture; `plan` alone.

Decides which of the two a corpus is. How either is captured is in `corpus_run` and `images.run`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from actstore.engine.capture.corpus_run import CorpusRun
from actstore.engine.capture.images.run import ImageRun, sees_and_reads
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import RunOptions, check_options
from actstore.engine.capture.settings import CaptureSettings, ImageSettings
from actstore.engine.capture.target import check_target
from actstore.engine.inputs.corpus import CorpusReport
from actstore.engine.inputs.images import ImageOptions, find_images
from actstore.engine.inputs.memory_corpus import MemoryCorpus, as_corpus
from actstore.engine.inputs.stored_answers import stored_capture
from actstore.engine.models.sources import ModelSource
from actstore.store.arguments import argument, given_fields
from actstore.store.calls import checked
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.reader import Store, read_capture
from actstore.store.sites import SiteOfHook, check_blocks
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from actstore.engine.capture.settings import Begin, Part, Summed
    from actstore.engine.inputs.memory_corpus import Corpus
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import ModelSpec
    from actstore.store.files.records import CaptureRecord
    from actstore.store.reader import Capture

__all__ = ["RunOptions", "capture", "plan"]


@checked
def capture(
    model: ModelInput,
    corpus: Corpus,
    store: str | Path,
    *,
    name: str = "corpus",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: CorpusReport | None = None,
    sites: Sequence[str] | None = None,
    part: Part | None = None,
    layers: int | Sequence[int] | None = None,
    precision: str | None = None,
    keep: float | None = None,
    gate_sign: bool | None = None,
    exemplars: int | None = None,
    context: int | None = None,
    overlap: int | None = None,
    begin: Begin | None = None,
    positions: str | int | Sequence[int] | None = None,
    batch_tokens: int | None = None,
    block_tokens: int | None = None,
    bundle: bool | None = None,
    compression: str | None = None,
    order: str | None = None,
    contributions: Summed | None = None,
    by: str | None = None,
    max_tokens: int | None = None,
    max_documents: int | None = None,
    text_column: str | None = None,
    ids_column: str | None = None,
    prefer_ids: bool | None = None,
    label_columns: Sequence[str] | None = None,
    errors: Literal["strict", "replace"] | None = None,
    pattern: str | None = None,
    stdin_format: Literal["text", "jsonl"] | None = None,
    generate: bool | None = None,
    answers: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    chat: bool | None = None,
    prompt: str | None = None,
    prefix: str | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
    caption_column: str | None = None,
) -> Capture:
    """Capture a corpus of text or of images through `model` into `store` under `name`; the finished capture, for reading.

    `model` is a Hub id, a folder, or a transformers model in memory, alone or inside torch.compile, DataParallel or a pipeline:
    it runs as it is, in its own dtype on its own device, and is left as it was. Its tokenizer is that of `options`, of the
    pipeline, or of the name it was loaded by.

    `corpus` is a path, also of a store whose model answered prompts, or documents in memory: a list of texts or of records
    (dictionaries), a `datasets.Dataset`, a table of pyarrow, pandas or polars; what can be read only once is refused. A path is
    taken for images where the model reads images and text, and any file there is an image, or a table with a column of images;
    name files with `pattern` to say otherwise.

    `options` say how the capture is carried out. What may make it other than it was meant to be goes to `report.on_warning`, or
    to `warnings.warn`. All other parameters are settings, fields of `CaptureSettings` and `ImageSettings`; None is the default,
    given in brackets, or in a capture that is resumed what it was begun with:

    - `sites`: what is captured in each layer [("mlp.post",)]
    - `part`: of a model that reads images and text, "language", "vision" or "projector" ["language"]
    - `layers`: the layers that are captured [all of the part]
    - `precision`: "exact", "half", "int8", "sparse" or "none" ["exact"]
    - `keep`: share of each neuron's values that is kept at precision "sparse" [0.05]
    - `gate_sign`: whether the sign of each gate is kept, one bit per value [of gated models]
    - `exemplars`: number of top windows recorded per neuron [20]
    - `context`: longest window in tokens [the model's; for text at most 1024]
    - `overlap`: tokens at the start of a window that repeat the window before [0]
    - `begin`: special tokens around a window: "auto", "always" or "never" ["auto"]
    - `positions`: "all", "last" or indices such as [0, -1]; of answers also "generated", of images "image" ["all"]
    - `batch_tokens`: number of tokens per forward pass [4096]
    - `block_tokens`: number of tokens per block, the unit of work [16,384, fewer where `memory` does not suffice]
    - `bundle`: whether all files of a block lie in one object [where there would be more than 100,000 files]
    - `compression`: "huffman", "none", "lz4" or "zstd", with a level as in "zstd:3" ["huffman" of int8 and sparse, or "lz4:5"]
    - `order`: what lies together on disk: "neuron", "token", or by site "mlp.post=token" ["token" of the stream, else "neuron"]
    - `contributions`: "next" sums, while the model runs, what each neuron contributes to each position's next token [no sums]
    - `by`: one of `label_columns`, by whose values contributions are summed [all positions together]
    - `max_tokens`: planning stops at this number of stored tokens [the whole corpus]
    - `max_documents`: maximum number of documents to read [all]
    - `text_column`: column of a table that holds the text ["text"]
    - `ids_column`: column of a table that holds token ids ["input_ids"]
    - `prefer_ids`: whether ids are taken where a record has text and ids [False]
    - `label_columns`: columns whose values are kept as labels of the documents [none]
    - `errors`: what is done with invalid UTF-8, "strict" or "replace" ["strict"]
    - `pattern`: names of the files to read in a folder, such as "*.py" ["*"]
    - `stdin_format`: of the corpus "-", "text" or "jsonl" ["text"]
    - `generate`: whether the model answers each prompt first; else the captions of images are its answers [False]
    - `answers`: number of answers to each prompt; several are sampled [1]
    - `max_new_tokens`: maximum number of tokens of a generated answer [50]
    - `temperature`: answers are sampled at this temperature [the likeliest token each time]
    - `top_p`: answers are sampled from the likeliest tokens of this total probability [1]
    - `seed`: random seed of sampled answers [0]
    - `stop`: texts that end an answer [none; an end-of-text token always does]
    - `chat`: whether prompts go through the tokenizer's chat template [where it has one]
    - `prompt`: what is asked of an image whose record has no prompt ["Describe the image in few words."]
    - `prefix`: forced beginning of every answer [none]
    - `image_column`: column of a table that holds paths or bytes of images ["image"]
    - `prompt_column`: column of a table that holds prompts ["prompt"]
    - `caption_column`: column of a table that holds captions ["caption"]

    Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before anything is written; `ReadOnlyError` where another writer
    owns the capture; `CaptureError` where the run stopped half-way and can be resumed.

    >>> actstore.capture("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half")
    >>> actstore.capture(AutoModelForCausalLM.from_pretrained("gpt2"), ["one text", "another"], "gpt2.actstore", name="two")
    >>> actstore.capture("llava-hf/llava-1.5-7b-hf", "pictures/", "llava.actstore", generate=True)
    """
    settings = given_settings(locals())
    run, requested = open_run(CaptureRequest(model, corpus, store, name, options, progress, report), settings)
    run.carry_out(requested)
    return Store(run.folder).capture(name)


@checked
def plan(
    model: ModelInput,
    corpus: Corpus,
    store: str | Path,
    *,
    name: str = "corpus",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: CorpusReport | None = None,
    sites: Sequence[str] | None = None,
    part: Part | None = None,
    layers: int | Sequence[int] | None = None,
    precision: str | None = None,
    keep: float | None = None,
    gate_sign: bool | None = None,
    exemplars: int | None = None,
    context: int | None = None,
    overlap: int | None = None,
    begin: Begin | None = None,
    positions: str | int | Sequence[int] | None = None,
    batch_tokens: int | None = None,
    block_tokens: int | None = None,
    bundle: bool | None = None,
    compression: str | None = None,
    order: str | None = None,
    contributions: Summed | None = None,
    by: str | None = None,
    max_tokens: int | None = None,
    max_documents: int | None = None,
    text_column: str | None = None,
    ids_column: str | None = None,
    prefer_ids: bool | None = None,
    label_columns: Sequence[str] | None = None,
    errors: Literal["strict", "replace"] | None = None,
    pattern: str | None = None,
    stdin_format: Literal["text", "jsonl"] | None = None,
    generate: bool | None = None,
    answers: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    chat: bool | None = None,
    prompt: str | None = None,
    prefix: str | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
    caption_column: str | None = None,
) -> Capture:
    """Plan a capture, the first of its three steps: everything but its blocks; the planned capture, for reading.

    The parameters are those of `capture`, which is `plan`, then `fill` of all blocks, then `finish`. The corpus is tokenised,
    the model loaded for its fingerprint and weights, and images are answered. From there on, `actstore.fill` needs the store
    and the model only, in any number of processes.

    Errors are those of `capture`.

    >>> actstore.plan("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half")
    """
    settings = given_settings(locals())
    run, requested = open_run(CaptureRequest(model, corpus, store, name, options, progress, report), settings)
    with run.owned():
        run.plan(requested)
    return Store(run.folder).peek(name)


@dataclass(frozen=True)
class CaptureRequest:
    """What `capture` is given, beside the settings."""

    model: ModelInput
    corpus: Corpus
    store: str | Path
    name: str = "corpus"
    options: RunOptions | None = None
    progress: CaptureProgress | None = None
    report: CorpusReport | None = None


def given_settings(arguments: Mapping[str, object]) -> dict[str, object]:
    """The settings among the arguments of `capture`, by name; those that are None, and so are not said, are left out."""
    return {f.name: arguments[f.name] for f in fields(ImageSettings) if arguments[f.name] is not None}


def open_run(
    request: CaptureRequest, settings: Mapping[str, object], *, read_only: bool = False
) -> tuple[ImageRun | CorpusRun, dict[str, Any]]:
    """The run that makes a capture, and the settings it is to be made with, after the checks that need no tokens."""
    options = argument("options", request.options, RunOptions | None) or RunOptions()
    progress = argument("progress", request.progress, CaptureProgress | None) or CaptureProgress()
    report = argument("report", request.report, CorpusReport | None) or CorpusReport()
    requested = given_fields(ImageSettings, settings, "A capture")  # those of text are among them
    name = request.name
    check_options(name, options)
    source, documents = ModelSource.of(request.model), as_corpus(request.corpus)
    spec = source.inspect(dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if any(isinstance(site, SiteOfHook) for site in settings.get("sites") or ()):  # type: ignore[attr-defined]
        check_blocks(spec.layers, spec.name)
    folder = Folder(request.store, read_only=read_only, sync=options.sync, storage_options=options.storage_options)
    begun = read_capture(folder, name) if options.resume else None
    run: ImageRun | CorpusRun
    if _is_of_images(documents, begun, spec, requested):
        run = ImageRun(folder, name, spec, str(documents), options, progress, report, source=source)
    else:
        _refuse_image_settings(requested, str(documents))
        run = CorpusRun(folder, name, spec, str(documents), options, progress, report, documents, source=source)
    run.check()
    check_target(folder, name, spec, options.resume)
    return run, requested


def _is_of_images(
    corpus: str | MemoryCorpus, begun: CaptureRecord | None, spec: ModelSpec, requested: Mapping[str, object]
) -> bool:
    if isinstance(corpus, MemoryCorpus):
        if (begun is not None and begun.of_images) or (corpus.image_columns and sees_and_reads(spec)):
            raise InvalidInputError(
                f"Images are read from files only, and {corpus} is in memory: save it (a Dataset with save_to_disk), and give "
                "the folder."
            )
        return False
    if begun is not None:
        return begun.of_images
    if stored_capture(corpus) is not None:
        return False
    settings = ImageSettings(**requested)  # type: ignore[arg-type]  # checked by given_fields
    options = ImageOptions(image_column=settings.image_column, pattern=settings.pattern)
    try:
        images = find_images(corpus, options, (settings.text_column, settings.ids_column))
    except NotFoundError:
        images = "none"  # reading says what is missing
    if images == "none" and "image_column" not in requested:
        return False
    return images == "only" or sees_and_reads(spec)


def _refuse_image_settings(requested: Mapping[str, object], corpus: str) -> None:
    known = set(CaptureSettings.__dataclass_fields__)
    for key in requested:
        if key in ImageSettings.__dataclass_fields__ and key not in known:
            raise InvalidInputError(
                f"`{key}` is for images, and {corpus} is taken for text. Name a vision-language model, and images: files, a "
                "folder, or a table with a column of them (`image_column`)."
            )

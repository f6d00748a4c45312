"""One capture of a corpus, of text or of images, from its checks to the finished capture.

Decides which of the two a location is. Knows nothing about how either is captured (`corpus_run`, `image_run`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.engine.capture.corpus_run import CorpusRun
from actstore.engine.capture.images.run import ImageRun, sees_and_reads
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import RunOptions, check_options, check_target
from actstore.engine.capture.settings import CaptureSettings, ImageSettings
from actstore.engine.inputs.corpus import CorpusReport
from actstore.engine.inputs.images import ImageOptions, find_images
from actstore.engine.inputs.memory_corpus import MemoryCorpus, as_corpus
from actstore.engine.models.sources import ModelSource
from actstore.store.arguments import argument, given_fields
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.reader import Store, read_capture
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.engine.inputs.memory_corpus import Corpus
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import ModelSpec
    from actstore.store.files.records import CaptureRecord
    from actstore.store.reader import Capture

__all__ = ["RunOptions", "capture"]


def capture(
    model: ModelInput,
    corpus: Corpus,
    store: str | Path,
    *,
    name: str = "corpus",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: CorpusReport | None = None,
    **settings: Any,
) -> Capture:
    """Capture a corpus of text or of images through `model` into `store` under `name`; the finished capture, for reading.

    `model` is a Hub id, a folder, or a transformers model in memory, alone or inside torch.compile, DataParallel or a pipeline:
    it runs as it is, in its own dtype on its own device, and is left as it was. Its tokenizer is that of `options`, of the
    pipeline, or of the name it was loaded by.

    `corpus` is a path, or documents in memory: a list of texts or of records (dictionaries), a `datasets.Dataset`, a table of
    pyarrow, pandas or polars; what can be read only once, such as a generator, is refused. A path is taken for images where
    the model reads images and text, and any file there is an image, or a table with a column of images; name files with
    `pattern` to say otherwise. A capture that is resumed stays what it was. `settings` are the fields of `CaptureSettings`, or
    of `ImageSettings`.

    Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before anything is written; `ReadOnlyError` where another writer
    owns the capture; `CaptureError` where the run stopped half-way and can be resumed. What may make the capture other than it
    was meant to be goes to `report.on_warning`, or to `warnings.warn`.

    >>> actstore.capture("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half")
    >>> actstore.capture(AutoModelForCausalLM.from_pretrained("gpt2"), ["one text", "another"], "gpt2.actstore", name="two")
    >>> actstore.capture("llava-hf/llava-1.5-7b-hf", "pictures/", "llava.actstore", generate=True)
    """
    run, asked = prepare(model, corpus, store, name, options, progress, report, settings)
    run.carry_out(asked)
    return Store(run.folder).capture(name)


def prepare(
    model: ModelInput,
    corpus: Corpus,
    store: str | Path,
    name: str,
    options: RunOptions | None,
    progress: CaptureProgress | None,
    report: CorpusReport | None,
    settings: Mapping[str, Any],
    *,
    read_only: bool = False,
) -> tuple[ImageRun | CorpusRun, dict[str, Any]]:
    """The run that `capture` is to carry out, and the settings it was asked for, after the checks that need no tokens."""
    options = argument("options", options, RunOptions | None) or RunOptions()
    progress = argument("progress", progress, CaptureProgress | None) or CaptureProgress()
    report = argument("report", report, CorpusReport | None) or CorpusReport()
    asked = given_fields(ImageSettings, settings, "A capture")  # those of text are among them
    check_options(name, options)
    source, documents = ModelSource.of(model), as_corpus(corpus)
    spec = source.inspect(trust_remote_code=options.trust_remote_code)
    folder = Folder(store, read_only=read_only)
    begun = read_capture(folder, name) if options.resume else None
    run: ImageRun | CorpusRun
    if _is_of_images(documents, begun, spec, asked):
        run = ImageRun(folder, name, spec, str(documents), options, progress, report, source=source)
    else:
        _refuse_image_settings(asked, str(documents))
        run = CorpusRun(folder, name, spec, str(documents), options, progress, report, documents, source=source)
    run.check()
    check_target(folder, name, spec, options.resume)
    return run, asked


def _is_of_images(
    corpus: str | MemoryCorpus, begun: CaptureRecord | None, spec: ModelSpec, asked: Mapping[str, Any]
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
    columns = {key: asked[key] for key in ("image_column", "pattern") if key in asked}
    text_columns = tuple(asked.get(key, getattr(CaptureSettings, key)) for key in ("text_column", "ids_column"))
    try:
        found = find_images(corpus, ImageOptions(**columns), text_columns)
    except NotFoundError:
        found = "none"  # reading says what is missing
    if found == "none" and "image_column" not in asked:
        return False
    return found == "only" or sees_and_reads(spec)


def _refuse_image_settings(asked: Mapping[str, Any], corpus: str) -> None:
    known = set(CaptureSettings.__dataclass_fields__)
    for key in asked:
        if key in ImageSettings.__dataclass_fields__ and key not in known:
            raise InvalidInputError(
                f"--{key.replace('_', '-')} is for images, and {corpus} is taken for text. Name a vision-language model, and "
                "images: files, a folder, or a table with a column of them (--image-column)."
            )

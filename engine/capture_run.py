"""One capture of a corpus, of text or of images, from its checks to the finished capture.

Decides which of the two a location is. Knows nothing about how either is captured (`corpus_run`, `image_run`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.engine.corpus import CorpusReport
from actstore.engine.corpus_run import CorpusRun
from actstore.engine.image_run import ImageRun, sees_and_reads
from actstore.engine.images import ImageOptions, find_images
from actstore.engine.progress import CaptureProgress
from actstore.engine.run import RunOptions, check_options, check_target
from actstore.engine.settings import CaptureSettings, ImageSettings
from actstore.engine.sources import ModelSource
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.folder import Folder
from actstore.store.reader import Store, read_capture

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.engine.in_memory import ModelInput
    from actstore.engine.models import ModelSpec
    from actstore.store.reader import Capture
    from actstore.store.records import CaptureRecord

__all__ = ["RunOptions", "capture"]


def capture(
    model: ModelInput,
    corpus: str | Path,
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

    `corpus` is taken for images where the model reads images and text, and any file there is an image, or a table with a
    column of images; name files with `pattern` to say otherwise. A capture that is resumed stays what it was. `settings` are
    the fields of `CaptureSettings`, or of `ImageSettings`. Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before
    anything is written; `ReadOnlyError` where another writer owns the capture; `CaptureError` where the run stopped half-way
    and can be resumed.

    >>> actstore.capture("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half")
    >>> actstore.capture(AutoModelForCausalLM.from_pretrained("gpt2"), "corpus.jsonl", "gpt2.actstore")
    >>> actstore.capture("llava-hf/llava-1.5-7b-hf", "pictures/", "llava.actstore", generate=True)
    """
    options, progress = options or RunOptions(), progress or CaptureProgress()
    asked = {key: value for key, value in settings.items() if value is not None}
    check_options(name, options)
    source = ModelSource.of(model)
    spec = source.inspect(trust_remote_code=options.trust_remote_code)
    folder = Folder(store, read_only=False)
    begun = read_capture(folder, name) if options.resume else None
    of_images = _is_of_images(corpus, begun, spec, asked)
    if not of_images:
        _refuse_image_settings(asked, corpus)
    kind = ImageRun if of_images else CorpusRun
    run = kind(folder, name, spec, str(corpus), options, progress, report or CorpusReport(), source=source)
    run.check()
    check_target(folder, name, spec, options.resume)
    run.carry_out(asked)
    return Store(folder).capture(name)


def _is_of_images(corpus: str | Path, begun: CaptureRecord | None, spec: ModelSpec, asked: Mapping[str, Any]) -> bool:
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


def _refuse_image_settings(asked: Mapping[str, Any], corpus: str | Path) -> None:
    known = set(CaptureSettings.__dataclass_fields__)
    for key in asked:
        if key in ImageSettings.__dataclass_fields__ and key not in known:
            raise InvalidInputError(
                f"--{key.replace('_', '-')} is for images, and {corpus} is taken for text. Name a vision-language model, and "
                "images: files, a folder, or a table with a column of them (--image-column)."
            )

"""`actstore capture` for either kind of corpus: decides whether a location is one of text or of images.

Knows nothing about how either is captured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.engine import capture_run, image_run
from actstore.engine.images import ImageOptions, find_images
from actstore.engine.models import inspect_model
from actstore.engine.run import RunOptions
from actstore.engine.settings import CaptureSettings, ImageSettings
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.folder import Folder
from actstore.store.reader import read_capture

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.engine.corpus import CorpusReport
    from actstore.engine.progress import CaptureProgress
    from actstore.store.reader import Capture

__all__ = ["RunOptions", "capture"]


def capture(
    model: str,
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

    `corpus` is taken for images where the model reads images and text, and any file there is an image, or a table with a
    column of images; name files with `pattern` to say otherwise. A capture that is resumed stays what it was. `settings` are
    the fields of `CaptureSettings`, or of `ImageSettings`. Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before
    anything is written; `ReadOnlyError` where another writer owns the capture; `CaptureError` where the run stopped half-way
    and can be resumed.

    >>> actstore.capture("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half")
    >>> actstore.capture("llava-hf/llava-1.5-7b-hf", "pictures/", "llava.actstore", generate=True)
    """
    options = options or RunOptions()
    asked = {key: value for key, value in settings.items() if value is not None}
    shared: dict[str, Any] = {"name": name, "options": options, "progress": progress, "report": report}
    if _is_of_images(model, corpus, store, name, options, asked):
        return image_run.capture_images(model, corpus, store, **shared, **asked)
    _refuse_image_settings(asked, corpus)
    return capture_run.capture(model, corpus, store, **shared, **asked)


def _is_of_images(
    model: str, corpus: str | Path, store: str | Path, name: str, options: RunOptions, asked: Mapping[str, Any]
) -> bool:
    if options.resume and (record := read_capture(Folder(store), name)) is not None:
        return record.of_images
    columns = {key: asked[key] for key in ("image_column", "pattern") if key in asked}
    text_columns = tuple(asked.get(key, getattr(CaptureSettings, key)) for key in ("text_column", "ids_column"))
    try:
        found = find_images(corpus, ImageOptions(**columns), text_columns)
    except NotFoundError:
        found = "none"  # reading says what is missing
    if found == "none" and "image_column" not in asked:
        return False
    spec = inspect_model(model, trust_remote_code=options.trust_remote_code)
    return found == "only" or image_run.sees_and_reads(spec)


def _refuse_image_settings(asked: Mapping[str, Any], corpus: str | Path) -> None:
    known = set(CaptureSettings.__dataclass_fields__)
    for key in asked:
        if key in ImageSettings.__dataclass_fields__ and key not in known:
            raise InvalidInputError(
                f"--{key.replace('_', '-')} is for images, and {corpus} is taken for text. Name a vision-language model, and "
                "images: files, a folder, or a table with a column of them (--image-column)."
            )

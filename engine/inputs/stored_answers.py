"""A store as a corpus: the prompts of one of its captures with the answers that its model generated.

So another model is captured on the very tokens that the first one generated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.inputs.documents import Answered, Document
from actstore.store.errors import InvalidInputError
from actstore.store.layout import capture_key
from actstore.store.model.root import is_store
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.engine.inputs.records import RecordReader


def stored_capture(location: str) -> tuple[Path, str | None] | None:
    """The store that a location is, and no name; or the store in which it is a capture, and its name; else None."""
    path = Path(os.path.expanduser(location))
    if not (path / "zarr.json").is_file():
        return None
    if is_store(Folder(path)):
        return path, None
    depth = len(Path(capture_key("name")).parts)
    store = Path(*path.parts[:-depth]) if len(path.parts) > depth else Path()
    is_capture = path == store / capture_key(path.name) and (store / "zarr.json").is_file() and is_store(Folder(store))
    return (store, path.name) if is_capture else None


def read_stored_answers(store: Path, name: str | None, records: RecordReader) -> Iterator[Document]:
    """The documents of a capture whose model answered them, in their order; `InvalidInputError` for another capture."""
    capture = Store(store).capture(name)
    documents = capture.documents().to_arrow()
    if "n_prompt" not in documents.column_names or capture.record.of_images:
        raise InvalidInputError(
            f"Capture {capture.record.name!r} of {store} has no prompts of text with answers, and a store is a corpus for "
            "these only. Name the corpus that it was made of, or a capture made with `generate=True`."
        )
    windows, ids = capture.windows(), capture.plan.array("inputs/ids")
    starts = dict(zip(windows["document"].to_pylist(), windows["input_start"].to_pylist(), strict=True))
    for row in documents.to_pylist():
        first = starts.get(row["document"])
        if first is None:  # nothing of it was kept
            continue
        answered = Answered(row["n_prompt"], row["prompt"], row["answer"], row["answer_number"])
        yield Document(
            row["source"],
            ids=np.asarray(ids[first : first + row["n_tokens"]], np.int64),
            labels=records.labels(row["source"], row),
            answered=answered,
        )

"""Images in: files, folders, JSON lines, CSV, Parquet, Arrow and saved datasets, one document at a time, none opened.

Decides which files a location means, and which columns of a record are an image's prompt, caption and labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from actstore.engine.inputs.csvfiles import DELIMITERS
from actstore.engine.inputs.documents import CorpusOptions
from actstore.engine.inputs.filetypes import FileType, file_type
from actstore.engine.inputs.globs import matching_paths
from actstore.engine.inputs.image_files import SUFFIXES, ImageError, ImageFile
from actstore.engine.inputs.image_tables import is_table, read_columns, read_rows
from actstore.engine.inputs.records import RecordReader, missing_label
from actstore.engine.inputs.tables import is_saved_dataset, list_dataset_files
from actstore.engine.inputs.textfiles import reading
from actstore.engine.inputs.value_names import describe_value, name_columns
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.engine.inputs.class_labels import Features

__all__ = ["ImageDigest", "ImageDocument", "ImageError", "ImageFile", "ImageOptions", "find_images", "read_images"]

LISTS: Final = ("images.jsonl", "metadata.jsonl", "metadata.csv")
"""Files that list a folder's images, with prompts and labels; the first that exists is read, and no other image."""
FOLDER_LABEL: Final = "folder"
"""Label column of images in plain folders: the sub-folder."""
_FILE_COLUMN: Final = "file_name"  # the column of paths in metadata.jsonl of `datasets`,
_TEXT_COLUMN: Final = "text"  # and that of captions


@dataclass(frozen=True, eq=False)
class ImageDocument:
    """One image with its prompt, caption and labels; None where it has no prompt or caption."""

    source: str
    """For people: a path, `path:line` in JSON lines (from 1), `path:row` in tables (from 0)."""
    image: ImageFile
    prompt: str | None = None
    caption: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageOptions(Typed):
    """What to read of a location: columns of its records, names of its files, and the maximum number of documents."""

    image_column: str = "image"
    prompt_column: str = "prompt"
    caption_column: str = "caption"
    label_columns: tuple[str, ...] = ()
    pattern: str = "*"
    max_documents: int | None = None
    """Documents read, whether their images can be opened or not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_documents is not None and self.max_documents < 1:
            raise InvalidInputError(f"`max_documents` is at least 1, found {self.max_documents}.")


class ImageDigest:
    """A fingerprint of image documents in their order: images, prompts, captions, labels; not their location."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"actstore images 1\n")

    def update(self, document: ImageDocument) -> None:
        """Add the next document, whether its image can be opened or not."""
        row = [document.image.sha256, document.prompt, document.caption, sorted(document.labels.items())]
        self._hash.update(json.dumps(row).encode() + b"\n")

    def hexdigest(self) -> str:
        """The SHA-256 of everything added so far, in hexadecimal."""
        return self._hash.hexdigest()


def read_images(location: str | Path, options: ImageOptions | None = None) -> Iterator[ImageDocument]:
    """The documents of a location in a fixed order, by path and by position in a file; no image is opened.

    `location` is an image, a folder of images, JSON lines, CSV, Parquet or Arrow with a column of images (paths, relative to
    the file's folder, or `{bytes, path}` as `datasets` writes them), a folder with images.jsonl, metadata.jsonl or
    metadata.csv, a folder made by `save_to_disk`, or a glob. Hidden files and files of other kinds in a folder are skipped.

    A location that does not exist is a `NotFoundError`; an invalid record, an image named by a URL, a label column that no
    record has and a location without images are an `InvalidInputError`. A missing or damaged image fails when it is opened.

    >>> for document in read_images("pictures/images.jsonl"): document.image.open()
    """
    options = options or ImageOptions()
    reader = _Reader(str(location), options)
    n_documents = 0
    for document in reader.documents():
        n_documents += 1
        yield document
        if n_documents == options.max_documents:
            break
    if n_documents == 0:
        raise InvalidInputError(
            f"{location} holds no images. Expected image files ({', '.join(SUFFIXES)}), or JSON lines, CSV, Parquet, Arrow "
            f"or a saved dataset with a column {options.image_column!r}."
        )
    reader.check_columns()


def find_images(
    location: str | Path, options: ImageOptions | None = None, text_columns: tuple[str, ...] = ()
) -> Literal["none", "some", "only"]:
    """Whether a location holds images: none, some among other things, or nothing that could be read as text.

    `text_columns` are the columns by which a record is a text too. Reads names of files, and the first table of each kind.
    """
    if str(location) == "-":
        return "none"
    options = options or ImageOptions()
    return _Reader(str(location), options).kinds(text_columns)


class _Reader:
    """Reads one location."""

    def __init__(self, location: str, options: ImageOptions) -> None:
        self._location, self._options = location, options
        self._records = RecordReader(CorpusOptions(label_columns=options.label_columns, errors="replace"))
        self._texts_found: set[str] = set()

    def documents(self) -> Iterator[ImageDocument]:
        for path in self._paths():
            if path.is_dir():
                for file in list_dataset_files(path):
                    yield from self._table(file.path, file.split, file.features)
            elif path.suffix.lower() in SUFFIXES:
                yield self._plain(path)
            else:
                yield from self._table(path)

    def kinds(self, text_columns: tuple[str, ...]) -> Literal["none", "some", "only"]:
        kinds: set[str] = set()
        types_read: set[FileType] = set()
        for path in self._paths(others=True):
            kind = file_type(path)
            if path.is_dir():
                kinds.add(self._kind_of_table(next((f.path for f in list_dataset_files(path)), None), text_columns))
            elif path.suffix.lower() in SUFFIXES:
                kinds.add("only")
            elif kind not in types_read:
                types_read.add(kind)
                kinds.add(self._kind_of_table(path, text_columns))
            if kinds >= {"only", "none"} or "some" in kinds:
                return "some"
        return "only" if kinds == {"only"} else "none"

    def check_columns(self) -> None:
        """Raise for a label column, or a named column of prompts or captions, that occurred in no record."""
        for label in self._options.label_columns:
            if label not in self._records.labels_found:
                raise missing_label(self._location, label, self._records.columns)
        for kind in ("prompt", "caption"):
            column = getattr(self._options, f"{kind}_column")
            if column != getattr(ImageOptions, f"{kind}_column") and column not in self._texts_found:
                raise InvalidInputError(
                    f"{self._location} has no column {column!r} with {kind}s: its columns are "
                    f"{name_columns(self._records.columns) or 'none'}. Check `{kind}_column`."
                )

    def _paths(self, others: bool = False) -> Iterator[Path]:
        """Images, tables of images and saved datasets (folders), in order; with `others`, files of every kind."""
        path = Path(os.path.expanduser(self._location))
        try:
            exists = path.exists()
        except (OSError, ValueError):
            exists = False
        if exists:
            yield from self._walk(path, others) if path.is_dir() else iter((path,))
            return
        matches = matching_paths(str(path)) if "\0" not in self._location else []
        if not matches:
            raise NotFoundError(f"There is no file or folder {self._location!r}: name images, a folder, or a table.")
        yield from (match for match in matches if match.is_file())

    def _walk(self, folder: Path, others: bool) -> Iterator[Path]:
        if is_saved_dataset(folder):
            yield folder
            return
        list_file = next((folder / name for name in LISTS if (folder / name).is_file()), None)
        if list_file is not None:
            yield list_file
            return
        with reading(str(folder)), os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(path, others)
            elif not entry.is_dir() and fnmatchcase(entry.name, self._options.pattern):
                # A CSV among pictures may hold anything; one that lists them is the location itself, or called metadata.csv.
                is_list = is_table(path) and file_type(path).format not in DELIMITERS
                yield from (path,) if others or is_list or path.suffix.lower() in SUFFIXES else ()

    def _kind_of_table(self, path: Path | None, text_columns: tuple[str, ...]) -> Literal["none", "some", "only"]:
        if path is None or not is_table(path):
            return "none"
        try:
            columns = read_columns(path)
        except InvalidInputError:
            return "none"
        if self._column(columns) is None:
            return "none"
        return "some" if set(text_columns) & set(columns) else "only"

    def _column(self, columns: tuple[str, ...]) -> str | None:
        named = self._options.image_column
        known = (named, _FILE_COLUMN) if named == ImageOptions.image_column else (named,)
        return next((column for column in known if column in columns), None)

    def _plain(self, path: Path) -> ImageDocument:
        root = Path(os.path.expanduser(self._location))
        folder = path.parent.relative_to(root) if root.is_dir() else Path()
        source = _name(path)
        labels = self._records.labels(source, {FOLDER_LABEL: str(folder) if folder != Path() else ""})
        return ImageDocument(source, ImageFile(source, source, path), labels=labels)

    def _table(self, path: Path, split: str | None = None, features: Features | None = None) -> Iterator[ImageDocument]:
        name = _name(path)
        for source, record in read_rows(path, name, features):
            self._records.columns = self._records.columns or tuple(record)
            column = self._column(tuple(record))
            if column is None:
                raise InvalidInputError(
                    f"{source} has no column {self._options.image_column!r} with an image: its columns are "
                    f"{name_columns(tuple(record))}; name one with `image_column`."
                )
            yield ImageDocument(
                source,
                _image(source, column, record[column], path.parent),
                self._text(source, self._options.prompt_column, record),
                self._text(source, self._caption_column(record, column), record),
                self._records.labels(source, record, split),
            )

    def _caption_column(self, record: Mapping[str, Any], image_column: str) -> str:
        named = self._options.caption_column
        as_datasets = image_column == _FILE_COLUMN and named == ImageOptions.caption_column and named not in record
        return _TEXT_COLUMN if as_datasets and _TEXT_COLUMN in record else named

    def _text(self, source: str, column: str, record: Mapping[str, Any]) -> str | None:
        if column in record:
            self._texts_found.add(column)
        value = record.get(column)
        if value is None:
            return None
        if not isinstance(value, str):
            option = "prompt" if column == self._options.prompt_column else "caption"
            raise InvalidInputError(
                f"{source}: column {column!r} must hold text, found {describe_value(value)}; name another with "
                f"`{option}_column`."
            )
        return re.sub(
            "[\ud800-\udfff]", "\ufffd", value
        )  # half a surrogate pair, which JSON can write and UTF-8 cannot


def _image(source: str, column: str, value: Any, base: Path) -> ImageFile:
    if isinstance(value, bytes):
        return ImageFile(source, content=value)
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return ImageFile(f"{source} ({path})" if path else source, str(path or ""), content=content)
        value = path
    if value is None:
        return ImageFile(source)
    if not isinstance(value, str):
        raise InvalidInputError(
            f"{source}: column {column!r} must hold a path, or an image's bytes, found {describe_value(value)}; name another "
            "with `image_column`."
        )
    if re.match(r"(https?|ftp|s3|gs|data):", value):
        raise InvalidInputError(
            f"{source} names its image by a URL ({value[:60]}), and images are read from files only. Download them, and give "
            "their paths."
        )
    path = base / os.path.expanduser(value)
    return ImageFile(f"{source} ({_name(path)})", _name(path), path)


def _name(path: Path) -> str:
    """The path as text that is valid UTF-8, whatever bytes are in the name."""
    return os.fsencode(path).decode("utf-8", "replace")

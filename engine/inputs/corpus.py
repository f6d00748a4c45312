"""Documents in: a text, a folder, a glob, JSON lines, CSV, Parquet, Arrow, a saved dataset or standard input, one at a time.

Decides which files a location means; they are read in `textfiles`, `csvfiles` and `tables`. The order is always the same:
by path, and by position within a file. At most one document, one chunk of bytes or one small batch is in memory.
"""

import glob
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from actstore.engine.inputs.class_labels import Features
from actstore.engine.inputs.csvfiles import DELIMITERS, read_csv
from actstore.engine.inputs.documents import CorpusDigest, CorpusOptions, Document
from actstore.engine.inputs.filetypes import FileType, file_type, open_bytes
from actstore.engine.inputs.globs import matching_paths
from actstore.engine.inputs.memory_corpus import MemoryCorpus
from actstore.engine.inputs.records import RecordReader, missing_label
from actstore.engine.inputs.stored_answers import read_stored_answers, stored_capture
from actstore.engine.inputs.tables import is_saved_dataset, list_dataset_files, read_arrow, read_parquet
from actstore.engine.inputs.textfiles import (
    BINARY,
    BinaryFileError,
    StreamReader,
    read_json_lines,
    read_text,
    reading,
    sniff_json,
)
from actstore.store.errors import InvalidInputError, NotFoundError

__all__ = ["BINARY", "EMPTY", "CorpusDigest", "CorpusOptions", "CorpusReport", "Document", "describe", "read_corpus"]

STDIN = "-"
EMPTY = "the document is empty"
"""Why an empty document is skipped; the reason for a skipped file may begin with `BINARY`."""
_STDIN_SOURCE = "<stdin>"
_PYCACHE = "__pycache__"
_EVERY_FILE = CorpusOptions.pattern
_MAX_NAME_WORDS, _MAX_NAME_LENGTH = 3, 255  # of a file; a string with more of either is probably a text
_SHOWN_LENGTH = 60


@dataclass
class CorpusReport:
    """Counts of a corpus so far: documents read, and files, documents and images skipped.

    `on_skip(source, reason)` is called for every file and document that is skipped; `on_warning(sentence)` for what makes the
    corpus differ from what it seems, before the model runs. Without it, that is a Python warning.
    """

    n_documents: int = 0
    n_empty_documents: int = 0
    n_skipped_files: int = 0
    n_skipped_images: int = 0
    n_animated_images: int = 0
    """Images of which the first frame was taken."""
    n_uncaptioned_images: int = 0
    """Images captured with their prompt alone: they have no caption, and nothing was generated."""
    layers_left_out: tuple[int, ...] = ()
    """Layers of the part whose rows differ from those of its first layer, and that were not selected by number."""
    on_skip: Callable[[str, str], None] | None = None
    on_warning: Callable[[str], None] | None = None

    def warn(self, sentence: str) -> None:
        """Hand a sentence to `on_warning`, or else to Python's warnings."""
        if self.on_warning is not None:
            self.on_warning(sentence)
        else:
            warnings.warn(sentence, UserWarning, stacklevel=2)

    def skip_document(self, source: str) -> None:
        """Count an empty document."""
        self.n_empty_documents += 1
        if self.on_skip is not None:
            self.on_skip(source, EMPTY)

    def skip_image(self, source: str, reason: str) -> None:
        """Count an image that cannot be used."""
        self.n_skipped_images += 1
        if self.on_skip is not None:
            self.on_skip(source, reason)

    def skip_file(self, path: Path, reason: str) -> None:
        """Count a file, or a link, that a walk through a folder left out."""
        self.n_skipped_files += 1
        if self.on_skip is not None:
            self.on_skip(_name(path), reason)


@dataclass(frozen=True)
class _File:
    """A file to read; `is_named` where the location or pattern names it, so that skipping it would be wrong."""

    path: Path
    is_named: bool
    split: str | None = None
    in_dataset: bool = False
    features: Features | None = None


def read_corpus(
    location: str | Path | MemoryCorpus, options: CorpusOptions | None = None, report: CorpusReport | None = None
) -> Iterator[Document]:
    """The documents of a corpus in a fixed order, each read when it is asked for.

    `location` is a file (read by its suffix, with or without .gz, .bz2, .xz or .zst; any other file is one text), a folder,
    a glob, a store whose model answered prompts (or the folder of a capture in it), a folder made by `save_to_disk` of
    `datasets` or one of its splits, or "-" for standard input. In a folder, hidden
    files and __pycache__ are skipped, and so are, with the default pattern, files whose first bytes or NUL bytes show that
    they are no text. Empty documents are skipped. `report` counts what was.

    A location that does not exist is a `NotFoundError` at once; a fault inside it is an `InvalidInputError` when it is read,
    at the end for a corpus without documents or a label column that no record has.

    >>> for document in read_corpus("corpus.jsonl", CorpusOptions(label_columns=("language",))): ...
    """
    options = options or CorpusOptions()
    report = report or CorpusReport()
    if isinstance(location, MemoryCorpus):
        return _read_documents(location, options, report)
    if str(location) != STDIN:
        _check_exists(str(location))
    return _read_documents(str(location), options, report)


def describe(location: str | Path | MemoryCorpus) -> str:
    """A location in words, for messages: "folder 'data'", "standard input", "files matching 'data/*.md'"."""
    if isinstance(location, MemoryCorpus):
        return f"the corpus {location}"
    if str(location) == STDIN:
        return "standard input"
    path = Path(os.path.expanduser(location))
    if os.path.isdir(path):
        return f"{'saved dataset' if is_saved_dataset(path) else 'folder'} {_name(path)!r}"
    if not os.path.exists(path) and glob.has_magic(str(location)):
        return f"files matching {str(location)!r}"
    return f"file {_name(path)!r}"


def _read_documents(location: str | MemoryCorpus, options: CorpusOptions, report: CorpusReport) -> Iterator[Document]:
    records = RecordReader(options)
    documents: Iterator[Document]
    if isinstance(location, MemoryCorpus):
        documents = location.read(records)
    elif location == STDIN:
        documents = _read_stdin(records)
    elif (stored := stored_capture(location)) is not None:
        documents = read_stored_answers(*stored, records)
    else:
        files = _list_files(location, options, report)
        documents = (document for file in files for document in _read_file(file, records, report))
    n_documents = n_empty = 0
    for document in documents:
        if document.is_empty:
            n_empty += 1
            report.skip_document(document.source)
            continue
        n_documents += 1
        report.n_documents += 1
        yield document
        if n_documents == options.max_documents:
            break
    if n_documents == 0:
        raise _no_documents(location, options, n_empty)
    for label in options.label_columns:
        if label not in records.labels_found:
            raise missing_label(_capital(location), label, records.columns)


def _read_stdin(records: RecordReader) -> Iterator[Document]:
    if sys.stdin is None or sys.stdin.closed:
        raise InvalidInputError("Standard input is closed: pipe a text into it, or name a file instead of '-'.")
    read = read_json_lines if records.options.stdin_format == "jsonl" else read_text
    with reading(_STDIN_SOURCE):
        yield from read(sys.stdin.buffer, _STDIN_SOURCE, records)


def _read_file(file: _File, records: RecordReader, report: CorpusReport) -> Iterator[Document]:
    path, source = file.path, _name(file.path)
    kind = file_type(path)
    if kind.is_unreadable:
        raise InvalidInputError(
            f"{source} is a table compressed as a whole, and Parquet and Arrow are read from any position: decompress it, or "
            "leave it out with `pattern`."
        )
    if file.in_dataset or kind.format == "arrow":
        yield from read_arrow(path, source, records, file.split, file.features)
    elif kind.format == "parquet":
        yield from read_parquet(path, source, records)
    else:
        try:
            with reading(source):
                read = _stream_reader(file, kind, source, records)
                with open_bytes(path) as stream:
                    yield from read(stream, source, records)
        except BinaryFileError as error:
            if file.is_named or kind.format != "text":
                raise
            report.skip_file(path, error.reason)


def _stream_reader(file: _File, kind: FileType, source: str, records: RecordReader) -> StreamReader:
    if kind.format in DELIMITERS:
        return partial(read_csv, delimiter=DELIMITERS[kind.format])
    if kind.format == "json lines":
        return read_json_lines
    if kind.format == "json":
        with open_bytes(file.path) as stream:
            return sniff_json(stream, source, records)
    return read_text


def _list_files(location: str, options: CorpusOptions, report: CorpusReport) -> Iterator[_File]:
    path = Path(os.path.expanduser(location))
    if path.is_dir():
        yield from _list_folder(path, options.pattern, report, named=True)
    elif path.exists():
        yield _File(path, is_named=True)
    else:
        matches = matching_paths(location)
        yield from (_File(match, is_named=True) for match in matches if match.is_file() and _PYCACHE not in match.parts)


def _list_folder(folder: Path, pattern: str, report: CorpusReport, named: bool = False) -> Iterator[_File]:
    """The files in a folder by path; links to folders are not followed, as they may form a cycle."""
    if is_saved_dataset(folder):
        for file in list_dataset_files(folder):
            if named or fnmatchcase(file.path.name, pattern):
                yield _File(file.path, is_named=True, split=file.split, in_dataset=True, features=file.features)
        return
    with reading(_name(folder)), os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name == _PYCACHE:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _list_folder(path, pattern, report)
        elif entry.is_dir():
            report.skip_file(path, "a link to a folder")
        elif fnmatchcase(entry.name, pattern):
            if entry.is_file():
                yield _File(path, is_named=pattern != _EVERY_FILE)
            else:
                report.skip_file(path, "not a file: a broken link, a pipe or a device")


def _check_exists(location: str) -> None:
    path = os.path.expanduser(location)
    shown, advice = _show(location)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL character in the name
        if not glob.has_magic(path):
            raise NotFoundError(
                f"There is no file or folder {shown}: name a text, a folder, a glob, JSON lines, CSV, Parquet, Arrow, "
                f"a saved dataset, or - for standard input.{advice}"
            ) from None
        if not matching_paths(path):
            raise NotFoundError(
                f"No file matches {shown}: check the folder it starts from, and quote it.{advice}"
            ) from None
    except OSError as error:
        raise InvalidInputError(
            f"{shown} cannot be read ({error.strerror}): expected the name of a file or folder.{advice}"
        ) from None


def _show(location: str) -> tuple[str, str]:
    """A location for a message, and advice where it looks like a text instead."""
    if "\n" not in location and len(location.split()) <= _MAX_NAME_WORDS and len(location) <= _MAX_NAME_LENGTH:
        return repr(location), ""
    shown = f"{location[:_SHOWN_LENGTH]}…" if len(location) > _SHOWN_LENGTH else location
    advice = " To capture a text itself, pass a list of texts from Python, or pipe it in and name - as the corpus."
    return repr(shown), advice


def _no_documents(location: str | MemoryCorpus, options: CorpusOptions, n_empty: int) -> InvalidInputError:
    if n_empty:
        return InvalidInputError(
            f"{_capital(location)} holds only empty documents ({n_empty} of them): expected at least one with text or "
            "token ids."
        )
    if isinstance(location, MemoryCorpus):
        return InvalidInputError(f"{_capital(location)} holds no documents: expected at least one text or record.")
    matching = "" if options.pattern == _EVERY_FILE else f" in files named {options.pattern!r}"
    return InvalidInputError(
        f"{_capital(location)} holds no documents{matching}: expected text files, JSON lines, CSV, Parquet, Arrow "
        "or a saved dataset."
    )


def _capital(location: str | MemoryCorpus) -> str:
    words = describe(location)
    return words[0].upper() + words[1:]


def _name(path: Path) -> str:
    """The path as text that is valid UTF-8, whatever bytes are in the name."""
    return os.fsencode(path).decode("utf-8", "replace")

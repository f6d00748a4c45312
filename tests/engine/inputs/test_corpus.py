import builtins
import io
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore.engine.inputs.corpus import CorpusDigest, CorpusOptions, CorpusReport, describe, read_corpus
from actstore.store.errors import InvalidInputError, NotFoundError


def texts(location, **options):
    return [document.text for document in read_corpus(location, CorpusOptions(**options))]


def message(location, **options):
    with pytest.raises(InvalidInputError) as caught:
        texts(location, **options)
    return str(caught.value)


def skipped(location, **options):
    met = []
    list(read_corpus(location, CorpusOptions(**options), CorpusReport(on_skip=lambda *what: met.append(what))))
    return met


@pytest.fixture
def folder(tmp_path):
    """A folder of every kind: its readable documents are 1 to 7, in the order of their paths."""
    folder = tmp_path / "corpus"
    (folder / "b" / "c").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / ".git").mkdir()
    (folder / "a.txt").write_text("1")
    (folder / "b" / "c" / "deep.py").write_text("2")
    (folder / "b" / "d.jsonl").write_text('{"text": "3"}\n{"text": "4"}\n')
    pq.write_table(pa.table({"text": ["5"]}), folder / "b" / "e.parquet")
    (folder / "b.md").write_text("6")
    (folder / "c").write_text("7")
    (folder / "image.png").write_bytes(b"\x89PNG\0\0")
    (folder / "__pycache__" / "a.pyc").write_bytes(b"\0")
    (folder / ".git" / "config").write_text("no")
    (folder / ".hidden.txt").write_text("no")
    return folder


def use_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_folder_is_read_by_path_each_file_as_what_it_is(folder):
    documents = list(read_corpus(folder))
    assert [(document.source.removeprefix(f"{folder}/"), document.text) for document in documents] == [
        ("a.txt", "1"),
        ("b/c/deep.py", "2"),
        ("b/d.jsonl:1", "3"),
        ("b/d.jsonl:2", "4"),
        ("b/e.parquet:0", "5"),
        ("b.md", "6"),
        ("c", "7"),
    ]


def test_binaries_in_a_folder_are_passed_over_and_reported(folder):
    assert skipped(folder) == [(f"{folder}/image.png", "binary: NUL byte at offset 4")]


def test_a_pattern_chooses_by_name_at_every_depth(folder):
    assert texts(folder, pattern="*.py") == ["2"]
    assert texts(folder, pattern="[ab].*") == ["1", "6"]


def test_a_binary_that_was_asked_for_is_an_error(folder):
    found = f"{folder}/image.png is binary (NUL byte at offset 4): "
    assert message(folder, pattern="*.png").startswith(found)
    assert message(folder / "image.png").startswith(found)
    assert message(f"{folder}/*.png").startswith(found)


def test_a_damaged_data_file_in_a_folder_is_not_passed_over(folder):
    (folder / "b" / "d.jsonl").write_bytes(b'{"text": "3"}\n\0\0\0\0')
    assert "d.jsonl is binary (NUL byte at offset 14)" in message(folder)


def test_links_to_folders_are_not_followed_but_links_to_files_are(folder):
    (folder / "circle").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "z.txt").symlink_to(folder / "a.txt")
    assert texts(folder) == ["1", "2", "3", "4", "5", "6", "7", "1"]
    assert skipped(folder) == [
        (f"{folder}/broken", "not a file: a broken link, a pipe or a device"),
        (f"{folder}/circle", "a link to a folder"),
        (f"{folder}/image.png", "binary: NUL byte at offset 4"),
    ]


def test_glob_takes_files_in_order(folder):
    assert texts(f"{folder}/**/*.md") == ["6"]
    assert texts(f"{folder}/[a-b]*") == ["1", "6"]
    assert texts(f"{folder}/b/**/*") == ["2", "3", "4", "5"]


def test_glob_leaves_compiled_python_out(folder):
    assert texts(f"{folder}/**/a.*") == ["1"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert texts(tmp_path / "a[1].txt") == ["one"]


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert texts("~/a.txt") == ["1"]
    assert texts("~/*.md") == ["6"]


def test_names_that_are_not_utf8_become_sources_that_are(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "w") as file:
        file.write("one")
    [document] = read_corpus(tmp_path)
    assert (document.source, document.text) == (f"{tmp_path}/\ufffd.txt", "one")


def test_standard_input_is_one_text(monkeypatch):
    use_stdin(monkeypatch, b'{"text": "one"}\n\xc3\xa9')
    [document] = read_corpus("-")
    assert (document.source, document.text) == ("<stdin>", '{"text": "one"}\né')


def test_standard_input_as_json_lines(monkeypatch):
    use_stdin(monkeypatch, b'{"text": "one"}\n{"text": "two"}\n')
    documents = list(read_corpus("-", CorpusOptions(stdin_format="jsonl")))
    assert [(document.source, document.text) for document in documents] == [("<stdin>:1", "one"), ("<stdin>:2", "two")]


def test_binary_on_standard_input(monkeypatch):
    use_stdin(monkeypatch, b"PK\0")
    assert message("-").startswith("<stdin> is binary (NUL byte at offset 2)")


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert message("-") == "Standard input is closed: pipe a text into it, or name a file instead of '-'."


def test_nothing_on_standard_input(monkeypatch):
    use_stdin(monkeypatch, b"")
    assert message("-") == (
        "Standard input holds only empty documents (1 of them): expected at least one with text or token ids."
    )


@pytest.mark.parametrize("location", ["nowhere/a.txt", "", "a\0b", "~nobody-here/a"])
def test_missing_path_is_found_before_reading(location):
    with pytest.raises(NotFoundError) as caught:
        read_corpus(location)
    assert str(caught.value) == (
        f"There is no file or folder {location!r}: name a text, a folder, a glob, JSON lines, CSV, Parquet, "
        "Arrow, a saved dataset, or - for standard input."
    )


def test_a_path_through_a_file_is_missing(folder):
    with pytest.raises(NotFoundError, match="There is no file or folder"):
        read_corpus(folder / "a.txt" / "b")


def test_glob_without_a_match_is_found_before_reading(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        read_corpus(f"{tmp_path}/*.txt")
    assert str(caught.value) == f"No file matches '{tmp_path}/*.txt': check the folder it starts from, and quote it."


ADVICE = " To capture a text itself, pass a list of texts from Python, or pipe it in and name - as the corpus."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The quick brown fox.", "'The quick brown fox.'"),
        ("one\ntwo", r"'one\ntwo'"),
        ("a sentence of several words, again " * 5, f"'{('a sentence of several words, again ' * 5)[:60]}…'"),
    ],
)
def test_a_text_in_place_of_a_path(text, shown):
    with pytest.raises(NotFoundError) as caught:
        read_corpus(text)
    assert str(caught.value) == (
        f"There is no file or folder {shown}: name a text, a folder, a glob, JSON lines, CSV, Parquet, Arrow, a saved "
        f"dataset, or - for standard input.{ADVICE}"
    )


def test_a_text_too_long_for_a_path_or_with_marks_of_a_glob():
    with pytest.raises(InvalidInputError) as caught:
        read_corpus("word " * 2000)
    assert str(caught.value) == (
        f"'{('word ' * 12)}…' cannot be read (File name too long): expected the name of a file or folder.{ADVICE}"
    )
    with pytest.raises(NotFoundError) as caught:
        read_corpus("What is the capital of France?")
    assert str(caught.value) == (
        f"No file matches 'What is the capital of France?': check the folder it starts from, and quote it.{ADVICE}"
    )


def test_a_name_with_spaces_is_a_name(tmp_path):
    (tmp_path / "a name of many words.txt").write_text("one")
    assert texts(tmp_path / "a name of many words.txt") == ["one"]


def test_empty_folder(tmp_path):
    assert message(tmp_path) == (
        f"Folder '{tmp_path}' holds no documents: expected text files, JSON lines, CSV, Parquet, Arrow or a saved dataset."
    )


def test_folder_without_a_file_of_the_pattern(folder):
    assert message(folder, pattern="*.rst").startswith(f"Folder '{folder}' holds no documents in files named '*.rst': ")


def test_only_empty_documents(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    assert message(tmp_path) == (
        f"Folder '{tmp_path}' holds only empty documents (3 of them): expected at least one with text or token ids."
    )


def test_empty_documents_are_left_out_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\n{"text": null}\n')
    report = CorpusReport()
    assert [document.text for document in read_corpus(path, report=report)] == [" "]
    assert (report.n_documents, report.n_empty_documents, report.n_skipped_files) == (1, 2, 0)
    assert skipped(path) == [(f"{path}:1", "the document is empty"), (f"{path}:3", "the document is empty")]


def test_max_documents_counts_what_is_not_empty_and_reads_no_further(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": "a"}\n{"text": "b"}\nbroken')
    assert texts(path, max_documents=2) == ["a", "b"]


def test_one_report_may_serve_several_corpora(folder):
    report = CorpusReport()
    options = CorpusOptions(max_documents=2)
    for _ in range(2):
        assert [document.text for document in read_corpus(folder, options, report)] == ["1", "2"]
    assert report.n_documents == 4


def test_a_label_may_be_missing_from_records_but_not_from_all(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "lang": "en"}\n')
    labels = [document.labels for document in read_corpus(path, CorpusOptions(label_columns=("lang",)))]
    assert labels == [{"lang": ""}, {"lang": "en"}]
    expected = (
        f"File '{path}' has no label column 'lnag': its columns are 'text'; name one of them with `label_columns`."
    )
    assert message(path, label_columns=("lang", "lnag")) == expected
    assert message(path, label_columns=("lnag",), max_documents=1) == expected


def test_labels_of_plain_text(folder):
    assert message(folder / "a.txt", label_columns=("lang",)) == (
        f"File '{folder}/a.txt' is plain text, which has no label column 'lang': leave `label_columns` out, "
        "or read JSON lines or a table."
    )


def test_texts_beside_labelled_records_have_empty_labels(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b", "lang": "en"}')
    documents = list(read_corpus(tmp_path, CorpusOptions(label_columns=("lang",))))
    assert [document.labels for document in documents] == [{"lang": ""}, {"lang": "en"}]


@pytest.mark.parametrize("name", ["a.txt", "b"])
def test_what_may_not_be_read(folder, monkeypatch, name):
    # The tests may run as root, whom no permission stops.
    def refuse(real):
        def call(path, *args, **kwargs):
            if str(path) == str(folder / name):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return call

    monkeypatch.setattr(io, "open", refuse(builtins.open))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    assert message(folder) == (
        f"{folder}/{name} cannot be read (permission denied): grant access to it, or leave it out."
    )


def test_digest_of_a_corpus_does_not_change_when_it_moves(folder, tmp_path):
    def digest(location):
        whole = CorpusDigest()
        for document in read_corpus(location):
            whole.update(document)
        return whole.hexdigest()

    before = digest(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert digest(moved) == before
    (moved / "a.txt").write_text("1 ")
    assert digest(moved) != before


def test_locations_in_words(folder):
    assert describe("-") == "standard input"
    assert describe(folder) == f"folder '{folder}'"
    assert describe(folder / "a.txt") == f"file '{folder}/a.txt'"
    assert describe(f"{folder}/*.md") == f"files matching '{folder}/*.md'"
    assert describe("~nobody-here/" + "long" * 99).startswith("file '~nobody-here/long")
    assert describe("nowhere") == "file 'nowhere'"
    assert describe("a\0b") == "file 'a\\x00b'"

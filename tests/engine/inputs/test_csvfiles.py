"""CSV and TSV as tables: the header names the columns, and whatever is not a table is refused by its line."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest

from actstore.engine.inputs import textfiles
from actstore.engine.inputs.corpus import CorpusOptions, read_corpus
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.inputs.documents import Document

AWKWARD = ["plain", 'say "yes"', "a, b\tc", "two\nlines", "two\r\nlines", " spaces ", "é 漢 😀 \u2028", "'", '"']


def read(path: Path, **options: object) -> list[Document]:
    return list(read_corpus(path, CorpusOptions(**options)))  # type: ignore[arg-type]


def message(path: Path, **options: object) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("A.CSV", ",")])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_is_a_document_with_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, delimiter: str, chunk: int, end: str
) -> None:
    monkeypatch.setattr(textfiles, "CHUNK_NBYTES", chunk)
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # with a byte order mark, as Excel writes it
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerow(["lang", "text", "n"])
        writer.writerows(["en", text, number] for number, text in enumerate(AWKWARD))
    assert [(d.source, d.text, d.labels) for d in read(path, label_columns=("n", "lang"))] == [
        (f"{path}:{number}", text, {"n": str(number), "lang": "en"}) for number, text in enumerate(AWKWARD)
    ]


def test_another_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,one\n\n2,two")
    assert [document.text for document in read(path, text_column="body")] == ["one", "two"]
    assert message(path) == (
        f"{path} has no column 'text' with text, nor 'input_ids' with token ids: its columns are 'id', 'body'; "
        "name one with `text_column`, or of images with `image_column`."
    )
    assert message(path, text_column="body", label_columns=("lang",)) == (
        f"{path} has no label column 'lang': its columns are 'id', 'body'; name one of them with `label_columns`."
    )


def test_semicolons_are_no_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;lang\none;en\n")
    assert "its columns are 'text;lang'; name one with `text_column`" in message(tmp_path)


def test_a_field_may_be_longer_than_python_allows_by_default(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = "many words, " * 20_000
    path.write_text(f'text\n"{text}"\n')
    assert [document.text for document in read(path)] == [text]


def test_empty_fields_are_empty_documents_and_empty_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,lang\n,en\n"",de\none,\n')
    assert [(d.source, d.text, d.labels) for d in read(path, label_columns=("lang",))] == [
        (f"{path}:2", "one", {"lang": ""})
    ]


@pytest.mark.parametrize("content", ["", "text,lang\n", "\n\n"])
def test_no_rows_are_no_documents(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert "holds no documents" in message(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("text,n\none\n", " has 1 fields in the row that ends on line 2, and 2 in its header"),
        ("text,n\n\none,1\ntwo,2,3\n", " has 3 fields in the row that ends on line 4, and 2 in its header"),
        ('text,n\n"one\ntwo",1\nthree\n', " has 1 fields in the row that ends on line 4, and 2 in its header"),
        ('text,n\n"one\n,1\n', " is not valid CSV on lines 2 to 3 (unexpected end of data)"),
        ('text,n\n"one"two,1\n', " is not valid CSV on line 2 (',' expected after '\"')"),
        ("text,n\rone,1\rtwo,2\r", " is not valid CSV on line 1 (new-line character seen in unquoted field"),
        ("text,n,text\n1,2,3\n", " has two columns 'text' in its header: 'text', 'n', 'text'"),
    ],
)
def test_what_is_no_table_names_its_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    assert message(path).startswith(f"{path}{reason}")
    assert "\n" not in message(path)


def test_rows_before_a_fault_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,n\none,1\ntwo\n")
    documents = read_corpus(path)
    assert next(documents).text == "one"
    with pytest.raises(InvalidInputError, match="on line 3"):
        next(documents)


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\nna\xefve\n")
    assert message(path).startswith(f"{path} is not UTF-8: byte 0xef at offset 7;")
    assert [document.text for document in read(path, errors="replace")] == ["na\ufffdve"]
    path.write_bytes(b"text\na\0b\n")
    assert message(tmp_path).startswith(f"{path} is binary (NUL byte at offset 6)")


def test_ids_in_csv_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('input_ids,n\n"[1, 2]",1\n')
    assert message(path).startswith(f"{path}:0: column 'input_ids' must hold token ids (integers from 0), found text (")

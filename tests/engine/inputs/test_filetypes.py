"""Compressed files of every kind, in one part or several, whole or damaged; and files that are no text after all."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore.engine.inputs.corpus import CorpusOptions, CorpusReport, read_corpus
from actstore.engine.inputs.filetypes import FileType, file_type, open_bytes
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable


def zstd(content: bytes, codec: str = "zstd") -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
    ".zst": zstd,
}
LINES = b"".join(b'{"text": "line %d"}\n' % n for n in range(3))


def texts(path: Path, **options: object) -> list[str | None]:
    return [document.text for document in read_corpus(path, CorpusOptions(**options))]  # type: ignore[arg-type]


def message(path: Path, **options: object) -> str:
    with pytest.raises(InvalidInputError) as caught:
        texts(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=COMPRESS)
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", LINES, ["line 0", "line 1", "line 2"]),
        ("a.NDJSON", LINES, ["line 0", "line 1", "line 2"]),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]', ["one", "two"]),
        ("b.json", LINES, ["line 0", "line 1", "line 2"]),
        ("a.csv", b"text,n\none,1\ntwo,2\n", ["one", "two"]),
        ("a.tsv", b"text\tn\none\t1\n", ["one"]),
        ("a.txt", b"one\n", ["one\n"]),
        ("a", b"one\n", ["one\n"]),
    ],
)
def test_every_format_in_every_compression(
    tmp_path: Path, suffix: str, name: str, content: bytes, expected: list[str]
) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESS[suffix](content))
    assert texts(path) == expected
    assert texts(tmp_path) == expected  # in a folder as well, where nothing is skipped
    report = CorpusReport()
    list(read_corpus(tmp_path, report=report))
    assert report.n_skipped_files == 0


def test_parts_in_a_row_are_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](line + b"\n") for line in LINES.splitlines()))
    assert texts(path) == ["line 0", "line 1", "line 2"]


@pytest.mark.parametrize("zeros", [4, 1 << 19])
def test_zeros_between_parts_of_xz(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one ") + bytes(zeros) + lzma.compress(b"two") + bytes(zeros))
    assert texts(path) == ["one two"]


def test_large_files_are_read_piece_by_piece(tmp_path: Path, suffix: str) -> None:
    content = b"".join(b"%d " % (n * n) for n in range(120_000))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    with open_bytes(path) as stream:
        assert stream.read(100) == content[:100]
        assert stream.read() == content[100:]
        assert stream.read() == b""


def test_text_in_the_old_format_of_xz(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.lzma"
    path.write_bytes(lzma.compress(b"one", format=lzma.FORMAT_ALONE))
    assert texts(path) == ["one"]


@pytest.mark.parametrize(
    "damage", ["cut", "cut in its second part", "empty", "not compressed", "followed by text", "garbled"]
)
def test_damaged_compressed_files_are_one_sentence(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = COMPRESS[suffix](b'{"text": "one"}\n' * 999)
    content = {
        "cut": whole[:-5],
        "cut in its second part": whole + whole[:-5],
        "empty": b"",
        "not compressed": b'{"text": "one"}\n',
        "followed by text": whole + b"and more",
        "garbled": whole[:20] + bytes(byte ^ 0x5A for byte in whole[20:40]) + whole[40:],
    }[damage]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content)
    for location in (path, tmp_path):  # never skipped in a folder either
        found = message(location)
        assert found.startswith(f"{path} cannot be read (")
        assert found.endswith("): fix the file, or leave it out.")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_tables_compressed_as_a_whole_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESS[suffix](b"PAR1\x15" + bytes(99)))
    for location in (path, tmp_path):
        assert message(location) == (
            f"{path} is a table compressed as a whole, and Parquet and Arrow are read from any position: decompress it, or "
            "leave it out with `pattern`."
        )


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a"]}), sink)
    return sink.getvalue().to_pybytes()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (a)")
        return connection.serialize()


NO_TEXT = [
    ("a.zip", zipped(), "a ZIP archive"),
    ("a.tar", tarred(), "a tar archive"),
    ("a.tar.gz", COMPRESS[".gz"](tarred()), "a tar archive"),
    ("a.tgz", COMPRESS[".gz"](tarred()), "a tar archive"),
    ("a.tar.zst", zstd(tarred()), "a tar archive"),
    ("a.tar.xz", lzma.compress(tarred()), "a tar archive"),
    ("a.txt.gz", COMPRESS[".gz"](zipped()), "a ZIP archive"),
    ("a.7z", b"7z\xbc\xaf\x27\x1c\x04rest", "a 7-Zip archive"),
    ("a.rar", b"Rar!\x1a\x07rest", "a RAR archive"),
    ("a.txt.lz4", zstd(b"text " * 9, "lz4"), "LZ4-compressed"),
    ("a", COMPRESS[".gz"](b"text"), "gzip-compressed"),
    ("a.data", bz2.compress(b"text"), "bzip2-compressed"),
    ("a.text", zstd(b"text " * 9), "zstd-compressed"),
    ("a.log", lzma.compress(b"text"), "xz-compressed"),
    ("a.pdf", b"%PDF-1.7\n", "a PDF"),
    ("a.db", database(), "an SQLite database"),
    ("a.dat", parquet(), "Parquet"),
    ("a.bin", b"abc\0", "binary"),
]


# Named by the file: an archive holds the time at which it was made, and each process makes its own.
@pytest.mark.parametrize(("name", "content", "kind"), NO_TEXT, ids=[name for name, _, _ in NO_TEXT])
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for errors in ("strict", "replace"):  # which would make text of it
        assert message(path, errors=errors).startswith(f"{path} is {kind}")
    (tmp_path / "z.txt").write_text("text")
    met: list[tuple[str, str]] = []
    report = CorpusReport(on_skip=lambda *what: met.append(what))
    assert [document.text for document in read_corpus(tmp_path, CorpusOptions(errors="replace"), report)] == ["text"]
    assert [(source, reason.partition(":")[0]) for source, reason in met] == [(str(path), kind)]
    assert report.n_skipped_files == 1


def test_compressed_records_that_say_they_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(COMPRESS[".gz"](LINES))
    assert message(tmp_path).startswith(f"{tmp_path}/a.jsonl is gzip-compressed: expected UTF-8 text, JSON lines, ")


def test_text_that_only_looks_like_something_else(tmp_path: Path) -> None:
    for number, text in enumerate(["BZhang wrote", "PAR1 is a gene", "PK", "x" * 257 + "ustard", "%PDF", "Rar!"]):
        (tmp_path / f"{number}.txt").write_text(text)
    assert len(texts(tmp_path)) == 6


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.json", "a.txt.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_wide_text_is_refused_by_its_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""
    content = f"{mark}text\nnaïve 😀".encode(encoding)
    path = tmp_path / name
    path.write_bytes(COMPRESS[".gz"](content) if name.endswith(".gz") else content)
    expected = encoding[:6].upper()
    for location in (path, tmp_path):  # it is text, so that a folder is not read without it
        for errors in ("strict", "replace"):
            assert message(location, errors=errors) == (
                f"{path} is text in {expected}, and text is read as UTF-8; convert it (iconv -f {expected} -t UTF-8), or "
                "leave it out with `pattern`."
            )


def test_latin_1_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("naïve".encode("latin-1"))
    assert message(tmp_path).startswith(
        f"{path} is not UTF-8: byte 0xef at offset 2; convert the file, or pass `errors="
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JSONL.ZST", FileType("json lines", "zstd")),
        ("a.b.csv.gz", FileType("csv", "gzip")),
        ("a.gz.csv", FileType("csv", None)),
        ("zst", FileType("text", None)),
        (".zst", FileType("text", None)),
        ("a.zst", FileType("text", "zstd")),
        ("a.pq", FileType("parquet", None)),
        ("v1.2", FileType("text", None)),
    ],
)
def test_types_by_name(name: str, expected: FileType) -> None:
    assert file_type(Path(name)) == expected

import gzip
import io
import json

import pytest

from actstore.engine.inputs import textfiles
from actstore.engine.inputs.corpus import CorpusOptions, read_corpus
from actstore.engine.inputs.textfiles import BinaryFileError, decode_chunks
from actstore.store.errors import InvalidInputError


def read(path, **options):
    return list(read_corpus(path, CorpusOptions(**options)))


def texts(path, **options):
    return [document.text for document in read(path, **options)]


def message(path, **options):
    with pytest.raises(InvalidInputError) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Chunks of three bytes, so that characters, strings and objects are all cut somewhere."""
    monkeypatch.setattr(textfiles, "CHUNK_NBYTES", 3)


def test_a_text_is_one_document_exactly_as_it_stands(write):
    path = write("a.md", " one\r\ntwo\u2028\n\n")
    [document] = read(path)
    assert (document.text, document.source, document.ids) == (" one\r\ntwo\u2028\n\n", str(path), None)


def test_byte_order_mark_goes_and_only_at_the_start(write, tiny_chunks):
    assert texts(write("a.txt", "\ufeffab\ufeff")) == ["ab\ufeff"]


def test_characters_cut_by_a_chunk_are_whole(write, tiny_chunks):
    text = "aé漢😀" * 5
    assert texts(write("a.txt", text)) == [text]


def test_text_in_gzip(write):
    assert texts(write("a.txt.gz", gzip.compress(b"packed"))) == ["packed"]


@pytest.mark.parametrize("n_before", [0, 1, 2, 3, 4, 7])
def test_invalid_utf8_is_placed_to_the_byte(write, tiny_chunks, n_before):
    path = write("a.txt", b"\xc3\xa9" * n_before + b"\xff.")
    assert message(path) == (
        f"{path} is not UTF-8: byte 0xff at offset {2 * n_before}; "
        'convert the file, or pass `errors="replace"` to read on with U+FFFD in its place.'
    )


def test_a_character_cut_off_by_the_end_is_invalid(write, tiny_chunks):
    assert "byte 0xf0 at offset 4;" in message(write("a.txt", b"abcd\xf0\x9f\x98"))


def test_errors_replace_reads_on(write, tiny_chunks):
    assert texts(write("a.txt", b"ab\xffcd"), errors="replace") == ["ab\ufffdcd"]


def test_a_named_binary_is_refused_with_the_place_of_its_first_nul(write, tiny_chunks):
    path = write("a.txt", b"abcdefg\0\0")
    assert message(path, errors="replace") == (
        f"{path} is binary (NUL byte at offset 7): expected UTF-8 text, JSON lines, CSV, Parquet or Arrow, "
        "which may be compressed where the name says so (.gz, .bz2, .xz, .zst); convert it, or leave it out with `pattern`."
    )


def test_a_binary_is_left_at_its_first_nul():
    stream = io.BytesIO(b"\0" * (3 * textfiles.CHUNK_NBYTES))
    with pytest.raises(BinaryFileError):
        list(decode_chunks(stream, "big", "strict"))
    assert stream.tell() == textfiles.CHUNK_NBYTES


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"a" * 1000)[:-6], b"not gzip", gzip.compress(b"abc" * 99)[:12] + b"x" * 9],
    ids=["cut short", "no gzip", "garbled"],  # the bytes hold the time, and every worker must call a test the same
)
def test_damaged_gzip_is_one_sentence(write, content):
    path = write("a.txt.gz", content)
    found = message(path)
    assert found.startswith(f"{path} cannot be read (")
    assert found.endswith("): fix the file, or leave it out.")


def test_json_lines_carry_their_line_and_skip_blank_ones(write, tiny_chunks):
    path = write("a.jsonl", '\ufeff{"text": "one"}\r\n\n  \n{"text": "two\u2028"}')
    assert [(document.source, document.text) for document in read(path)] == [
        (f"{path}:1", "one"),
        (f"{path}:4", "two\u2028"),
    ]


@pytest.mark.parametrize("name", ["a.ndjson", "A.JSONL", "a.jsonl.gz"])
def test_json_lines_by_suffix(write, name):
    content = b'{"text": "one"}\n{"text": "two"}\n'
    assert texts(write(name, gzip.compress(content) if name.endswith("gz") else content)) == ["one", "two"]


def test_json_lines_are_read_one_at_a_time(write):
    path = write("a.jsonl", '{"text": "one"}\nbroken\n')
    documents = read_corpus(path)
    assert next(documents).text == "one"
    with pytest.raises(InvalidInputError, match=r"a\.jsonl:2 is not valid JSON"):
        next(documents)


def test_json_error_names_line_and_column(write):
    path = write("a.jsonl", '{"text": "one"}\n{"text": }\n')
    assert (
        message(path) == f"{path}:2 is not valid JSON (Expecting value at column 10): expected one object on each line."
    )


def test_json_nested_beyond_reason_is_one_sentence(write):
    assert "a.jsonl:1 is not valid JSON (" in message(write("a.jsonl", "[" * 200_000))


@pytest.mark.parametrize(
    ("line", "found"), [("[1]", "a list"), ("null", "null"), ('"a"', 'text ("a")'), ("3", "an integer (3)")]
)
def test_json_line_that_is_no_object(write, line, found):
    path = write("a.jsonl", line)
    assert message(path, text_column="body") == (
        f'{path}:1 holds {found}: expected one object on each line, such as {{"body": "..."}}.'
    )


def test_binary_under_a_json_name(write):
    assert "is binary (NUL byte at offset 2)" in message(write("a.jsonl", b"{}\0"))


RECORDS = [{"text": 'one, [{"\\n'}, {"text": "two 漢" * 9, "meta": {"a": [1, {}]}}, {"text": "three"}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_json_list_gives_a_document_for_each_object(write, monkeypatch, indent, chunk):
    monkeypatch.setattr(textfiles, "CHUNK_NBYTES", chunk)
    path = write("a.json", "\n " + json.dumps(RECORDS, indent=indent, ensure_ascii=False) + "\n")
    assert [(document.source, document.text) for document in read(path)] == [
        (f"{path}:{row}", record["text"]) for row, record in enumerate(RECORDS)
    ]


def test_json_list_is_read_one_object_at_a_time(write, tiny_chunks):
    documents = read_corpus(write("a.json", '[{"text": "one"}, broken'))
    assert next(documents).text == "one"
    with pytest.raises(InvalidInputError, match="not valid JSON"):
        next(documents)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('[{"text": "a"},\n {"text": "b"]\n]' + " " * 40, 2, "Expecting ',' delimiter"),
        ('[{"text": "a"},\n\n {"text" "b"}' + " " * 40, 3, "Expecting ':' delimiter"),
        ('[{"text": "a"},\n 3]', 2, "found '3' where an object should be"),
        ('[{"text": "a"}\n {"text": "b"}]', 2, "found '{' where , or ] should be"),
        ('[{"text": "a"},\n', 2, "the file ends too early"),
        ('[{"text": "a"}\n', 2, "the file ends too early"),
        ('[{"text": "a"},\n]', 2, "found ']' where an object should be"),
        ('[{"text": "a"}]\n[]', 2, "there is more after the list"),
        ('[{"text": "a"},\n\n{"text": "b', 3, "Unterminated string starting at"),
    ],
)
def test_faults_in_a_json_list_name_the_line(write, monkeypatch, chunk, content, line, reason):
    monkeypatch.setattr(textfiles, "CHUNK_NBYTES", chunk)
    path = write("a.json", content)
    assert message(path) == f"{path}:{line} is not valid JSON ({reason}): expected a list of objects."


@pytest.mark.parametrize(
    "content",
    ['{\n "name": "package"\n}', '{"name": "package"}\n', "[1, 2]", '"text"', "{broken", '[1, {"text": "a"}]'],
)
def test_other_json_is_a_text(write, content):
    assert texts(write("package.json", content)) == [content]


def test_an_object_nested_beyond_reason_is_one_sentence(write):
    assert "a.json:1 is not valid JSON (" in message(write("a.json", '[{"text": ' + "[" * 200_000))


def test_an_empty_json_list_holds_no_documents(write):
    assert "holds no documents" in message(write("a.json", " [\n] "))


def test_json_lines_under_a_json_name(write, tiny_chunks):
    path = write("a.json", '\n{"text": "one"}\n{"text": "two"}\n')
    assert [(document.source, document.text) for document in read(path)] == [(f"{path}:2", "one"), (f"{path}:3", "two")]


def test_json_list_in_gzip(write):
    assert texts(write("a.json.gz", gzip.compress(b'[{"text": "one"}]'))) == ["one"]

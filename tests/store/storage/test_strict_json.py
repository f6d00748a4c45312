from __future__ import annotations

import json

import pytest

from actstore.store.errors import FormatError
from actstore.store.storage import strict_json
from actstore.store.storage.folder import Folder
from actstore.store.storage.strict_json import MAX_DEPTH, parse_json


def deep(n: int) -> bytes:
    return b'{"a": ' + b"[" * n + b"]" * n + b"}"


def test_what_actstore_writes_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "é 東京 😀", {}], "b": {"c": []}}
    for ensure_ascii in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ensure_ascii).encode(), "S/x.json") == value
    assert parse_json(deep(MAX_DEPTH - 2), "S/x.json")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "can't decode byte 0xff"),
        ('{"a": 1}'.encode("utf-16"), "can't decode byte 0xff"),
        (b'{"a": 1, "b": 2, "a": 3}', "an object has the key 'a' twice"),
        (b'{"a": {"c": 1, "c": 1}}', "an object has the key 'c' twice"),
        (rb'{"a": "\ud800"}', "is no text"),
        (rb'{"\ud800": 1}', "is no text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (deep(MAX_DEPTH), f"more than {MAX_DEPTH} deep"),
        (deep(100_000), "maximum recursion depth"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(data: bytes, what: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_json(data, "S/x.json")
    message = str(caught.value)
    assert message.startswith("S/x.json should hold JSON")
    assert what in message
    assert "\n" not in message


def test_a_file_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MAX_NBYTES", 100)
    monkeypatch.setattr("actstore.store.storage.folder.MAX_NBYTES", 100)
    folder = Folder("memory://long-json/store", read_only=False)
    folder.write("a.json", b'{"a": 1' + b" " * 200 + b"}")
    with pytest.raises(FormatError, match="of at most 100 bytes, found more"):
        folder.read_json("a.json")
    folder.write("a.json", b'{"a": 1}')
    assert folder.read_json("a.json") == {"a": 1}

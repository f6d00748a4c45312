"""The client beside a server that is busy, refuses, sends elsewhere, or says something else; and where the key goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.explain.client import Client
from actstore.engine.explain.settings import ServerSettings
from actstore.store.errors import InvalidInputError, ServerError

if TYPE_CHECKING:
    from rule_server import RuleServer

KEY = "sk-very-secret"
MESSAGES: Any = ({"role": "system", "content": "Explanation:"}, {"role": "user", "content": '"a" 3'})


def ask(server: RuleServer, waits: list[float] | None = None, **settings: Any) -> Any:
    client = Client(ServerSettings(server.url, **settings), sleep=(waits if waits is not None else []).append)
    return client.ask("m", MESSAGES, temperature=0, max_new_tokens=9, seed=3)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a server on this machine needs none
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def test_a_question_has_its_settings_and_the_key_in_a_header(server: RuleServer) -> None:
    reply = ask(server)
    assert reply.text.endswith("**Explanation:** the token a\n")
    assert (reply.model, reply.usage) == ("m-2026", {"prompt_tokens": 7, "completion_tokens": 3})
    (request,), (headers,) = server.requests, server.headers
    expected = {"model": "m", "messages": [*MESSAGES], "temperature": 0, "max_tokens": 9, "seed": 3, "stream": False}
    assert request == expected
    assert headers["Authorization"] == f"Bearer {KEY}"
    ask(server, key_variable="")
    assert "Authorization" not in server.headers[1]


def test_a_busy_server_is_asked_again_after_longer_and_longer_waits(server: RuleServer) -> None:
    waits: list[float] = []
    server.refusals = [(429, {"Retry-After": "7"}, b"{}"), (503, {}, b"busy"), (500, {}, b""), (502, {}, b"")]
    assert ask(server, waits).text
    assert len(server.requests) == 5
    assert waits[0] == 7
    for attempt, wait in enumerate(waits[1:], 1):
        assert 2**attempt / 2 <= wait <= 2**attempt


def test_a_server_that_stays_busy_is_given_up(server: RuleServer) -> None:
    server.refusals = [(429, {}, json.dumps({"error": {"message": f"slow down, {KEY}"}}).encode())] * 9
    with pytest.raises(ServerError, match=r"was asked 3 times and gave no answer: HTTP status 429 \(slow down, …\)"):
        ask(server, retries=2)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (401, {}, f'{{"error": {{"message": "wrong {KEY}"}}}}', r"refuses: HTTP status 401 \(wrong …\)\. Check the key\."),
        (404, {}, '{"error": "no model m"}', r"\(no model m\)\. Check `endpoint` and the model's name\."),
        (400, {}, "\x00 no", r"HTTP status 400 \(.*no\)"),
        (307, {"Location": "https://elsewhere.example/v1"}, "", r"sends requests on to https://elsewhere\.example/v1\."),
        (200, {}, "<html>", "something else than a chat completion: '<html>'"),
        (200, {}, '{"choices": []}', "something else than a chat completion"),
        (200, {}, '{"choices": [{"message": []}]}', "something else than a chat completion"),
        (200, {}, "[" * 100_000, "something else than a chat completion"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_is_not_repeated(
    server: RuleServer, status: int, headers: dict[str, str], body: str, expected: str
) -> None:
    server.refusals = [(status, headers, body.encode())]
    with pytest.raises(ServerError, match=expected) as refused:
        ask(server)
    assert KEY not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [None, 3, [], {"text": "x"}])
def test_an_answer_without_a_text_is_an_empty_one(server: RuleServer, content: object) -> None:
    server.answer = lambda messages: content
    assert ask(server).text == ""


def test_a_text_that_no_file_can_hold_is_made_one(server: RuleServer) -> None:
    server.answer = lambda messages: "half \ud800 a pair"
    assert ask(server).text == "half ? a pair"


def test_nobody_there_is_an_error_after_the_retries() -> None:
    waits: list[float] = []
    client = Client(ServerSettings("http://127.0.0.1:9/v1", retries=2), sleep=waits.append)
    with pytest.raises(
        ServerError, match=r"The server at 127\.0\.0\.1:9 was asked 3 times and gave no answer: .*refused"
    ):
        client.ask("m", MESSAGES, temperature=0, max_new_tokens=9, seed=3)
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://models.example/v1", r"The key in OPENAI_API_KEY would be sent to models\.example in plain text"),
        ("localhost:8000", "Expected `endpoint` to be an address such as"),
        ("file:///etc/passwd", "Expected `endpoint` to be an address such as"),
        ("https://me:secret@models.example/v1", "without user, password and query"),
        ("https://models.example/v1?key=secret", "without user, password and query"),
    ],
)
def test_an_endpoint_that_would_give_something_away_is_refused(endpoint: str, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected) as refused:
        Client(ServerSettings(endpoint))
    assert "secret" not in str(refused.value)


def test_an_endpoint_may_be_the_whole_address() -> None:
    whole = "https://models.example/v1/chat/completions"
    assert {ServerSettings(url).url for url in (whole, "https://models.example/v1", "https://models.example/v1/")} == {
        whole
    }
    assert Client(ServerSettings("http://models.example/v1", key_variable="")).host == "models.example"

"""A server of chat completions that answers by rules, on this machine: no model, no network.

It explains a neuron by the token that is most often listed as active, and says of an excerpt that the neuron fires where the
description's last word is in it, or of marks that they are right where all hold that word.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXCERPT = re.compile(r"^Excerpt \d+: (.*)$", re.MULTILINE)


class RuleServer:
    """What was asked, and what is answered."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        """The bodies of all requests that were answered, or refused."""
        self.headers: list[dict[str, str]] = []
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []
        """Status, headers and body of the next answers, before rules apply again."""
        self.answer: Callable[[list[dict[str, str]]], object] = answer_by_rules
        """What stands in an answer, by the messages."""
        self.url = ""

    def purposes(self) -> Counter[str]:
        """How many requests asked for what."""
        return Counter(purpose_of(request["messages"]) for request in self.requests)


def purpose_of(messages: list[dict[str, str]]) -> str:
    """`explanation`, `detection` or `fuzzing`."""
    if "Explanation:" in messages[0]["content"]:
        return "explanation"
    return "fuzzing" if "marked tokens" in messages[0]["content"] else "detection"


def answer_by_rules(messages: list[dict[str, str]]) -> str:
    """The answer to a prompt of ours."""
    system, user = (message["content"] for message in messages)
    purpose = purpose_of(messages)
    if purpose == "explanation":
        listed = [json.loads(text) for text in re.findall(r'("(?:[^"\\]|\\.)*") \d+', user)]
        ((token, _),) = Counter(listed).most_common(1)
        return f"I looked at them all.\n**Explanation:** the token {token.strip()}\n"
    word = re.search(r"^Description: .*?(\S+)$", user, re.MULTILINE)
    assert word is not None
    held = re.compile(rf"(?<!\w){re.escape(word[1])}(?!\w)")
    if purpose == "detection":
        return f"[1] Let me see. {json.dumps([int(bool(held.search(text))) for text in EXCERPT.findall(user)])}"
    opened, closed = re.search(r"stand between (\S+) and (\S+)\.", system).groups()  # type: ignore[union-attr]
    marks = re.compile(f"{re.escape(opened)}(.*?){re.escape(closed)}")
    return json.dumps([int(all(held.search(part) for part in marks.findall(text))) for text in EXCERPT.findall(user)])


@contextmanager
def rule_server() -> Iterator[RuleServer]:
    """The server, while the context lasts."""
    state = RuleServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            state.headers.append(dict(self.headers))
            status, headers, data = state.refusals.pop(0) if state.refusals else (200, {}, b"")
            if not data and status == 200:
                content = state.answer(body["messages"])
                reply = {
                    "model": f"{body['model']}-2026",
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
                }
                data = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing: what was asked is in `requests`."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()

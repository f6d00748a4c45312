"""A client of servers that speak the protocol of OpenAI's chat completions: one request, one answer.

What may pass, such as a busy server or a cut connection, is tried again with growing waits. The key goes into a header of the
request and nowhere else: redirections, which would carry it elsewhere, are refused, and no message holds it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from actstore.store.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

    from actstore.engine.explain.prompts import Messages
    from actstore.engine.explain.settings import ServerSettings

MAY_PASS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses of a server that is busy, or being restarted."""
LONGEST_WAIT_S: Final = 60.0
LONGEST_ASKED_S: Final = 300.0
"""For which a server may ask by Retry-After."""
MAX_NBYTES: Final = 1 << 23
"""Of an answer: more is not read."""
_SHOWN: Final = 300
"""Characters of a server's reason that a message repeats."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    text: str
    """Empty where it answered with something that is no text, such as a refusal."""
    model: str
    usage: dict[str, int]
    """prompt_tokens and completion_tokens, as far as the server counts them."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: a redirection is an error with its status."""


class Client:
    """Asks one server; may be used by several threads."""

    def __init__(self, settings: ServerSettings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """`InvalidInputError` where the endpoint cannot be one, or the key would be sent in plain text."""
        self._settings, self._sleep = settings, sleep
        self._url, self._key = settings.url, settings.key()
        handlers: list[Any] = [_NoRedirects(), *([ProxyHandler({})] if settings.is_local else [])]
        self._opener = build_opener(*handlers)

    @property
    def host(self) -> str:
        """Host and port of the server."""
        return self._settings.host

    def ask(self, model: str, messages: Messages, *, temperature: float, max_new_tokens: int, seed: int) -> Reply:
        """The answer to some messages; `ServerError` where there is none after all retries, or will never be one."""
        body = json.dumps(
            {
                "model": model, "messages": list(messages), "temperature": temperature, "max_tokens": max_new_tokens,
                "seed": seed, "stream": False,
            }
        ).encode()  # fmt: skip
        for attempt in range(self._settings.retries + 1):
            try:
                return self._reply(self._post(body), model)
            except _BusyError as busy:
                if attempt == self._settings.retries:
                    tries = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise ServerError(
                        f"The server at {self.host} was asked {tries} and gave no answer: {busy}. What was answered before "
                        "is kept: try again later, or check `endpoint`."
                    ) from None
                self._sleep(busy.wait_s if busy.wait_s is not None else _wait(attempt))
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "actstore"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.timeout_s) as response:
                data: bytes = response.read(MAX_NBYTES + 1)
        except HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):  # it will not be another one
                said = self._clean(str(reason))
                raise ServerError(
                    f"The server at {self.host} cannot prove who it is: {said}. Check `endpoint`."
                ) from None
            raise _BusyError(self._clean(str(reason) or type(reason).__name__)) from None
        if len(data) > MAX_NBYTES:
            raise ServerError(
                f"The server at {self.host} answered with more than {MAX_NBYTES:,} bytes. Check `endpoint`."
            )
        return data

    def _refused(self, error: HTTPError) -> Exception:
        """What to raise for an answer that is an error."""
        reason = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            reason = _reason(error.read(1 << 16))
        said = self._clean(f"HTTP status {error.code}{reason and f' ({reason})'}")
        if error.code in MAY_PASS:
            return _BusyError(said, _retry_after(error.headers))
        if 300 <= error.code < 400:
            where = self._clean(error.headers.get("Location", "elsewhere"))
            return ServerError(f"The server at {self.host} sends requests on to {where}. Name that as `endpoint`.")
        advice = {401: "Check the key", 403: "Check the key", 404: "Check `endpoint` and the model's name"}
        what = advice.get(error.code, "Check `endpoint`, the model's name and the settings")
        return ServerError(f"The server at {self.host} refuses: {said}. {what}.")

    def _reply(self, data: bytes, model: str) -> Reply:
        try:
            value = json.loads(data)
            text = value["choices"][0]["message"].get("content")
            answered_by, usage = value.get("model"), value.get("usage")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ServerError(
                f"The server at {self.host} answered with something else than a chat completion: "
                f"{self._clean(data[:_SHOWN].decode(errors='replace'))!r}. Check `endpoint`."
            ) from None
        counted = usage if isinstance(usage, dict) else {}
        names = ("prompt_tokens", "completion_tokens")
        return Reply(
            _unicode(text) if isinstance(text, str) else "",
            _unicode(answered_by) if isinstance(answered_by, str) and answered_by else model,
            {name: counted[name] for name in names if type(counted.get(name)) is int and counted[name] >= 0},
        )

    def _clean(self, text: str) -> str:
        """A server's words in one line, without the key, should it repeat that."""
        shown = text.replace(self._key, "…") if self._key else text
        return " ".join(_unicode(shown).split())[:_SHOWN]


class _BusyError(Exception):
    """A request that may succeed later."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """For how long the server asks."""


def _wait(attempt: int) -> float:
    """Seconds before the next attempt: twice as long each time, and not for all clients the same."""
    return min(LONGEST_WAIT_S, 2.0**attempt) * random.uniform(0.5, 1.0)


def _retry_after(headers: Message) -> float | None:
    """The seconds that Retry-After asks for; None where it asks for none, or for a date."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(seconds, LONGEST_ASKED_S) if seconds >= 0 else None


def _reason(data: bytes) -> str:
    """What an error's body says: the message in it, or its text."""
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    return text


def _unicode(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can hold and no file can."""
    return text.encode(errors="replace").decode()

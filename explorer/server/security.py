"""What a server refuses before it looks at a request: other hosts, other sites, other methods, and who has no token.

A page anywhere on the web can make a browser ask a server on the loopback interface, and by a name that it lets point there
(DNS rebinding) read the answers. So the Host header must name this server, requests that another site makes are refused, and
nothing is ever changed. On other interfaces, a token in the address, then in a cookie, stands for the right to read.
"""

from __future__ import annotations

import ipaddress
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlencode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE: Final = "actstore-explorer"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, without its port, in small letters."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """An ASGI application in front of another."""

    def __init__(self, inner: Application, hosts: Collection[str], token: str | None = None) -> None:
        """`hosts`: names by which the server may be called; with a token addresses, too, which cannot be rebound."""
        self.inner, self.hosts, self.token = inner, {host.lower() for host in hosts}, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application answer it; other kinds of connection are closed."""
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if self.token is not None and not self._has_token(headers):
            await self._ask_for_token(scope, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self.inner(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        name = host_name(headers.get(b"host", ""))
        if name not in self.hosts and not (self.token is not None and _is_address(name)):
            return 403, "This server is not called by that name. Allow it with --allow-host."
        if method not in ("GET", "HEAD"):
            return 405, "This server only reads."
        is_ours = headers.get(b"sec-fetch-site", "none") in ("none", "same-origin")
        # A link from elsewhere to the explorer itself is a navigation; what it contains is asked for by the explorer.
        is_link = (headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")) == ("navigate", "document")
        return None if is_ours or is_link else (403, "This server answers its own pages alone.")

    def _has_token(self, headers: dict[bytes, str]) -> bool:
        given = headers.get(b"authorization", "").removeprefix("Bearer ")
        try:
            cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        assert self.token is not None
        return any(
            secrets.compare_digest(one.encode(), self.token.encode()) for one in (given, cookie.value if cookie else "")
        )

    async def _ask_for_token(self, scope: Scope, send: Send) -> None:
        """Turn a token in the address into a cookie, and go on without it in the address; else refuse."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        (given,) = query.pop("token", [""])[:1]
        assert self.token is not None
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            await _answer(
                send,
                401,
                "This server asks for the token that it printed when it began: open the address with ?token=…",
            )
            return
        rest = urlencode(query, doseq=True)
        # Relative, so that it holds below any path.
        target = "./" + (f"?{rest}" if rest else "")
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 303, "", [(b"location", target.encode()), (b"set-cookie", cookie.encode())])


async def _answer(send: Send, status: int, text: str, headers: Collection[tuple[bytes, bytes]] = ()) -> None:
    body = f"{text}\n".encode()
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *headers, *HEADERS]})
    await send({"type": "http.response.body", "body": body})

"""What a server refuses: by host, by site, by method, without the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from actstore.explorer.server.security import POLICY, Guard, host_name, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable

    Client = Callable[..., Any]

NAMES = ("localhost", "127.0.0.1", "::1")


async def answering(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-inner", b"yes")]})
    await send({"type": "http.response.body", "body": b"secret"})


def test_what_it_is_called_by(client: Client) -> None:
    guard = Guard(answering, [*NAMES, "Lab.example"])
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "lab.example:80"):
        assert client(guard, "/", host=host).status == 200, host
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "10.0.0.1", "localhost.evil:80"):
        reply = client(guard, "/", host=host)
        assert reply.status == 403, host
        assert b"secret" not in reply.body


def test_every_answer_has_the_policy(client: Client) -> None:
    guard = Guard(answering, NAMES)
    for reply in (client(guard, "/"), client(guard, "/", host="evil"), client(guard, "/", method="POST")):
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading(client: Client, method: str) -> None:
    assert client(Guard(answering, NAMES), "/", method=method).status == 405


def test_other_sites_may_link_and_nothing_else(client: Client) -> None:
    guard = Guard(answering, NAMES)
    assert client(guard, "/api/stores", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403
    assert client(guard, "/api/stores", sec_fetch_site="same-site", sec_fetch_mode="cors").status == 403
    assert (
        client(guard, "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="iframe").status
        == 403
    )
    assert (
        client(guard, "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document").status
        == 200
    )
    assert client(guard, "/", sec_fetch_site="same-origin", sec_fetch_mode="cors").status == 200
    assert client(guard, "/", sec_fetch_site="none", sec_fetch_mode="navigate", sec_fetch_dest="document").status == 200


def test_a_token_becomes_a_cookie(client: Client) -> None:
    guard = Guard(answering, NAMES, token="t0ken")
    for path, headers in (
        ("/", {}),
        ("/?token=wrong", {}),
        ("/", {"cookie": "actstore-explorer=wrong"}),
        ("/", {"authorization": "Bearer"}),
    ):
        refused = client(guard, path, host="10.0.0.5:80", **headers)
        assert (refused.status, b"secret" in refused.body) == (401, False)
    reply = client(guard, "/?token=t0ken&a=b", host="10.0.0.5:80")
    assert (reply.status, reply.headers["location"]) == (303, "./?a=b")
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
    assert client(guard, "/", host="10.0.0.5:80", cookie=cookie.partition(";")[0]).body == b"secret"
    assert client(guard, "/", host="10.0.0.5:80", authorization="Bearer t0ken").body == b"secret"
    assert client(guard, "/", host="evil.example", authorization="Bearer t0ken").status == 403  # a name can be rebound


def test_names_in_host_headers() -> None:
    assert [host_name(text) for text in ("A.b:80", "[::1]:8", "[fe80::1]", "x")] == ["a.b", "::1", "fe80::1", "x"]


def test_interfaces() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.3.2.1", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "::", "example.org"))

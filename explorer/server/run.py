"""Starting a server: address, token, browser."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actstore.explorer.server.security import LOOPBACK, is_loopback
from actstore.explorer.server.shelf import Shelf
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from actstore.store.reader import Store


@dataclass(frozen=True)
class Served:
    """A server that is about to answer."""

    url: str
    """With the token, where there is one."""
    stores: tuple[str, ...]
    model: str | None = None


def run_server(
    stores: Sequence[str | Path | Store],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_host: Sequence[str] = (),
    model: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    browser: bool = True,
    on_start: Callable[[Served], None] = lambda served: None,
) -> None:
    """As `actstore.serve`."""
    import uvicorn

    from actstore.explorer.server.app import application
    from actstore.explorer.server.live import LiveModel

    if not stores:
        raise InvalidInputError("Name the store to serve, or several.")
    shelf = Shelf(stores)
    live = None
    if model is not None:
        with shelf.use(0, "scans") as store:
            live = LiveModel.load(store, model, device=device, trust_remote_code=trust_remote_code)
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    names = {*LOOPBACK, host, *allow_host, *([] if token is None else [socket.gethostname(), socket.getfqdn()])}
    listener = _listen(host, port)
    shown = host if host not in ("0.0.0.0", "::") else socket.gethostname()
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
    url = address + ("" if token is None else f"?token={token}")
    served = Served(
        url, tuple(shelf.folder(i).location for i in range(len(shelf))), None if live is None else live.model.spec.name
    )
    configuration = uvicorn.Config(
        application(shelf, names, token, live), access_log=False, log_level="warning", http="h11", ws="none",
        h11_max_incomplete_event_size=1 << 20, server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = _Announcing(uvicorn.Server(configuration), lambda: _started(served, browser, on_start))
    with listener:
        server.run([listener])


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise InvalidInputError(
            f"Nothing can listen at {host}:{port} ({getattr(error, 'strerror', None) or error}). Choose another `port`, or "
            "0 for any that is free."
        ) from None
    return listener


def _started(served: Served, browser: bool, on_start: Callable[[Served], None]) -> None:
    on_start(served)
    if browser:
        threading.Thread(target=webbrowser.open, args=(served.url,), daemon=True).start()


class _Announcing:
    """A uvicorn server that says when it has begun."""

    def __init__(self, server: Any, announce: Callable[[], None]) -> None:
        self._server, self._announce = server, announce
        inner = server.startup

        async def startup(sockets: Any = None) -> None:
            await inner(sockets=sockets)
            self._announce()

        server.startup = startup

    def run(self, sockets: list[socket.socket]) -> None:
        """Until interrupted."""
        self._server.run(sockets=sockets)

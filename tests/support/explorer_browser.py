"""What the browser's tests are run with: a server in a thread, and Chromium."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from actstore.explorer.server.app import application
from actstore.explorer.server.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an ASGI application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", http="h11", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


def serving_stores(stores: Sequence[Path]) -> Any:
    """The same for the explorer of some stores."""
    return serving(application(Shelf(stores), ["127.0.0.1"]))


WAIT_MS = 60_000


class Tab:
    """A page of the browser; whatever it complains of is an error."""

    def __init__(self, page: Any, base: str) -> None:
        self.page, self.base = page, base
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def open(self, route: str) -> Tab:
        """Go to a route and wait until everything is there."""
        self.page.goto("about:blank")
        self.page.goto(self.base + route)
        return self.settled()

    def settled(self) -> Tab:
        self.page.locator("main h1, main .empty, main .error").first.wait_for()
        self.page.wait_for_selector(".loading, [aria-busy=true]", state="detached")
        return self

    def text(self, selector: str = "main") -> str:
        return str(self.page.locator(selector).first.inner_text())

    def fits(self) -> bool:
        """Whether the page is no wider than the window."""
        return bool(self.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"))


@contextmanager
def exploring(browser: Any, stores: Sequence[Any], **window: Any) -> Iterator[Tab]:
    """A tab on the explorer of some stores; it must not have complained."""
    with serving_stores(stores) as url:
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **window)
        yield (tab := Tab(context.new_page(), url))
        context.close()
        assert tab.complaints == []

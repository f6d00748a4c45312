"""Stores that the explorer is tried on, and a client that asks an application without a socket."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.explorer.pages.table import Address

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[1] / "store" / "data"


@pytest.fixture(scope="session")
def text_path() -> Path:
    """A store of text: labels, questions, graphs, edits, every precision, one capture unfinished."""
    return DATA / "format-1-step-2" / "text"


@pytest.fixture(scope="session")
def image_path() -> Path:
    return DATA / "format-1-step-2" / "images"


@pytest.fixture(scope="session")
def planted_path() -> Path:
    """A store of the present format: one neuron per behaviour."""
    return DATA / "format-1-step-4"


@pytest.fixture(scope="session")
def text(text_path: Path) -> actstore.Store:
    return actstore.open(text_path)


@pytest.fixture(scope="session")
def planted(planted_path: Path) -> actstore.Store:
    return actstore.open(planted_path)


@pytest.fixture
def copy(text_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(text_path, tmp_path / "copy.actstore")


@pytest.fixture
def pictures(image_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of the store of images, where its capture found them: in a folder of the one that commands are given in."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    rows = actstore.open(image_path).capture("corpus").documents().to_pylist()
    for row in rows:
        image = Image.new("RGB", (row["width"], row["height"]), (200, 40, 40))
        image.save(tmp_path / row["image"])
    return tmp_path / "pictures"


@pytest.fixture(scope="session")
def page() -> Callable[..., dict[str, Any]]:
    """The document of an address of a store."""

    def read(store: Any, address: str) -> dict[str, Any]:
        return Address.parse(address).document(store)

    return read


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(application: Any, path: str, *, host: str = "127.0.0.1:80", method: str = "GET", **headers: str) -> Reply:
    """What an ASGI application answers; header names with _ for -."""
    raw_path, _, query = path.partition("?")
    sent: list[dict[str, Any]] = []
    given = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    from urllib.parse import unquote

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(raw_path), "raw_path": raw_path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    start, *rest = sent
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(message.get("body", b"") for message in rest))


@pytest.fixture(scope="session")
def client() -> Callable[..., Reply]:
    return ask

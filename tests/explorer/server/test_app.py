"""The application over stores: pages as JSON, errors as sentences, the bundle, images, several stores."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from PIL import Image

import actstore
from actstore.display.reports import json_text
from actstore.explorer.bundle_files import FILES, bundle_file
from actstore.explorer.pages.table import PAGES, Address
from actstore.explorer.server.app import application
from actstore.explorer.server.shelf import MAX_AGE_S, Shelf
from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Client = Callable[..., Any]


@pytest.fixture(scope="module")
def served(text_path: Path, image_path: Path) -> Any:
    return application(Shelf([text_path, image_path]), ["127.0.0.1"])


def test_stores_say_what_there_is(client: Client, served: Any, text_path: Path) -> None:
    found = client(served, "/api/stores").json
    assert [one["number"] for one in found["stores"]] == [0, 1]
    assert found["stores"][0]["store"] == str(text_path)
    assert (found["form"], found["live"], found["pages"]) == ("server", False, list(PAGES))


def test_a_store_that_cannot_be_described_keeps_no_other_away(client: Client, copy: Path, image_path: Path) -> None:
    served = application(Shelf([copy, image_path]), ["127.0.0.1"])
    shutil.rmtree(copy)
    found = client(served, "/api/stores").json["stores"]
    assert found[0]["captures"] == {}
    assert "There is no store" in found[0]["error"]
    assert found[1]["captures"]
    assert "error" not in found[1]


@pytest.mark.parametrize(
    "address",
    [
        "neuron/corpus/mlp.post/L1.N3",
        "overview/corpus/mlp.post",
        "documents/corpus?search=jsonl%3A3",
        "graph/graphs/L1.N3",
    ],
)
def test_a_page_is_the_document_of_its_address(client: Client, served: Any, text: actstore.Store, address: str) -> None:
    reply = client(served, f"/api/0/{address}")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == json.loads(json_text(Address.parse(address).document(text)))


def test_names_may_hold_any_sign(client: Client, served: Any) -> None:
    column = quote("(max - mean) / std", safe="")
    assert client(served, f"/api/0/column/corpus/mlp.post/{column}").json["n"] == 24
    query = quote("select 'ü/&?#' as \"<b>\"", safe="")
    assert client(served, f"/api/0/sql?query={query}").json["rows"] == [{"<b>": "ü/&?#"}]


@pytest.mark.parametrize(
    ("address", "status", "reason"),
    [
        ("0/neuron/corpus/mlp.post/L9.N9", 404, "layers 0 to 1"),
        ("0/neuron/corpus", 400, "Expected"),
        ("0/nothing", 404, "no page"),
        ("7/store", 404, "stores 0 to 1"),
        ("0/sql?query=drop%20table%20x", 400, "only reads"),
        ("0/live/corpus/mlp.post?text=x", 400, "--model"),
    ],
)
def test_errors_are_sentences(client: Client, served: Any, address: str, status: int, reason: str) -> None:
    reply = client(served, f"/api/{address}")
    assert reply.status == status
    assert reason in reply.json["error"]
    assert "Traceback" not in reply.json["error"]


def test_the_bundle_is_served_and_nothing_else(client: Client, served: Any) -> None:
    for name in FILES:
        reply = client(served, "/" if name == "index.html" else f"/{name}")
        assert (reply.body, reply.headers["content-type"]) == bundle_file(name)
    for path in ("/setup.py", "/../setup.py", "/%2e%2e/setup.py", "/bundle/"):
        assert client(served, path).status == 404
    assert client(served, "/api/0/image/corpus/../../x").status == 400  # the address of no image


def test_answers_are_compressed_and_not_kept(client: Client, served: Any) -> None:
    plain = client(served, "/api/0/neuron/corpus/mlp.post/L1.N3")
    packed = client(served, "/api/0/neuron/corpus/mlp.post/L1.N3", accept_encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert plain.headers["cache-control"] == "no-store"


def test_images_come_from_where_they_were(client: Client, served: Any) -> None:
    reply = client(served, "/api/1/image/corpus/0")  # the store was kept without them
    assert reply.status == 404
    assert "no longer exists" in reply.json["error"]
    assert client(served, "/api/1/image/corpus/99").status == 404
    assert client(served, "/api/0/image/corpus/0").status == 404


@pytest.mark.usefixtures("pictures")
def test_images_that_are_there_are_shown(client: Client, image_path: Path) -> None:
    served = application(Shelf([image_path]), ["127.0.0.1"])
    reply = client(served, "/api/0/image/corpus/0")
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(reply.body)).size == (40, 24)
    layer = min(actstore.open(image_path).capture("corpus").record.layers("mlp.post"))
    found = client(served, f"/api/0/maps/corpus/mlp.post/L{layer}.N3").json
    assert all(one["image"] for one in found["maps"])
    assert client(served, "/api/0/text/corpus/mlp.post/0").json["image"] is True


def test_a_shelf_opens_anew_what_has_become_old(text_path: Path) -> None:
    now = [0.0]
    shelf = Shelf([text_path], clock=lambda: now[0])
    with shelf.use(0) as first:
        pass
    with shelf.use(0) as again, shelf.use(0, "sql") as other:
        assert again is first
        assert other is not first
    now[0] = MAX_AGE_S + 1
    with shelf.use(0) as later:
        assert later is not first


def test_a_shelf_says_at_once_what_is_missing(tmp_path: Path, text: actstore.Store) -> None:
    with pytest.raises(NotFoundError, match="There is no store"):
        Shelf([tmp_path])
    assert Shelf([text]).folder(0).read_only

"""The server's application: the bundle, and every page of `pages.table` as JSON below `api/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Route

from actstore.display.reports import json_text
from actstore.explorer.bundle_files import FILES, bundle_file
from actstore.explorer.pages.images import image_bytes
from actstore.explorer.pages.overview import store_page
from actstore.explorer.pages.table import PAGES, Address
from actstore.explorer.server.security import Guard
from actstore.store.errors import ActstoreError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.requests import Request

    from actstore.explorer.server.live import LiveModel
    from actstore.explorer.server.shelf import Shelf


class Explorer:
    """What the server answers."""

    def __init__(self, shelf: Shelf, live: LiveModel | None = None) -> None:
        """`live`: the model of the first store, for new text."""
        self.shelf, self.live = shelf, live

    def routes(self) -> list[Route]:
        """The addresses."""
        files = [Route("/" if name == "index.html" else f"/{name}", _file(name)) for name in FILES]
        return [
            *files,
            Route("/api/stores", self.stores),
            Route("/api/{store:int}/image/{capture}/{document:int}", self.image),
            Route("/api/{store:int}/live/{capture}/{site}", self.new_text),
            Route("/api/{store:int}/{page:path}", self.page),
        ]

    async def stores(self, _: Request) -> Response:
        """The stores, and what this server can do."""

        def answer() -> dict[str, Any]:
            described = [{"number": number, **self._described(number)} for number in range(len(self.shelf))]
            return {"form": "server", "pages": [*PAGES], "live": self.live is not None, "stores": described}

        return await _document(answer)

    def _described(self, number: int) -> dict[str, Any]:
        """A store, or in `error` why it cannot be described: the others are shown all the same."""
        try:
            with self.shelf.use(number) as store:
                return store_page(store)
        except (ActstoreError, OSError) as error:
            location = self.shelf.folder(number).location
            return {"store": location, "model": location, "captures": {}, "error": str(error)}

    async def page(self, request: Request) -> Response:
        """One page's document."""
        # The path as it was sent: a name may contain a slash, which is quoted there.
        path = request.scope.get("raw_path", request.scope["path"].encode()).decode("latin-1")
        number = request.path_params["store"]
        text = path.partition(f"/api/{number}/")[2] + (f"?{request.url.query}" if request.url.query else "")

        def answer() -> dict[str, Any]:
            address = Address.parse(text)
            with self.shelf.use(number, PAGES[address.page].lane) as store:
                return address.document(store, self.shelf.open_other)

        return await _document(answer)

    async def new_text(self, request: Request) -> Response:
        """The activations of a text that the model reads now."""
        of, options = request.path_params, request.query_params

        def answer() -> dict[str, Any]:
            if self.live is None or of["store"] != 0:
                raise InvalidInputError(
                    "This server runs no model for this store. Start it with --model to read new text."
                )
            with self.shelf.use(0, "scans") as store:
                return self.live.document(
                    store, of["capture"], of["site"], options.get("text", ""), options.get("neurons", "")
                )

        return await _document(answer)

    async def image(self, request: Request) -> Response:
        """A document's image, as PNG."""
        of = request.path_params

        def answer() -> bytes:
            with self.shelf.use(of["store"]) as store:
                return image_bytes(store, of["capture"], of["document"])

        try:
            return Response(await run_in_threadpool(answer), media_type="image/png")
        except ActstoreError as error:
            return _json({"error": str(error)}, 404)


def application(shelf: Shelf, hosts: Collection[str], token: str | None = None, live: LiveModel | None = None) -> Guard:
    """The ASGI application: `hosts` are the names that it may be called by."""
    inner = Starlette(routes=Explorer(shelf, live).routes(), middleware=[Middleware(GZipMiddleware, minimum_size=1000)])
    return Guard(inner, hosts, token)


def _file(name: str) -> Callable[[Request], Any]:
    data, kind = bundle_file(name)

    async def answer(_: Request) -> Response:
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


async def _document(answer: Callable[[], dict[str, Any]]) -> Response:
    """What `answer` gives, as JSON; its errors as a sentence, with the status that fits."""
    try:
        return _json(await run_in_threadpool(answer))
    except NotFoundError as error:
        return _json({"error": str(error)}, 404)
    except ActstoreError as error:
        return _json({"error": str(error)}, 400)


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(json_text(document), status, {"cache-control": "no-store"}, media_type="application/json")

"""What a site is made of: its files, and how each is made. Any process can make any of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstore.explorer.pages.neuron import graph_sets
from actstore.explorer.pages.overview import store_page
from actstore.explorer.pages.table import Address
from actstore.explorer.pages.tokens import token_index
from actstore.explorer.site.files import SHARD, TOKENS, file_name, file_of, script
from actstore.store.errors import ActstoreError
from actstore.store.neurons import neuron_name
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actstore.store.reader import Store

PAGES: Final = ("store", "overview", "column", "neuron", "graph", "token", "token-list", "questions", "prompts")
"""The pages that a site has files of; the others need a server."""
PATHS: Final = 12
"""Paths of a neuron's graph."""


@dataclass(frozen=True)
class SiteFile:
    """A file of a site, and the addresses of the documents in it, each with its name there."""

    file: str
    documents: tuple[tuple[str | None, str], ...]


@dataclass(frozen=True)
class SiteJob:
    """One store's site: can be pickled."""

    store: Store
    """Pickled by its location; a worker opens it once."""
    target: Path
    capture: str
    site: str
    exemplars: int
    graphs: str | None
    """The set of graphs; None where there are none."""

    def path(self, file: str) -> Path:
        """Where a file lies."""
        return self.target / "data" / f"{file}.js"

    def write(self, item: SiteFile) -> int:
        """Make a file, whole or not at all; its bytes."""
        data = self.make(item)
        path = self.path(item.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(data)
        return len(data)

    def make(self, item: SiteFile) -> bytes:
        """The bytes of a file."""
        named = {name: self._document(self.store, address) for name, address in item.documents}
        return script(item.file, named.get(None, named))

    def _document(self, store: Store, text: str) -> Any:
        page, *parts = text.split("/")
        if page == "token-list":
            index = token_index(store, self.capture, self.site)
            return {"tokens": [{"token": token, "text": store.token_text(token)} for token in index.tokens()]}
        if page == "token":
            reason = "These files hold no search through graphs. `actstore serve STORE` has it."
            return token_index(store, self.capture, self.site).document(store, int(parts[-1])) | {
                "graphs": {"reason": reason}
            }
        return Address.parse(text).document(store)

    def files(self, neurons: Sequence[tuple[int, int]]) -> list[SiteFile]:
        """All files but the site's first page, for these neurons (layer, index)."""
        return [
            *(_alone(address) for address in self._single(self.store)),
            *self._shards(Address("neuron", (self.capture, self.site)), neurons, f"?exemplars={self.exemplars}"),
            *(self._shards(Address("graph", (self.graphs,)), neurons, f"?paths={PATHS}") if self.graphs else ()),
            *self._tokens(self.store),
        ]

    def _single(self, store: Store) -> Iterator[Address]:
        """The addresses of the documents that have a file of their own."""
        overview = Address("overview", (self.capture, self.site))
        yield overview
        for statistic in overview.document(store)["statistics"]:
            yield Address("column", (self.capture, self.site, statistic["name"]))
        if not store_page(store)["captures"][self.capture]["questions"]:
            return
        questions = Address("questions", (self.capture,))
        known = questions.document(store)
        for label in ("", *known["labels_known"]):
            yield Address("questions", (self.capture,), (("by", label),) if label else ())
        for row in range(len(known["queries"])):
            yield Address("prompts", (self.capture, str(row)))

    def _shards(self, address: Address, neurons: Sequence[tuple[int, int]], options: str) -> Iterator[SiteFile]:
        shards: dict[str, list[tuple[str | None, str]]] = {}
        for layer, index in neurons:
            one = Address(address.page, (*address.parts, neuron_name(layer, index)))
            file, name = file_of((one.page, *one.parts))
            shards.setdefault(file, []).append((name, f"{one}{options}"))
        return (SiteFile(file, tuple(documents)) for file, documents in shards.items())

    def _tokens(self, store: Store) -> Iterator[SiteFile]:
        """The list of tokens that have a neuron, and a page for each."""
        place = f"{file_name(self.capture)}/{file_name(self.site)}"
        tokens = token_index(store, self.capture, self.site).tokens()
        yield SiteFile(f"token-list/{place}", ((None, f"token-list/{place}"),))
        shards: dict[str, list[tuple[str | None, str]]] = {}
        for token in tokens:
            file, name = file_of(("token", self.capture, self.site, str(token)))
            shards.setdefault(file, []).append((name, f"token/{token}"))
        yield from (SiteFile(file, tuple(documents)) for file, documents in shards.items())

    def about(self) -> dict[str, Any]:
        """What the front end needs to know at once: the store with this capture alone, and how files are named."""
        described = store_page(self.store)
        described["captures"] = {self.capture: described["captures"][self.capture] | {"sites": [self.site]}}
        described["store"] = Path(described["store"].rstrip("/")).name  # where it lies on a disk is nobody's business
        described["graphs"] = [self.graphs] if self.graphs else []
        return {
            "pages": list(PAGES),
            "shards": {"neuron": SHARD, "token": TOKENS},
            "store": described | {"default": self.capture, "damaged": {}},
        }


def first_graphs(store: Store, capture: str, site: str) -> str | None:
    """The set of graphs of a capture that a site shows: `graphs`, or else the first; None where none can be read."""
    from actstore.store.graphs.record import read_record

    for name in graph_sets(store):
        try:
            record = read_record(store.folder, name)
        except ActstoreError:
            continue
        if record is not None and (record.capture, record.site) == (capture, site):
            return name
    return None


def _alone(address: Address) -> SiteFile:
    """The file of one document; its options are parts of its name."""
    parts = (address.page, *address.parts, *(f"{name}={value}" for name, value in address.options))
    return SiteFile("/".join(file_name(part) for part in parts), ((None, str(address)),))

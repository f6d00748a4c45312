"""What a site is made of: its files, and how each is made. Any process can make any of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstore.explorer.pages.change import change_page
from actstore.explorer.pages.documents import FILE_DIGITS, document_rows, text_of_peaks
from actstore.explorer.pages.documents import TOKENS as TEXT_TOKENS
from actstore.explorer.pages.images import image_bytes
from actstore.explorer.pages.numbers import short
from actstore.explorer.pages.overview import store_page
from actstore.explorer.pages.table import Address
from actstore.explorer.pages.tokens import token_index
from actstore.explorer.site.files import SHARD, TOKENS, file_name, file_of, script, sharded
from actstore.store.neurons import neuron_name
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from actstore.store.reader import Store

PAGES: Final = ("store", "overview", "column", "neuron", "token", "token-list", "questions", "prompts")
"""The pages that every site has files of."""
PATHS: Final = 12
"""Paths of a neuron's graph."""
IMAGE_SIDE: Final = 256
"""Pixels of an image's longer side at most."""


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
    parts: frozenset[str]
    """Those of `PARTS` that it has."""
    texts: tuple[int, ...] = ()
    """Documents whose whole text it has."""
    held: frozenset[str] | None = None
    """Names of the neurons that it has pages of; None for all."""
    compare: str | None = None
    """Another capture, whose statistics it has too."""
    has_change: bool = False
    """Whether the two are of the same tokens, so that there are change scores."""

    def path(self, file: str) -> Path:
        """Where a file lies."""
        return self.target / "data" / f"{file}.js"

    def write(self, item: SiteFile) -> None:
        """Make a file, whole or not at all, after the images that it shows."""
        named = self.documents(item)
        for document in images_of(named):
            self._write_image(document)
        put(self.path(item.file), _bytes_of(item, named))

    def make(self, item: SiteFile) -> bytes:
        """The bytes of a file."""
        return _bytes_of(item, self.documents(item))

    def image(self, document: int) -> bytes:
        """A document's image as the site has it."""
        return image_bytes(self.store, self.capture, document, IMAGE_SIDE, "WEBP")

    def _write_image(self, document: int) -> None:
        path = self.target / "data" / "image" / file_name(self.capture) / f"{document}.webp"
        if not path.exists():
            put(path, self.image(document))

    def documents(self, item: SiteFile) -> dict[str | None, Any]:
        """The documents of a file by their names in it."""
        return {name: self._document(address) for name, address in item.documents}

    def _document(self, text: str) -> Any:
        store = self.store
        page, *parts = text.split("/")
        if page == "token-list":
            index = token_index(store, self.capture, self.site)
            return {"tokens": [{"token": token, "text": store.token_text(token)} for token in index.tokens()]}
        if page == "token":
            reason = "These files hold no search through graphs. `actstore serve STORE` has it."
            return token_index(store, self.capture, self.site).document(store, int(parts[-1])) | {
                "graphs": {"reason": reason}
            }
        if page == "document-list":
            rows = document_rows(store.peek(self.capture), self.texts)
            return {"documents": rows, "n": store.peek(self.capture).record.plan.n_documents}
        if page == "text":
            is_held = (lambda name: True) if self.held is None else self.held.__contains__
            return text_of_peaks(store, self.capture, self.site, int(parts[0]), int(parts[1]), is_held)
        if page == "change":
            assert self.compare is not None
            return change_page(store, self.capture, self.site, other=store, other_capture=self.compare)
        document = Address.parse(text).document(store)
        kinds = {"neuron": ("exemplars",), "others": ("lowest", "random")}.get(page, ())
        return document | {kind: [shown_part(one) for one in document[kind]] for kind in kinds if kind in document}

    def files(self, neurons: Sequence[tuple[int, int]]) -> list[SiteFile]:
        """All files but the site's first page, the images and the lists that come of comparing; for these neurons."""
        at = (self.capture, self.site)
        by_neuron: dict[str, tuple[tuple[str, ...], str]] = {"neuron": (at, f"?exemplars={self.exemplars}")}
        by_neuron |= {name: (at, "") for name in ("others", "maps") if name in self.parts}
        by_neuron |= {"graph": ((self.graphs,), f"?paths={PATHS}")} if self.graphs else {}
        return [
            *(_alone(address) for address in self._single()),
            *(
                one
                for name, (place, options) in by_neuron.items()
                for one in self._shards(Address(name, place), neurons, options)
            ),
            *self._tokens(),
            *self._texts(),
        ]

    def _single(self) -> Iterator[Address]:
        """The addresses of the documents that have a file of their own."""
        for capture in filter(None, (self.capture, self.compare)):
            yield (overview := Address("overview", (capture, self.site)))
            for statistic in overview.document(self.store)["statistics"]:
                yield Address("column", (capture, self.site, statistic["name"]))
        if self.has_change:
            yield Address("change", (self.capture, self.site))
        if not store_page(self.store)["captures"][self.capture]["questions"]:
            return
        questions = Address("questions", (self.capture,))
        known = questions.document(self.store)
        for label in ("", *known["labels_known"]):
            yield Address("questions", (self.capture,), (("by", label),) if label else ())
        for row in range(len(known["queries"])):
            yield Address("prompts", (self.capture, str(row)))

    def _shards(self, address: Address, neurons: Sequence[tuple[int, int]], options: str) -> Iterator[SiteFile]:
        named = (Address(address.page, (*address.parts, neuron_name(*neuron))) for neuron in neurons)
        yield from _grouped(((one.page, *one.parts), f"{one}{options}") for one in named)

    def _tokens(self) -> Iterator[SiteFile]:
        """The list of tokens that have a neuron, and a page for each."""
        place = f"{file_name(self.capture)}/{file_name(self.site)}"
        tokens = token_index(self.store, self.capture, self.site).tokens()
        yield SiteFile(f"token-list/{place}", ((None, f"token-list/{place}"),))
        yield from _grouped((("token", self.capture, self.site, str(token)), f"token/{token}") for token in tokens)

    def _texts(self) -> Iterator[SiteFile]:
        """The list of documents, and their texts, in pages of as many tokens as on a server."""
        if not self.texts:
            return
        lengths = self.store.peek(self.capture).documents().to_arrow()["n_tokens"].to_pylist()
        yield SiteFile(f"document-list/{file_name(self.capture)}", ((None, "document-list"),))
        for document in self.texts:
            for first in range(0, max(1, lengths[document]), TEXT_TOKENS):
                parts = ("text", self.capture, self.site, str(document), *([f"first={first}"] if first else []))
                yield SiteFile("/".join(map(file_name, parts)), ((None, f"text/{document}/{first}"),))

    def about(self, reasons: Mapping[str, str]) -> dict[str, Any]:
        """What the front end needs to know at once: the store with this capture alone, and how files are named.

        `reasons`: why there are no files of some pages, by page.
        """
        described = store_page(self.store)
        captures: dict[str, dict[str, Any]] = {self.capture: {}} | (
            {self.compare: {"compared": True}} if self.compare else {}
        )
        described["captures"] = {
            name: described["captures"][name] | {"sites": [self.site]} | more for name, more in captures.items()
        }
        described["store"] = Path(described["store"].rstrip("/")).name  # where it lies on a disk is nobody's business
        described["graphs"] = [self.graphs] if self.graphs else []
        return {
            "pages": [
                *PAGES,
                *(["graph"] if self.graphs else []),
                *sorted(self.parts),
                *(["text", "document-list"] if self.texts else []),
                *(["change"] if self.has_change else []),
            ],
            "texts": list(self.texts),
            "reasons": dict(reasons),
            "shards": {"neuron": SHARD, "token": TOKENS},
            "store": described | {"default": self.capture, "damaged": {}},
        }


def shown_part(excerpt: dict[str, Any]) -> dict[str, Any]:
    """What pages show of an excerpt, activations in as many digits as a colour needs: excerpts are most of a site."""
    shown = {key: excerpt[key] for key in ("value", "document", "position", "source", "tokens", "pivot")}
    return shown | {"activations": short(excerpt["activations"], FILE_DIGITS)}


def images_of(documents: dict[str | None, Any]) -> set[int]:
    """The documents of the capture whose images are shown."""
    pages = [one for one in documents.values() if isinstance(one, dict)]
    return {one["document"] for page in pages for one in (*page.get("maps", ()), page) if one.get("image")}


def _bytes_of(item: SiteFile, named: dict[str | None, Any]) -> bytes:
    """A file of documents by name, or of one alone, which has none."""
    return script(item.file, named.get(None, named))


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def _grouped(named: Iterable[tuple[tuple[str, ...], str]]) -> Iterator[SiteFile]:
    """Files of documents by the parts of their addresses; neighbouring ones share a file."""
    for file, documents in sharded((file_of(parts), address) for parts, address in named).items():
        yield SiteFile(file, tuple(documents.items()))


def _alone(address: Address) -> SiteFile:
    """The file of one document; its options are parts of its name."""
    parts = (address.page, *address.parts, *(f"{name}={value}" for name, value in address.options))
    return SiteFile("/".join(file_name(part) for part in parts), ((None, str(address)),))

"""Every page by name: the function that gives its document, and how an address becomes its arguments.

An address is the page's name, then the function's positional parameters, then its options: `text/corpus/mlp.post/3?first=1000`.
The server answers addresses, and a site has a file for some of them; the front end asks both in the same way.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, unquote

from actstore.explorer.pages import change, documents, images, neuron, overview, query, questions, tokens
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.store.reader import Store

MAX_LENGTH: Final = 100_000
"""Characters of an option: a query may be long."""


@dataclass(frozen=True)
class Page:
    """A page, as the table below describes it."""

    document: Callable[..., dict[str, Any]]
    lane: str = "pages"
    """Pages of one lane are made one after another: what takes long does not hold up the others."""

    def arguments(self, parts: Sequence[str], options: dict[str, str]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments that an address names; `InvalidInputError` where they are not those of the page."""
        parameters = list(inspect.signature(self.document).parameters.values())[1:]
        placed = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
        named = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        if len(parts) != len(placed):
            expected = "/".join(p.name.upper() for p in placed) or "nothing"
            raise InvalidInputError(
                f"Expected {expected} behind the name of the page, found {'/'.join(parts) or 'nothing'}."
            )
        if unknown := options.keys() - named.keys():
            raise InvalidInputError(
                f"Unknown options: {', '.join(sorted(unknown))}. There are: {', '.join(named) or 'none'}."
            )
        values = [_value(p, text) for p, text in zip(placed, parts, strict=True)]
        return values, {name: _value(named[name], text) for name, text in options.items()}


PAGES: Final = {
    "store": Page(overview.store_page),
    "overview": Page(overview.overview_page),
    "column": Page(overview.column_page),
    "neuron": Page(neuron.neuron_page),
    "others": Page(neuron.others_page, "scans"),
    "graph": Page(neuron.graph_page),
    "similar": Page(neuron.similar_page, "scans"),
    "coactive": Page(neuron.coactive_page, "scans"),
    "maps": Page(images.maps_page),
    "image": Page(images.image_page),
    "tokens": Page(tokens.tokens_page),
    "token": Page(tokens.token_page),
    "documents": Page(documents.documents_page),
    "text": Page(documents.text_page),
    "questions": Page(questions.questions_page),
    "prompts": Page(questions.prompts_page),
    "change": Page(change.change_page, "scans"),
    "sql": Page(query.sql_page, "sql"),
}
LANES: Final = ("pages", "scans", "sql")


@dataclass(frozen=True)
class Address:
    """A page and its arguments."""

    page: str
    parts: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address; `NotFoundError` where there is no such page."""
        path, _, query_string = text.partition("?")
        name, *parts = (unquote(part) for part in path.strip("/").split("/"))
        if name not in PAGES:
            raise NotFoundError(f"There is no page {name!r}. Pages: {', '.join(PAGES)}.")
        options = parse_qsl(query_string, keep_blank_values=True, max_num_fields=20)
        return cls(name, tuple(parts), tuple(options))

    def __str__(self) -> str:
        """The address; `parse` reads it again."""
        path = "/".join(quote(part, safe="") for part in (self.page, *self.parts))
        options = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in self.options)
        return f"{path}?{options}" if options else path

    def document(self, store: Store, open_other: Callable[[int], Store] | None = None) -> dict[str, Any]:
        """The page's document; `open_other` gives another store by its number, for pages that compare two."""
        page = PAGES[self.page]
        values, options = page.arguments(self.parts, dict(self.options))
        if self.page == "change":
            if open_other is None or "other" not in options:
                raise InvalidInputError("Two stores are compared where `actstore serve` is given both.")
            options["other"] = open_other(options["other"])
        return page.document(store, *values, **options)


def _value(parameter: inspect.Parameter, text: str) -> Any:
    """An argument as the parameter's annotation wants it; a store is named by its number."""
    if len(text) > MAX_LENGTH:
        raise InvalidInputError(f"{parameter.name} has {len(text)} characters, at most {MAX_LENGTH} are read.")
    if parameter.annotation == "str":
        return text
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInputError(f"{parameter.name} is a whole number of 0 or more, found {text[:40]!r}.")
    return int(text)

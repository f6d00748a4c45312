"""What a notebook's frame is answered: the same documents as by a server, of the store that the kernel has open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.display.reports import json_text
from actstore.explorer.pages.overview import store_page
from actstore.explorer.pages.table import PAGES, Address
from actstore.store.errors import ActstoreError, NotFoundError

if TYPE_CHECKING:
    from actstore.store.reader import Store


def answer(store: Store, text: str) -> dict[str, str]:
    """The document of an address as JSON, or why there is none: `{"document": …}` or `{"error": …}`."""
    try:
        return {"document": json_text(_document(store, text))}
    except ActstoreError as error:
        return {"error": str(error)}


def _document(store: Store, text: str) -> dict[str, Any]:
    if text == "stores":
        return {"form": "notebook", "pages": [*PAGES], "live": False, "stores": [{"number": 0, **store_page(store)}]}
    number, _, address = text.partition("/")
    if number != "0":
        raise NotFoundError(f"A notebook's explorer has store 0, found {number!r}.")
    return Address.parse(address).document(store)

"""In which order the values of a site lie on disk: neuron by neuron, or token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError
from actstore.store.files.record_checks import STREAM_SITES
from actstore.store.layout import ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FORM: Final = "`order` is neuron or token, or of one site SITE=token, several divided by commas"


def check_order(text: str) -> None:
    """`InvalidInputError` where `text` names no order, of whatever sites."""
    for part in text.split(","):
        if part.rpartition("=")[2].strip() not in ORDERS:
            raise InvalidInputError(f"{_FORM}: found {part.strip()!r}.")


def order_of_sites(text: str | None, sites: Iterable[str], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Site → "token", of the sites whose values lie token by token, as a capture's record has them.

    `text`: "neuron" or "token" for all sites, or "SITE=token" for one, several divided by commas. A site of which nothing is
    said lies as `before` has it, the order of a capture that is there; in a new one, token by token where it is one of the
    residual stream, else neuron by neuron. `InvalidInputError` for anything else.
    """
    names = tuple(sites)
    if before is None:
        orders = {site: ORDERS[site in STREAM_SITES] for site in names}
    else:
        orders = {site: before.get(site, ORDERS[0]) for site in names}
    for part in () if text is None else text.split(","):
        site, is_of_one, order = part.strip().rpartition("=")
        if order not in ORDERS or (is_of_one and site not in names):
            raise InvalidInputError(f"{_FORM}: found {part.strip()!r}. The sites are {', '.join(names)}.")
        orders |= {site: order} if is_of_one else dict.fromkeys(names, order)
    return {site: order for site, order in orders.items() if order != ORDERS[0]}


def other_order(requested: object, order: Mapping[str, str], sites: Iterable[str]) -> str | None:
    """How what is requested of a capture that is resumed differs from its `order`, as a phrase; None where it does not."""
    if requested is None or order_of_sites(str(requested), sites, order) == order:
        return None
    return f"order is {', '.join(f'{site}={value}' for site, value in order.items()) or ORDERS[0]} there and {requested} now"

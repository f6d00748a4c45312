"""`actstore reorder`: the values of a capture in another order on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.commands.options import CaptureName, Json, Quiet, StorePath, complete
from actstore.display import terminal
from actstore.display.reports import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reorder)


def reorder(
    store: StorePath,
    order: Annotated[
        str,
        typer.Option(
            metavar="neuron|token|SITE=token",
            help="What lies together on disk: the values of a neuron, or of a token, from which training reads; by site where "
            "one is named, several divided by commas.",
            autocompletion=complete(("neuron", "token")),
        ),
    ],
    capture: CaptureName = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Put the values of a capture of STORE into another order on disk, without the model: the same values to every reader.

    The capture is written beside itself, and takes its own place when it is whole; what stops it leaves it as it was.

    Example: `actstore reorder gpt2.actstore --order mlp.post=token`
    """
    from actstore.api.store import Store

    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        found = Store(store).reorder(order, capture=capture, on_block=advance)
    orders = {site: found.record.order.get(site, "neuron") for site in found.record.sites}
    if as_json:
        print_json({"store": store, "capture": found.record.name, "order": orders, "blocks": len(found.blocks)})
        return
    what = ", ".join(f"{site} {one} by {one}" for site, one in orders.items())
    terminal.out.print(f"{store}: capture {found.record.name!r}: {what}.", soft_wrap=True, markup=False)

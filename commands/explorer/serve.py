"""`actstore serve`: the explorer of one or several stores in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actstore.commands.options import Device, Json, Quiet, TrustRemoteCode  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json

if TYPE_CHECKING:
    from actstore.explorer.server.run import Served


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    stores: Annotated[
        list[str], typer.Argument(metavar="STORE…", help="Paths of the stores to look at; URLs are taken, too.")
    ],
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="The interface to listen at; at any but this machine's own a token is asked for."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at; 0 takes one that is free.")] = 0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name by which the server is called, as behind a proxy; repeat for more."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Run this model, of the first store, on new texts: a Hub id, or the path of a model folder.",
        ),
    ] = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the explorer in the browser.")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look at STORE in a browser: neurons, texts, tokens, graphs, SQL; until it is interrupted.

    It only reads, and listens on this machine alone unless told. `actstore site` makes the same as a folder of files.

    Example: `actstore serve gpt2.actstore`
    """
    from actstore.explorer.api import serve as serve_stores

    def say(served: Served) -> None:
        if as_json:
            print_json({"url": served.url, "stores": list(served.stores), "model": served.model})
        elif not quiet:
            terminal.out.print(f"The explorer is at {served.url} (Ctrl-C ends it)", soft_wrap=True, markup=False)

    try:
        serve_stores(
            stores, host=host, port=port, allow_host=allow_host or (), model=model, device=device,
            trust_remote_code=trust_remote_code, browser=browser, on_start=say,
        )  # fmt: skip
    except KeyboardInterrupt:
        return  # how a server ends

"""`actstore copy`: a store from one location to another."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from actstore.commands import completion
from actstore.commands.options import Json, Quiet, Sync  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(copy)


def copy(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Location of the store to copy, such as s3://bucket/store.")
    ],
    dst: Annotated[
        str,
        typer.Argument(metavar="DST", help="Location of the copy; an unfinished copy may be there."),
    ],
    captures: Annotated[
        list[str] | None,
        typer.Option(
            "--capture",
            metavar="NAME",
            help="Only this capture, and its graphs; may be repeated. [default: all]",
            autocompletion=completion.captures_to_copy,
        ),
    ] = None,
    sync: Sync = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy the store SRC to DST, each file once, held against its checksum on the way.

    Whatever stops it, the same command goes on. What SRC has and DST lacks is copied: blocks, captures, graphs, edits
    and explanations.

    Example: `actstore copy gpt2.actstore s3://bucket/gpt2.actstore --capture corpus`
    """
    from actstore.api.copy import copy as run

    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        report = run(src, dst, captures=captures or None, sync=sync, on_block=advance)
    if as_json:
        print_json({"src": src, "dst": dst, **asdict(report)})
        return
    plural = terminal.plural
    terminal.out.print(
        f"{dst}: {plural(len(report.captures), 'capture')} of {plural(report.n_blocks, 'block')}, {report.n_copied:,} of them "
        f"copied now; {plural(report.n_files, 'file')} written, {terminal.format_bytes(report.nbytes)}.",
        soft_wrap=True,
        markup=False,
    )

"""`actstore repair`: what `verify` finds damaged, made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (  # noqa: TC001  (Typer reads them)
    Device,
    Json,
    ModelOption,
    Quiet,
    StorePath,
    TrustRemoteCode,
)
from actstore.display import terminal
from actstore.display.reports import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.repair.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(repair)


def repair(
    store: StorePath,
    capture: Annotated[
        str | None, typer.Option("--capture", metavar="NAME", help="Only this capture. [default: all]")
    ] = None,
    model: ModelOption = None,
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the captured images, where they have moved.")
    ] = None,
    accept_differences: Annotated[
        bool,
        typer.Option(
            "--accept-differences", help="Write blocks anew that are now computed with other bytes than were written."
        ),
    ] = False,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make again what `verify` finds damaged in STORE: blocks with the model, sums and tables from the blocks.

    Names what cannot be repaired, and what to do about it; exit status 1 where something is damaged still. An interrupted
    repair is continued by the next.

    Example: `actstore repair gpt2.actstore`
    """
    from actstore.engine.repair.outcome import RepairOptions
    from actstore.engine.repair.repair import repair_store

    options = RepairOptions(model, images, device, trust_remote_code, accept_differences)
    with terminal.spinner("verifying and repairing", enabled=not quiet):
        report = repair_store(store, capture, options)
    if as_json:
        print_json(
            {
                "ok": report.is_whole,
                "repaired": _describe(report.repaired),
                "not_repaired": _describe(report.not_repaired),
                "finished": report.finished,
            }
        )
    else:
        for one in report.repaired:
            terminal.out.print(f"repaired: {one}", soft_wrap=True, markup=False)
        for one in report.not_repaired:
            terminal.out.print(f"not repaired: {one}", style="red", soft_wrap=True, markup=False)
        for name in report.finished:
            terminal.out.print(
                f"finished: capture {name!r}, every block of which was written", soft_wrap=True, markup=False
            )
        n = len(report.repaired) + len(report.not_repaired)
        counts = (
            f"{len(report.repaired)} of {terminal.plural(n, 'damaged part')} repaired" if n else "nothing is damaged"
        )
        terminal.out.print(f"{counts}: {'all well' if report.is_whole else 'not whole'}.")
    if not report.is_whole:
        raise typer.Exit(1)


def _describe(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    fields = ("capture", "layer", "block", "site", "key", "graphs")
    return [
        {field: getattr(one.damage, field) for field in fields} | {"damage": one.damage.what, "outcome": one.what}
        for one in outcomes
    ]

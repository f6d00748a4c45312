"""`actstore site`: the explorer of a store as a folder of files."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.choices import SitePart  # noqa: TC001  (Typer reads it)
from actstore.commands.executors import Workers  # noqa: TC001  (Typer reads it)
from actstore.commands.options import (
    CaptureName,
    Json,
    NeuronLayers,
    Neurons,
    Quiet,
    Resume,
    Site,
    StorePath,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json

if TYPE_CHECKING:
    from actstore.explorer.site.estimate import SiteEstimate


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(site)


def site(
    store: StorePath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the site, new or empty.")],
    neurons: Neurons = None,
    layers: NeuronLayers = None,
    capture: CaptureName = None,
    at: Site = "mlp.post",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of exemplars per neuron.")] = 10,
    texts: Annotated[
        int,
        typer.Option(
            min=0, help="Number of documents whose whole text is there: those in which most neurons are highest."
        ),
    ] = 100,
    without: Annotated[
        list[SitePart] | None, typer.Option(help="Make the site without this part of it; repeat for more.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="CAPTURE", help="Another capture, of the same neurons, whose statistics are there to compare with."
        ),
    ] = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate size and time only.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make the explorer of STORE as files in FOLDER, for any host, and for a browser that opens FOLDER/index.html from a disk.

    It has the overview, neurons, graphs, tokens, texts, image maps and questions of one capture, and with --compare another
    beside it; SQL, and any neuron on any text, need `actstore serve`.

    Example: `actstore site gpt2.actstore gpt2-site --layers 3`
    """
    from actstore.explorer.api import site as make_site

    def announce(estimate: SiteEstimate) -> None:
        if not quiet and not as_json:
            terminal.out.print(_estimated(estimate), soft_wrap=True, markup=False)

    with terminal.counting_bar("files", enabled=not quiet and not dry_run) as advance:
        report = make_site(
            store, folder, neurons, layers=parse_layers(layers), capture=capture, site=at, k=k, texts=texts,
            without=without or (), compare=compare, resume=resume, dry_run=dry_run, workers=workers,
            on_estimate=announce, on_file=advance,
        )  # fmt: skip
    if as_json:
        print_json(_described(report))
    elif not dry_run:
        terminal.out.print(
            f"{report.folder}: {terminal.plural(report.estimate.neurons, 'neuron')}, {terminal.format_bytes(report.nbytes)}. "
            f"Open {report.folder}/index.html.",
            soft_wrap=True,
            markup=False,
        )


def _estimated(estimate: SiteEstimate) -> str:
    return (
        f"{terminal.plural(estimate.neurons, 'neuron')}: about {terminal.format_bytes(estimate.nbytes)} in "
        f"{terminal.plural(estimate.files, 'file')}, {estimate.seconds:,.0f} s in one process."
    )


def _described(report: Any) -> dict[str, Any]:
    estimate = report.estimate
    return {
        "folder": report.folder,
        "neurons": estimate.neurons,
        "estimate": {"bytes": estimate.nbytes, "files": estimate.files, "seconds": estimate.seconds},
        "written": report.written,
        "bytes": report.nbytes,
    }

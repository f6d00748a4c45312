"""`graph build`: a graph for every neuron of a capture, from the store alone. Knows nothing about how graphs are found."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actstore import terminal
from actstore.commands.options import CaptureName, Json, Quiet, Site, StorePath, parse_bytes, parse_layers
from actstore.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.neuron import parse_neuron

if TYPE_CHECKING:
    from actstore.store.graphs import Graphs
    from actstore.store.reader import Capture


def register(group: typer.Typer) -> None:
    """Add the command to the group `graph`."""
    group.command("build")(build)


def build(
    store: StorePath,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    name: Annotated[str, typer.Option(help="What to call the graphs; a store holds many sets.")] = "graphs",
    share: Annotated[float, typer.Option(help="Firing is at least this share of the neuron's maximum.")] = 0.5,
    gain: Annotated[
        float, typer.Option(help="Nats of held-out likelihood that a node must add; -1 keeps every context.")
    ] = 0.5,
    kappa: Annotated[float, typer.Option(help="How firmly a longer context starts from what the shorter says.")] = 1.0,
    threshold: Annotated[float, typer.Option(help="Least probability at which a graph says: fires.")] = 0.4,
    max_depth: Annotated[int, typer.Option(help="Tokens looked back before the activating one.")] = 12,
    neurons: Annotated[str | None, typer.Option(help="Neurons, such as L3.N17,L4.N2. [default: all]")] = None,
    layers: Annotated[str | None, typer.Option(help="All neurons of these layers, such as 0,3-5.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Windows that are not evidence, a number a line.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another capture as further evidence, such as sampled probes; repeat for more."),
    ] = None,
    memory: Annotated[str, typer.Option(help="For the activations of neurons built together, such as 2GB.")] = "1GB",
    resume: Annotated[bool, typer.Option(help="Continue an interrupted build.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a graph of every neuron: which tokens fire it, and which before them decide. No model runs.

    Example: `actstore graph build gpt2.actstore --layers 0-3`
    """
    from actstore.engine.graph.build import BuildOptions, GraphSettings, build_graphs
    from actstore.store.folder import Folder
    from actstore.store.reader import Store

    opened = Store(store).capture(capture)
    settings = GraphSettings(share=share, threshold=threshold, gain=gain, kappa=kappa, max_depth=max_depth)
    wanted = _wanted(opened, site, neurons, layers)
    began = time.monotonic()
    with _bar(enabled=not quiet and sys.stderr.isatty()) as bar:
        task = bar.add_task("graphs", total=None, rate="0")

        def show(done: int, n_neurons: int) -> None:
            bar.update(task, completed=done, total=n_neurons, rate=f"{done / (time.monotonic() - began + 1e-9):,.0f}")

        options = BuildOptions(parse_bytes(memory), resume, progress=show)
        folder = Folder(store, read_only=False)
        graphs = build_graphs(
            opened, folder, name=name, site=site, neurons=wanted, leave_out=_windows(leave_out), settings=settings,
            also=[opened.store.capture(one) for one in also or ()], options=options,
        )  # fmt: skip
    described = _describe(graphs, time.monotonic() - began)
    if as_json:
        print_json(described)
    else:
        _print(graphs, described)


def _wanted(capture: Capture, site: str, neurons: str | None, layers: str | None) -> list[tuple[int, int]] | None:
    if neurons is None and layers is None:
        return None
    wanted = [parse_neuron(part) for part in neurons.split(",")] if neurons is not None else []
    for layer in parse_layers(layers) if layers is not None else ():
        capture.check_neuron(layer, 0, site)
        wanted += [(layer, neuron) for neuron in range(capture.record.layers(site)[layer])]
    return wanted


def _windows(file: str | None) -> list[int]:
    if file is None:
        return []
    try:
        return [int(line) for line in Path(file).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"--leave-out names a file of window numbers, a number a line, but {file}: {error}."
        ) from None


def _bar(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} neurons, {task.fields[rate]}/s", style="dim"),
        TimeRemainingColumn(),
        console=terminal.err,
        disable=not enabled,
    )


def _describe(graphs: Graphs, seconds: float) -> dict[str, Any]:
    """What `graph build --json` says."""
    sizes = graphs.neurons["n_nodes"].to_numpy()
    never = int(np.count_nonzero(graphs.neurons["n_events"].to_numpy() == 0))
    return {
        "store": graphs.store.folder.location,
        "name": graphs.name,
        "capture": graphs.record.capture,
        "site": graphs.record.site,
        "neurons": len(graphs),
        "nodes": graphs.record.n_nodes,
        "median_nodes": float(np.median(sizes)) if len(sizes) else 0.0,
        "never_fire": never,
        "seconds": round(seconds, 3),
    }


def _print(graphs: Graphs, described: dict[str, Any]) -> None:
    never = f", {described['never_fire']:,} of which never fire" if described["never_fire"] else ""
    terminal.out.print(
        f"{graphs.name}: {described['neurons']:,} neurons{never}; {described['nodes']:,} nodes, "
        f"{described['median_nodes']:g} in the median; {described['seconds']:.1f} s",
        soft_wrap=True,
    )

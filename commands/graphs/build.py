"""`graph build`: a graph for every neuron of a capture, from the store alone. Knows nothing about how graphs are found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from actstore.commands.options import (
    CaptureName,
    Json,
    Layers,
    Neurons,
    Quiet,
    Resume,
    Site,
    StorePath,
    chosen_neurons,
    given,
    parse_bytes,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.graphs.record import NEVER_FIRES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.graphs.reader import Graphs

# How graphs are made, in `graph evaluate` too: each is a field of `GraphSettings`.
Share = Annotated[float, typer.Option(help="Firing is an activation of at least this share of the neuron's maximum.")]
Gain = Annotated[float, typer.Option(help="Nats of held-out likelihood that a node must add; -1 keeps every context.")]
Kappa = Annotated[float, typer.Option(help="How firmly a longer context starts from what the shorter says.")]
Threshold = Annotated[float, typer.Option(help="Least probability at which a graph says: fires.")]
MaxDepth = Annotated[int, typer.Option(help="Tokens looked back before the activating one.")]
Also = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Another capture as further evidence, such as sampled probes; repeat for more."),
]


def register(group: typer.Typer) -> None:
    """Add the command to the group `graph`."""
    group.command("build")(build)


CORPUS, PUBLISHED = "corpus", "published"


def build(
    ctx: typer.Context,
    store: StorePath,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the graphs; a store holds many. [default: graphs, or published]"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="corpus: from the captured text; published: as Foote et al. (2023), from probes.")
    ] = CORPUS,
    probes: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --method published: which probes of the store. [default: probes]"),
    ] = None,
    share: Share = 0.5,
    gain: Gain = 0.5,
    kappa: Kappa = 1.0,
    threshold: Threshold = 0.4,
    max_depth: MaxDepth = 12,
    neurons: Neurons = None,
    layers: Layers = None,
    leave_out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Windows that are not evidence, a number a line.")
    ] = None,
    also: Also = None,
    memory: Annotated[
        str, typer.Option(metavar="BYTES", help="For the activations of neurons built together, such as 2GB.")
    ] = "1GB",
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a graph of every neuron: which tokens fire it, and which before them decide. No model runs.

    With --method published, by the procedure and with the constants of Neuron to Graph, of the neurons that `actstore graph
    probe` asked the model about.

    Example: `actstore graph build gpt2.actstore --layers 0-3`
    """
    if method not in (CORPUS, PUBLISHED):
        raise InvalidInputError(f"--method is {CORPUS} or {PUBLISHED}, found {method!r}.")
    if method == PUBLISHED:
        _check_given(ctx, ("store", "name", "method", "probes", "quiet", "as_json"))
        began = time.monotonic()
        with terminal.spinner("building graphs", enabled=not quiet):
            graphs = _build_published(store, name, probes)
        _report(graphs, time.monotonic() - began, as_json=as_json)
        return
    if probes is not None:
        raise InvalidInputError("--probes needs --method published. Leave it out, or name the method.")
    from actstore.engine.graphs.build import BuildOptions, GraphSettings, build_graphs
    from actstore.store.capture.saturation import overflow_sentences
    from actstore.store.reader import Store
    from actstore.store.storage.folder import Folder

    whole = Store(store)
    opened = whole.capture(capture)
    settings = GraphSettings(**given(ctx, GraphSettings))
    wanted = chosen_neurons(opened, site, neurons, layers)
    others = [whole.capture(one) for one in also or ()]
    began = time.monotonic()
    with terminal.counting_bar("neurons", enabled=not quiet) as advance:
        options = BuildOptions(parse_bytes(memory), resume, progress=advance)
        folder = Folder(store, read_only=False)
        graphs = build_graphs(
            opened, folder, name=name or "graphs", site=site, neurons=wanted, leave_out=_windows(leave_out), settings=settings,
            also=others, options=options,
        )  # fmt: skip
    terminal.warn(s for one in (opened, *others) for s in overflow_sentences(one, [site], neurons=wanted))
    _report(graphs, time.monotonic() - began, as_json=as_json)


def _check_given(ctx: typer.Context, allowed: Sequence[str]) -> None:
    """Refuse options that a published build has no use for."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise InvalidInputError(
                f"{parameter.opts[0]} cannot go with --method published: what was probed decides the neurons, the paper the "
                "constants. Leave it out, or give it to actstore graph probe."
            )


def _build_published(store: str, name: str | None, probes: str | None) -> Graphs:
    """The published graphs; a sentence that says how to make probes where there are none."""
    from actstore.engine.graphs.probes.evidence import PROBES, Probes
    from actstore.engine.graphs.probes.published import build_published
    from actstore.store.reader import Store
    from actstore.store.storage.folder import Folder

    opened = Store(store)
    try:
        found = Probes(opened, probes or PROBES)
    except NotFoundError:
        of = f" --probes {probes}" if probes else ""
        raise InvalidInputError(
            f"The published method builds from probes, and {opened.folder} has none called {probes or PROBES!r}. Ask the model "
            f"first: actstore graph probe {opened.model.name} {opened.folder}{of}"
        ) from None
    return build_published(found, Folder(store, read_only=False), name=name or PUBLISHED)


def _report(graphs: Graphs, seconds: float, *, as_json: bool) -> None:
    described = _describe(graphs, seconds)
    if as_json:
        print_json(described)
    else:
        _print(graphs, described)


def _windows(file: str | None) -> list[int]:
    if file is None:
        return []
    try:
        return [int(line) for line in Path(file).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"--leave-out names a file of window numbers, a number a line, but {file}: {error}."
        ) from None


def _describe(graphs: Graphs, seconds: float) -> dict[str, Any]:
    """What `graph build --json` says."""
    sizes = graphs.neurons["n_nodes"].to_numpy()
    statuses = graphs.neurons["status"].to_pylist()
    never = statuses.count(NEVER_FIRES)
    return {
        "store": graphs.store.folder.location,
        "name": graphs.name,
        "method": graphs.record.method,
        "capture": graphs.record.capture,
        "site": graphs.record.site,
        "neurons": len(graphs),
        "nodes": graphs.record.n_nodes,
        "median_nodes": float(np.median(sizes)) if len(sizes) else 0.0,
        "never_fire": never,
        "failed": sum(1 for status in statuses if status not in ("", NEVER_FIRES)),
        "seconds": round(seconds, 3),
    }


def _print(graphs: Graphs, described: dict[str, Any]) -> None:
    never = f", {described['never_fire']:,} of which never fire" if described["never_fire"] else ""
    failed = described["failed"]
    without = f", {failed:,} of which have no exemplar that could be shortened" if failed else ""
    terminal.out.print(
        f"{graphs.name}: {described['neurons']:,} neurons{never}{without}; {described['nodes']:,} nodes, "
        f"{described['median_nodes']:g} in the median; {described['seconds']:.1f} s",
        soft_wrap=True,
    )

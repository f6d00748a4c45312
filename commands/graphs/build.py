"""`graphs build`: one graph per neuron of a capture, from the store alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from actstore.api.neurons import chosen_neurons
from actstore.commands.choices import GraphMethod  # noqa: TC001  (Typer reads it)
from actstore.commands.executors import On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    CaptureName,
    Json,
    NeuronLayers,
    Neurons,
    Quiet,
    Resume,
    Site,
    StorePath,
    Sync,
    given,
    parse_bytes,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.engine.graphs.methods import CORPUS, METHODS, PUBLISHED
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.graphs.record import NEVER_FIRES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.graphs.reader import Graphs

PANELS = {name: f"Method {name}" for name in METHODS}
"""Panels of --help for the options of one method only."""

# How graphs are built from a corpus, in `graphs evaluate` too: each is a field of `GraphSettings`.
Share = Annotated[
    float, typer.Option(help="A neuron fires where its activation is at least this share of its maximum.")
]
Gain = Annotated[
    float,
    typer.Option(
        help="Minimum gain of expected log-likelihood by a node, in nats; -1 keeps every context.",
        rich_help_panel=PANELS[CORPUS],
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        help="Maximum number of nodes per neuron: those that add most. [default: no limit]",
        rich_help_panel=PANELS[CORPUS],
    ),
]
Kappa = Annotated[
    float,
    typer.Option(
        help="Strength of the prior that a longer context takes from the shorter one.", rich_help_panel=PANELS[CORPUS]
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        help="Minimum probability at which a graph predicts that the neuron fires.",
        rich_help_panel=PANELS[CORPUS],
    ),
]
MaxDepth = Annotated[
    int,
    typer.Option(help="Maximum number of tokens before the activating one.", rich_help_panel=PANELS[CORPUS]),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Another capture as further evidence, such as sampled probes; repeat for more.",
        rich_help_panel=PANELS[CORPUS],
    ),
]


def register(group: typer.Typer) -> None:
    """Add the command to the group `graphs`."""
    group.command("build")(build)


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
        GraphMethod,
        typer.Option(help="Build from the captured text, or as Foote et al. (2023) published it, from probes."),
    ] = CORPUS,
    probes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the probes in the store. [default: probes]", rich_help_panel=PANELS[PUBLISHED]
        ),
    ] = None,
    share: Share = 0.5,
    gain: Gain = 0.25,
    nodes: Nodes = None,
    kappa: Kappa = 1.0,
    threshold: Threshold = 0.3,
    max_depth: MaxDepth = 12,
    neurons: Neurons = None,
    layers: NeuronLayers = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File of windows that are not used as evidence, one number per line.",
            rich_help_panel=PANELS[CORPUS],
        ),
    ] = None,
    also: Also = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            help="Memory for the activations of neurons built together, by all workers, such as 2GB.",
            rich_help_panel=PANELS[CORPUS],
        ),
    ] = "1GB",
    workers: Workers = None,
    on: On = "local",
    resume: Resume = False,
    sync: Sync = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a graph of every neuron: on which tokens it fires, and in which contexts. No model runs.

    Neurons are divided among --workers: the graphs are the same.

    With --method published, by the procedure and with the constants of Neuron to Graph, for the neurons that `actstore graphs
    probe` has probed.

    Example: `actstore graphs build gpt2.actstore --layers 0-3`
    """
    if method == PUBLISHED:
        _check_given(ctx, ("store", "name", "method", "probes", "sync", "quiet", "as_json"))
        began = time.monotonic()
        with terminal.spinner("building graphs", enabled=not quiet):
            graphs = _build_published(store, name, probes, sync=sync)
        _report(graphs, time.monotonic() - began, as_json=as_json)
        return
    if probes is not None:
        raise InvalidInputError("--probes is an option of --method published. Leave it out, or name the method.")
    from actstore.engine.graphs.build import BuildOptions, GraphSettings, build_graphs
    from actstore.engine.workers.scan import executor_of
    from actstore.store.capture.saturation import overflow_sentences
    from actstore.store.reader import Store
    from actstore.store.storage.folder import Folder

    whole = Store(store)
    opened = whole.capture(capture)
    settings = GraphSettings(**given(ctx, GraphSettings))
    selection = chosen_neurons(opened, site, neurons, parse_layers(layers))
    others = [whole.capture(one) for one in also or ()]
    began = time.monotonic()
    with terminal.counting_bar("neurons", enabled=not quiet) as advance:
        options = BuildOptions(parse_bytes(memory), resume, progress=advance)
        folder = Folder(store, read_only=False, sync=sync)
        graphs = build_graphs(
            opened, folder, name=name or METHODS[CORPUS].set_name, site=site, neurons=selection, leave_out=_windows(leave_out),
            settings=settings, also=others, options=options, executor=executor_of(workers, on),
        )  # fmt: skip
    terminal.warn(s for one in (opened, *others) for s in overflow_sentences(one, [site], neurons=selection))
    _report(graphs, time.monotonic() - began, as_json=as_json)


def _check_given(ctx: typer.Context, allowed: Sequence[str]) -> None:
    """Refuse options that the published method does not use."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise InvalidInputError(
                f"{parameter.opts[0]} is no option of --method published: the probes fix the neurons, the paper fixes the "
                "constants. Leave it out, or pass it to actstore graphs probe."
            )


def _build_published(store: str, name: str | None, probes: str | None, *, sync: bool) -> Graphs:
    """The published graphs; `InvalidInputError` says how to make probes where there are none."""
    from actstore.engine.graphs.probes.evidence import PROBES, Probes
    from actstore.engine.graphs.probes.published import build_published
    from actstore.store.reader import Store
    from actstore.store.storage.folder import Folder

    opened = Store(store)
    try:
        evidence = Probes(opened, probes or PROBES)
    except NotFoundError:
        of = f" --probes {probes}" if probes else ""
        raise InvalidInputError(
            f"The published method builds from probes, and {opened.folder} has none called {probes or PROBES!r}. Probe "
            f"the model first: actstore graphs probe {opened.folder}{of}"
        ) from None
    return build_published(evidence, Folder(store, read_only=False, sync=sync), name=name or PUBLISHED)


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
            f"--leave-out names a file of window numbers, one per line, but {file}: {error}."
        ) from None


def _describe(graphs: Graphs, seconds: float) -> dict[str, Any]:
    """The JSON document."""
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

"""`graphs evaluate`: how well graphs predict where neurons fire, beside lookup tables and other methods' graphs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from actstore.api.neurons import chosen_neurons
from actstore.commands.graphs.build import (  # noqa: TC001  (Typer reads them)
    Also,
    Gain,
    Kappa,
    MaxDepth,
    Nodes,
    Share,
    Threshold,
)
from actstore.commands.options import (
    CaptureName,
    Json,
    NeuronLayers,
    Neurons,
    Quiet,
    Seed,
    Site,
    StorePath,
    given,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.engine.graphs.evaluate import Evaluation, EvaluationSettings, Method
    from actstore.store.reader import Capture

LABELS = {"f1": "F1"}
KINDS = {"exemplars": "Held-out exemplars", "ordinary": "Ordinary text"}
MAX_LAYERS = 12
"""With more layers, F1 by layer is only in the JSON: no terminal is wide enough."""


def register(group: typer.Typer) -> None:
    """Add the command to the group `graphs`."""
    group.command("evaluate")(evaluate)


def evaluate(
    ctx: typer.Context,
    store: StorePath,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    share: Share = 0.5,
    exemplars: Annotated[
        int,
        typer.Option(help="Number of windows with a neuron's largest activations; half of them are test windows."),
    ] = 20,
    ordinary: Annotated[int, typer.Option(help="Number of ordinary test windows, the same for every neuron.")] = 40,
    seed: Seed = 0,
    gain: Gain = 0.25,
    nodes: Nodes = None,
    kappa: Kappa = 1.0,
    threshold: Threshold = 0.3,
    max_depth: MaxDepth = 12,
    also: Also = None,
    graphs: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Other graphs of the store to evaluate too; repeat for more."),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="GAINS", help="Also measure F1 against the number of nodes at these gains, such as -1,0.25,1,2,4."
        ),
    ] = None,
    neurons: Neurons = None,
    layers: NeuronLayers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build every neuron's graph without its test windows, and measure how well it predicts there where the neuron fires.

    Test windows are half of a neuron's exemplars, and ordinary windows; other windows of the same tokens are left out with
    them. Lookup tables of tokens and of pairs of tokens learn from the same evidence. Captures of --also are never test
    windows. No model runs, nothing is written.

    Example: `actstore graphs evaluate gpt2.actstore --layers 0-3 --curve 0.25,1,4`
    """
    from actstore.engine.graphs.build import GraphSettings
    from actstore.engine.graphs.evaluate import EvaluationSettings, describe_leak, evaluate
    from actstore.engine.graphs.split import SplitSettings
    from actstore.store.capture.saturation import overflow_sentences
    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store

    settings = EvaluationSettings(
        GraphSettings(**given(ctx, GraphSettings)),
        SplitSettings(exemplars, ordinary, seed),
        site,
        _gains(curve),
    )
    opened = Store(store)
    main = opened.capture(capture)
    others = [opened.capture(name) for name in also or ()]
    sets = [Graphs(opened, name) for name in dict.fromkeys(graphs or ())]
    for one in sets:
        if (warning := describe_leak(one, main, settings)) is not None:
            terminal.warn([warning])
    selection = chosen_neurons(main, site, neurons, parse_layers(layers))
    with terminal.counting_bar("neurons", enabled=not quiet) as advance:
        evaluation = evaluate(main, neurons=selection, also=others, graphs=sets, settings=settings, progress=advance)
    terminal.warn(s for one in (main, *others) for s in overflow_sentences(one, [site], neurons=selection))
    described = describe(evaluation, main, settings, also or ())
    if as_json:
        print_json(described)
    else:
        _print(described)


def describe(evaluation: Evaluation, capture: Capture, settings: EvaluationSettings, also: Any = ()) -> dict[str, Any]:
    """The JSON document."""
    own = _method(evaluation.method)
    return {
        "store": capture.store.folder.location,
        "capture": capture.record.name,
        "also": list(also),
        "site": settings.site,
        "settings": asdict(settings.graph) | asdict(settings.split),
        "neurons": len(evaluation.neurons),
        "failed": evaluation.method.n_failed,
        "never_fire": evaluation.never_fire,
        "few_exemplars": evaluation.few_exemplars,
        "ordinary_windows": evaluation.n_ordinary,
        "duplicates": evaluation.n_duplicates,
        "seconds": round(evaluation.seconds, 3),
        "build_seconds": round(evaluation.build_seconds, 3),
        **own,
        "baselines": {name: _method(method) for name, method in evaluation.baselines.items()},
        "curve": [{"gain": gain, **_method(method)} for gain, method in sorted(evaluation.curve.items())],
    }


def _method(method: Method) -> dict[str, Any]:
    described: dict[str, Any] = {kind: getattr(method, kind).summary() for kind in KINDS}
    if method.n_nodes:
        described["nodes"] = {"median": float(np.median(method.n_nodes)), "mean": float(np.mean(method.n_nodes))}
        described["failed"] = method.n_failed
    return described


def _print(described: dict[str, Any]) -> None:
    from actstore.engine.graphs.scores import MEASURES

    methods = {"graphs": described} | described["baselines"]
    for kind, title in KINDS.items():
        layers = [row["layer"] for row in described[kind]["by_layer"]]
        shown = layers if len(layers) <= MAX_LAYERS else []
        columns = ["method", *((LABELS.get(name, name), "right") for name in (*MEASURES, "nodes"))]
        columns += [(f"F1 L{layer}", "right") for layer in shown]
        rows = [
            (
                name,
                *(_number(method[kind][measure]) for measure in MEASURES),
                f"{method['nodes']['median']:g}" if "nodes" in method else "",
                *(_number(row["f1"]) for row in method[kind]["by_layer"] if shown),
            )
            for name, method in methods.items()
        ]
        terminal.out.print(fitted_table(title, columns, rows))
        terminal.out.print()
    if len(described["curve"]) > 1:
        names = ("gain", "nodes, median", "nodes, mean", "F1 on exemplars", "F1 on ordinary text")
        rows = [
            (
                f"{row['gain']:g}",
                f"{row['nodes']['median']:g}",
                f"{row['nodes']['mean']:.0f}",
                *(_number(row[kind]["f1"]) for kind in KINDS),
            )
            for row in described["curve"]
        ]
        terminal.out.print(terminal.table("F1 against the number of nodes", [(name, "right") for name in names], rows))
        terminal.out.print()
    terminal.out.print(_note(described), style="dim", soft_wrap=True)


def _note(described: dict[str, Any]) -> str:
    sentences = [
        f"{described['neurons']:,} neurons, {described['failed']:,} failed, in {described['seconds']:.1f} s "
        f"({described['build_seconds']:.1f} s to build the graphs once).",
        "Means over neurons; nodes are medians.",
    ]
    undefined = {kind: described[kind]["undefined"] for kind in KINDS}
    if any(undefined.values()):
        counts = " and ".join(f"{n:,} on {KINDS[kind].lower()}" for kind, n in undefined.items() if n)
        sentences.append(f"Left out, because they neither fire nor are predicted to fire: {counts}.")
    if described["never_fire"]:
        sentences.append(f"{described['never_fire']:,} never fire.")
    if described["few_exemplars"]:
        sentences.append(
            f"{described['few_exemplars']:,} fire in fewer than {described['settings']['n_exemplars']} windows."
        )
    if described["ordinary_windows"] < described["settings"]["n_ordinary"]:
        sentences.append(f"Only {described['ordinary_windows']:,} ordinary windows: half of the capture.")
    return " ".join(sentences)


def _gains(curve: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in curve.split(",")) if curve is not None else ()
    except ValueError:
        raise InvalidInputError(f"--curve takes numbers such as -1,0.25,1,4, found {curve!r}.") from None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

"""`actstore graphs similar` and `graphs repeats`: neurons with similar graphs, and neurons that fire on repeated tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands import completion
from actstore.commands.graphs.build import Share  # noqa: TC001  (Typer reads it)
from actstore.commands.options import CaptureName, Json, K, Quiet, Site, StorePath  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_name, parse_neuron
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.graphs.repeats import Repeats
    from actstore.engine.graphs.similar import Pairs
    from actstore.store.graphs.reader import Graphs, NeuronGraph

GraphsName = Annotated[
    str,
    typer.Option("--name", metavar="NAME", help="Name of the graphs in the store.", autocompletion=completion.graphs),
]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `graphs`."""
    group.command("similar")(similar)
    group.command("repeats")(repeats)


def similar(
    store: StorePath,
    neuron: Annotated[
        str | None,
        typer.Argument(
            metavar="NEURON",
            help="A neuron, such as L3.N17; without it, all pairs of neurons are compared.",
            autocompletion=completion.neurons,
        ),
    ] = None,
    name: GraphsName = "graphs",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Maximum number of neurons, or of pairs.")] = 20,
    least: Annotated[float, typer.Option(help="Minimum overlap, subset or prediction of a pair.")] = 0.9,
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise/--no-normalise", help="Treat tokens that differ in case and outer spaces only as the same."
        ),
    ] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Neurons whose graphs are similar to a neuron's, or all pairs of similar neurons of the model.

    *Overlap*: the share of activating, and of context tokens in common, of the larger set; *subset*: of the smaller; as
    published, 0.9 is similar. *Prediction*: the cosine of the firing probabilities that the two predict over the corpus.

    Example: `actstore graphs similar gpt2.actstore L3.N17`
    """
    from actstore.engine.graphs.similar import Similarity, compare, same_tokens
    from actstore.store.graphs.forest import Forest

    if not 0 < least <= 1:
        raise InvalidInputError(f"--least is a share above 0, at most 1, found {least}.")
    if neuron is not None:
        opened, graphs, graph = open_neuron(store, neuron, name)
        with terminal.spinner("comparing graphs", enabled=not quiet):
            rows, pairs = compare(graphs, graph.layer, graph.neuron, same_tokens(opened) if normalise else None)
        _print_similar(graphs, graph, rows[pairs.second], pairs, k, as_json)
        return
    from actstore.store.graphs.reader import open_graphs

    opened = Store(store)
    graphs = open_graphs(opened, name)
    with terminal.spinner("comparing graphs", enabled=not quiet):
        pairs = Similarity(Forest.of(graphs), same_tokens(opened) if normalise else None).all(least)
    _print_pairs(graphs, pairs, k, least, as_json)


def repeats(
    store: StorePath,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    share: Share = 0.5,
    name: GraphsName = "graphs",
    k: K = 20,
    least_fires: Annotated[int, typer.Option(min=1, help="Minimum number of positions at which a neuron fires.")] = 20,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """In-context neurons: those that fire on a token because it came before in the same window.

    From the stored activations; no graph is needed. *Same tokens* compares each token with itself, because frequent tokens
    are both repeated and fired on more often; the score is the ratio of the two less two standard errors: a lower bound of
    the factor by which repetition raises the probability of firing. Where the store has graphs, *paths* is the share of the
    firings explained by paths in which the activating token occurs twice.

    Example: `actstore graphs repeats gpt2.actstore -k 10`
    """
    from actstore.engine.graphs.repeats import measure_repeats, path_shares
    from actstore.store.graphs.reader import graph_names, open_graphs

    opened = Store(store)
    has_graphs = name in graph_names(opened.folder)
    if not has_graphs and name != "graphs":
        open_graphs(opened, name)  # raises, and names those that exist
    with terminal.spinner("counting repetitions", enabled=not quiet):
        measured = measure_repeats(opened.capture(capture), site=site, share=share)
        shares = path_shares(open_graphs(opened, name)) if has_graphs else {}
    terminal.warn(overflow_sentences(opened.capture(capture), [site]))
    ranked = measured.ranked(least_fires)
    _print_repeats(measured, ranked, shares, k, as_json)


def open_neuron(store: str, neuron: str, name: str) -> tuple[Store, Graphs, NeuronGraph]:
    """The store, its graphs, and the graph of a neuron; an error where one of them does not exist."""
    from actstore.store.graphs.reader import open_graphs

    layer, index = parse_neuron(neuron)
    opened = Store(store)
    graphs = open_graphs(opened, name)
    opened.neuron(layer, index)
    return opened, graphs, graphs.graph(layer, index)


def _measures(pairs: Pairs, k: int) -> list[dict[str, float]]:
    from actstore.engine.graphs.similar import MEASURES

    columns = (getattr(pairs, name)[:k].tolist() for name in MEASURES)
    return [dict(zip(MEASURES, row, strict=True)) for row in zip(*columns, strict=True)]


def _columns(*names: str) -> list[Any]:
    """The columns of a table of similar neurons."""
    from actstore.engine.graphs.similar import MEASURES

    return [*names, *((name, "right") for name in MEASURES)]


def _print_similar(graphs: Graphs, graph: NeuronGraph, rows: Any, pairs: Pairs, k: int, as_json: bool) -> None:
    rows_shown = [{"neuron": n} | m for n, m in zip(graphs.names(rows[:k]), _measures(pairs, k), strict=True)]
    if as_json:
        print_json({"neuron": graph.name, "sharing": len(rows), "neurons": rows_shown})
        return
    if not rows_shown:
        why = f": it {graph.status}" if graph.status else ""
        terminal.out.print(f"No neuron shares a path with {graph.name}{why}.", markup=False)
        return
    shared = f"{len(rows):,} neuron{' shares' if len(rows) == 1 else 's share'} an activating token with {graph.name}."
    terminal.out.print(shared, style="bold")
    terminal.out.print(terminal.table(None, _columns("neuron"), [list(row.values()) for row in rows_shown]))


def _print_pairs(graphs: Graphs, pairs: Pairs, k: int, least: float, as_json: bool) -> None:
    from actstore.engine.graphs.similar import MEASURES

    first, second = graphs.names(pairs.first[:k]), graphs.names(pairs.second[:k])
    measured = zip(first, second, _measures(pairs, k), strict=True)
    rows: list[dict[str, Any]] = [{"neuron": a, "other": b} | m for a, b, m in measured]
    counts = {name: int((getattr(pairs, name) >= least).sum()) for name in MEASURES}
    if as_json:
        print_json({"neurons": len(graphs), "least": least, "pairs": counts, "similar": rows})
        return
    terminal.out.print(
        f"Of {len(graphs):,} neurons, pairs of at least {least:g}: {counts['overlap']:,} by overlap, {counts['subset']:,} by "
        f"subset, {counts['prediction']:,} by prediction.",
        style="bold",
        soft_wrap=True,
    )
    terminal.out.print(terminal.table(None, _columns("neuron", "other"), [list(row.values()) for row in rows]))


def _print_repeats(measured: Repeats, ranked: Any, shares: dict[tuple[int, int], float], k: int, as_json: bool) -> None:
    rows = []
    for row in ranked[:k].tolist():
        layer, neuron = int(measured.layer[row]), int(measured.neuron[row])
        rows.append(
            {
                "neuron": neuron_name(layer, neuron),
                "score": float(measured.score[row]),
                "repeated": float(measured.repeated[row]),
                "first": float(measured.first[row]),
                "fires_repeated": int(measured.fires_repeated[row]),
                "fires_first": int(measured.fires_first[row]),
                "same_repeated": float(measured.same_repeated[row]),
                "same_first": float(measured.same_first[row]),
                "lines": shares.get((layer, neuron)),  # the JSON key stays; a line is a path
            }
        )
    if as_json:
        print_json({"repeated": measured.n_repeated, "first": measured.n_first, "ranked": len(ranked), "neurons": rows})
        return
    terminal.out.print(
        f"{measured.n_repeated:,} tokens occurred before in their window, {measured.n_first:,} for the first time; "
        f"{int((measured.score[ranked] > 1).sum()):,} of {len(ranked):,} neurons fire more on the former.",
        style="bold",
        soft_wrap=True,
    )
    columns = ["neuron", ("score", "right"), ("P(fires|repeated)", "right"), ("P(fires|first)", "right"),
               ("fired on repeated", "right"), ("on first", "right"), ("same tokens: repeated", "right"),
               ("first", "right"), ("paths", "right")]  # fmt: skip
    terminal.out.print(terminal.table(None, columns, [list(row.values()) for row in rows]))

"""`actstore graphs`: the graph of a neuron shown, and graphs searched; the other subcommands have files of their own."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from actstore.commands.choices import MatchName  # noqa: TC001  (Typer reads it)
from actstore.commands.graphs import build as graph_build
from actstore.commands.graphs import compare as graph_compare
from actstore.commands.graphs import evaluate as graph_evaluate
from actstore.commands.graphs import probe as graph_probe
from actstore.commands.graphs.compare import GraphsName, open_neuron
from actstore.commands.options import CommandGroup, Json, K, NeuronName, Quiet, StorePath, family
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.display.graphs.branches import Drawing
    from actstore.engine.graphs.search import NeuronMatch, PathMatch
    from actstore.store.model.root import Root

group = family(
    """Neurons as graphs of the contexts they fire in (N2G): draw them, search them, compare them.

    Example: `actstore graphs show gpt2.actstore L3.N17`""",
    CommandGroup,
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="graphs")


@group.command()
def show(
    store: StorePath,
    neuron: NeuronName,
    name: GraphsName = "graphs",
    paths: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of paths drawn, the most important first, beside the shorter ones that they go on from; 0 draws all.",
        ),
    ] = 40,
    with_ignore: Annotated[
        bool | None,
        typer.Option(
            "--with-ignore/--without-ignore",
            help="Show positions at which any token may stand as …, or leave them out, as published. "
            "[default: as the graphs' method does]",
        ),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Draw into this file: .svg, .png (needs Graphviz), .html (a tree that folds) or .dot (Graphviz); repeat "
            "for more.",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The graph of one neuron: the tokens it fires on, and the contexts that make it fire or keep it from firing.

    Red is the probability of firing, blue the importance of a context token: as measured by probes, or else by how much
    it changes the probability.

    Example: `actstore graphs show gpt2.actstore L3.N17 --output l3n17.svg`
    """
    from actstore.display.graphs.describe import describe_graph
    from actstore.display.graphs.draw import check_picture
    from actstore.display.graphs.terminal import draw_tree
    from actstore.display.graphs.views import draw

    pictures = output or []
    for path in pictures:
        check_picture(path)
    with terminal.spinner("drawing", enabled=not quiet):
        _, graphs, graph = open_neuron(store, neuron, name)
        drawn = draw(graph, paths=paths, with_ignore=with_ignore)
        for path in pictures:
            drawn.save(path)
    if as_json:
        print_json(describe_graph(graphs, graph, paths) | {"files": [str(path) for path in pictures]})
        return
    if not pictures:
        terminal.out.print(draw_tree(drawn.drawing, "--paths 0"))
    for path in pictures:
        terminal.out.print(f"{path}: {_summary(drawn.drawing)}", soft_wrap=True, markup=False)


@group.command()
def search(
    store: StorePath,
    activating: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A token on which the neuron fires; repeat for any of several."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A token before it; repeat for any of several.")
    ] = None,
    activating_id: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="The same by token id; repeat for more.")
    ] = None,
    context_id: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="The same by token id; repeat for more.")
    ] = None,
    match: Annotated[
        MatchName, typer.Option(help="How texts match tokens; normalised ignores case and outer spaces.")
    ] = "normalised",
    silent: Annotated[
        bool, typer.Option("--silent", help="Also paths that predict that the neuron does not fire.")
    ] = False,
    name: GraphsName = "graphs",
    k: K = 20,
    paths: Annotated[int, typer.Option(min=1, help="Maximum number of paths shown per neuron.")] = 3,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Neurons that fire on a token, or on it after another; those whose paths explain most firings first.

    Example: `actstore graphs search gpt2.actstore --activating York --context New`
    """
    from actstore.display.graphs.describe import describe_search
    from actstore.engine.graphs.search import search as search_graphs
    from actstore.store.graphs.reader import open_graphs

    opened = Store(store)
    graphs = open_graphs(opened, name)
    with terminal.spinner("searching", enabled=not quiet):
        result = search_graphs(
            opened,
            graphs,
            activating=[*(activating or ()), *(activating_id or ())],
            context=[*(context or ()), *(context_id or ())],
            match=match,
            silent=silent,
            k=k,
            n_paths=paths,
        )
    if as_json:
        print_json(describe_search(opened, result))
        return
    terminal.out.print(
        f"{terminal.plural(result.n_neurons, 'neuron')} in {terminal.plural(result.n_paths, 'path')}; "
        f"{_named(opened, 'firing on', result.activating)}{_named(opened, 'after', result.context)}.",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    rows = [row for neuron in result.neurons for row in _search_rows(opened, neuron)]
    if rows:
        columns = ["neuron", ("score", "right"), "path", ("P", "right"), ("fired", "right"), ("seen", "right")]
        terminal.out.print(terminal.table(None, columns, rows))


graph_compare.register(group)
graph_build.register(group)
graph_evaluate.register(group)
graph_probe.register(group)


def _summary(drawing: Drawing) -> str:
    if not drawing.roots:
        return f"{drawing.name} {drawing.status}: an empty graph."
    shown = drawing.n_paths - drawing.n_hidden
    hidden = f" of {drawing.n_paths:,}" if drawing.n_hidden else ""
    return f"{drawing.name}, {shown:,}{hidden} path{'s' * (drawing.n_paths != 1)}."


def _reading(store: Root, path: PathMatch) -> Text:
    """A path in reading order, the activating token last and red."""
    from actstore.display.graphs.describe import token_labels
    from actstore.display.graphs.labels import cut_label

    *context, activating = [cut_label(label, 24) for label in reversed(token_labels(store, path.tokens))]
    text = Text(" ".join([*context, ""]))
    return text.append(f" {activating} ", style=f"white on rgb({int(70 + 130 * min(1.0, path.probability))},25,25)")


def _search_rows(store: Root, neuron: NeuronMatch) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for i, path in enumerate(neuron.paths):
        name_and_score = [neuron.neuron, f"{neuron.score:.1f}"] if i == 0 else ["", ""]
        rows.append([*name_and_score, _reading(store, path), f"{path.probability:.2f}", path.own_fires, path.own_count])
    if neuron.n_paths > len(neuron.paths):
        rows.append(["", "", Text(f"… {neuron.n_paths - len(neuron.paths):,} more", style="dim"), "", "", ""])
    return rows


def _named(store: Root, relation: str, tokens: Sequence[int]) -> str:
    if not tokens:
        return ""
    from actstore.display.graphs.describe import token_labels

    labels = ", ".join(token_labels(store, tokens[:6]))
    more = f" and {len(tokens) - 6:,} more tokens" if len(tokens) > 6 else ""
    return f" {relation} {labels}{more}"

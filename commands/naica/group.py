"""`actstore naica`: the neurons relevant to each query and to each label, and the layers that they lie in."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from actstore.commands import completion
from actstore.commands.choices import SelectionMethod  # noqa: TC001  (Typer reads it)
from actstore.commands.executors import On, ScanDevice, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.naica import evaluate as naica_evaluate
from actstore.commands.naica.evaluate import ClusterShare, CommonShare, MaxNeurons, Removal  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    Attribution,
    Json,
    LayersFile,
    OverlapFile,
    QuestionsName,
    Quiet,
    Rows,
    Seed,
    StorePath,
    as_rows,
    family,
)
from actstore.display import terminal
from actstore.display.reports import print_json, print_rows
from actstore.display.wide_tables import WIDTH, folded_lists
from actstore.store.capture.unfinished import unfinished_sentence
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.naica.selection import LayerCounts
    from actstore.engine.naica.selection import SelectedNeurons as Chosen
    from actstore.store.capture.questions.attributions import Attributions

group = family(
    """Query-relevant neurons (NA-ICA, published as QRNCA): those with a high attribution to one query and not to others.

    `actstore naica STORE` is short for `actstore naica show STORE` and reads attributions that `actstore attribute` stored;
    `actstore naica evaluate` runs the model with these neurons suppressed and boosted.

    Example: `actstore naica facts.actstore --by domain`"""
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="naica")


@group.command()
def show(
    store: StorePath,
    capture: QuestionsName = None,
    attribution: Attribution = "ig",
    t: ClusterShare = 0.2,
    u: CommonShare = 0.3,
    v: MaxNeurons = 20,
    removal: Removal = "after",
    ica: Annotated[
        bool, typer.Option("--ica/--no-ica", help="Weigh neurons by their inverse cluster frequency.")
    ] = True,
    method: Annotated[
        SelectionMethod, typer.Option(help="How neurons are selected; all but naica are baselines.")
    ] = "naica",
    seed: Seed = 0,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL", help="Pool the queries of each value of this label.", autocompletion=completion.labels
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Maximum number of neurons per query, or per label.")] = 10,
    rows: Rows = 20,
    output: LayersFile = None,
    overlap_map: OverlapFile = None,
    device: ScanDevice = "auto",
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons relevant to each query of STORE; with --by those of each label, with --output a picture of their layers.

    A query's score for a neuron is its attribution, summed over its prompts and divided by the sum over all neurons, times
    log(clusters / (clusters with the neuron + 1)). Pooled by label, the divisor is the sum of magnitudes, so that no
    single query dominates the others. Neither model nor tokenizer is needed. Queries are divided among --workers.

    Example: `actstore naica facts.actstore --by domain -k 5 --output layers.svg`
    """
    from actstore.display.relevant_neurons import check_pictures, describe_selection, draw_selection
    from actstore.engine.devices.device import find_device
    from actstore.engine.naica.baselines import choose_neurons
    from actstore.engine.naica.naica import NaicaSettings
    from actstore.engine.naica.selection import label_of_queries
    from actstore.engine.workers.scan import executor_of
    from actstore.store.capture.questions.attributions import open_attributions

    settings = NaicaSettings(attribution, t, u, v, ica, removal)
    check_pictures(output, overlap_map)
    executor, target = executor_of(workers, on), find_device(device, on)
    attributions = open_attributions(Store(store), capture)
    label_of_queries(attributions.queries, by)  # fails before the work, where there is no such label
    with terminal.spinner("selecting neurons", enabled=not quiet):
        selection = choose_neurons(attributions, method, settings, seed, executor, target)
    about = describe_selection(attributions, method, settings)
    layers = draw_selection(attributions, selection, by, about, output, overlap_map)
    unfinished = unfinished_sentence(attributions.capture)
    warnings = [*([] if unfinished is None else [unfinished]), *selection.warnings]
    terminal.warn(warnings)
    if as_json:
        print_json(
            describe(attributions, selection, by, k)
            | {"method": method, "settings": asdict(settings), "warnings": warnings}
        )
        return
    terminal.out.print(summary(selection, about), style="bold", soft_wrap=True)
    if by is None:
        _print_queries(attributions, selection, k, rows)
    else:
        print_labels(attributions, selection, by, k, rows)
    if terminal.out.is_terminal:
        terminal.out.print()
        terminal.out.print(layer_table(layers, rows, min(WIDTH, terminal.out.width)))
    if output is not None:
        terminal.out.print(f"{output}: heat map of {len(layers.labels)} rows and {len(layers.layers)} layers.")


naica_evaluate.register(group)


def layer_table(layers: LayerCounts, rows: int, width: int) -> Any:
    """The heat map for a terminal: one coloured cell per layer, its share of the label's neurons in percent.

    Where the terminal is too narrow, neighbouring layers share a cell.
    """
    import numpy as np

    from actstore.display.heat_map import colour, is_dark, percent

    labels = layers.labels[: rows or None]
    n_cells = max(3, (width - min(30, max(map(len, (layers.label, *labels)), default=0))) // 8)
    step = -(-len(layers.layers) // n_cells) if len(layers.layers) > n_cells else 1
    starts = np.arange(0, len(layers.layers), step)
    shares = np.add.reduceat(layers.shares[: len(labels)], starts, axis=1)
    largest = float(shares.max(initial=0.0))
    lines = []
    for label, row in zip(labels, shares.tolist(), strict=True):
        line: list[Any] = [label]
        for share in row:
            rgb = colour(share / largest if largest else 0.0)
            ink = "white" if is_dark(rgb) else "black"
            line.append(Text(f" {percent(share):>3} ", style=f"{ink} on rgb({rgb[0]},{rgb[1]},{rgb[2]})"))
        lines.append(line)
    groups = [layers.layers[start : start + step] for start in starts]
    heads = [(f"L{cell[0]}" + (f"–{cell[-1]}" if len(cell) > 1 else ""), "right") for cell in groups]
    return terminal.table("Neurons by layer, % of the row", [layers.label or "queries", *heads], lines)


def _neurons(attributions: Attributions, neurons: Any, scores: Any) -> list[dict[str, Any]]:
    return as_rows(scores, attributions.neuron_names(neurons))


def describe(attributions: Attributions, selection: Chosen, by: str | None, k: int) -> dict[str, Any]:
    """The JSON document."""
    from actstore.engine.naica.selection import label_columns, pool_by_label

    rows = selection.queries.to_pylist()
    labels = label_columns(selection.queries)
    value: dict[str, Any] = {
        "capture": attributions.capture.record.name,
        "queries": [
            {
                "query": row["query"],
                "correct": row["correct"],
                "labels": {name: row[name] for name in labels},
                "neurons": _neurons(attributions, *selection.of(i)),
            }
            for i, row in enumerate(rows)
        ],
        "common": attributions.neuron_names(_common(selection)),
    }
    if by is not None:
        pooled = pool_by_label(selection, by, k)
        value |= {"by": by, "labels": {name: _named(attributions, neurons) for name, neurons in pooled.items()}}
    return value


def _common(selection: Chosen) -> Any:
    import numpy as np

    return getattr(selection, "common", np.empty(0, np.int64))


def _named(attributions: Attributions, neurons: list[tuple[int, float]]) -> list[dict[str, Any]]:
    import numpy as np

    return _neurons(attributions, np.array([n for n, _ in neurons], np.int64), [score for _, score in neurons])


def summary(selection: Chosen, about: str) -> str:
    """What was selected, as `about` says, and how well the model answers, in two lines."""
    n = selection.queries.num_rows
    n_right = sum(selection.queries["correct"].to_pylist())
    right = f", {n_right:,} answered right ({100 * n_right / n:.0f} %)" if n else ""
    average = f"; {len(selection.neurons) / n:.1f} neurons per query" if n else ""
    n_common = len(_common(selection))
    common = f", {terminal.plural(n_common, 'common neuron')} removed" if n_common else ""
    return f"{about}\n{terminal.plural(n, 'query', 'queries')}{right}{average}{common}."


def print_labels(attributions: Attributions, selection: Chosen, by: str, k: int, rows: int) -> None:
    """Print a table with a row per label."""
    import numpy as np

    from actstore.engine.naica.selection import label_of_queries, pool_by_label

    _, of_queries = label_of_queries(selection.queries, by)
    correct = np.array(selection.queries["correct"].to_pylist(), bool)
    lines = []
    for i, (name, neurons) in enumerate(pool_by_label(selection, by, k).items()):
        of_label = of_queries == i
        listed = _named(attributions, neurons)
        each = float(selection.n_neurons[of_label].mean())
        lines.append(
            (name, int(of_label.sum()), terminal.percent(correct[of_label].mean()), f"{each:.1f}", _listed(listed))
        )
    columns = [
        by,
        ("queries", "right"),
        ("right", "right"),
        ("neurons", "right"),
        f"top {k} neurons, score over its queries",
    ]
    print_rows(columns, folded_lists(columns, lines[: rows or None]), len(lines), "labels")


def _print_queries(attributions: Attributions, selection: Chosen, k: int, rows: int) -> None:
    lines = []
    table = selection.queries.select(["query", "correct"]).slice(0, rows or None).to_pylist()
    for i, row in enumerate(table):
        neurons, scores = selection.of(i)
        listed = _neurons(attributions, neurons[:k], scores[:k])
        lines.append((row["query"], terminal.verdict(row["correct"]), len(neurons), _listed(listed)))
    columns = ["query", "answer", ("neurons", "right"), f"top {k} neurons, score"]
    print_rows(columns, folded_lists(columns, lines), selection.queries.num_rows, "queries")


def _listed(neurons: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['neuron']} {row['score']:.3g}" for row in neurons) or "–"

"""`actstore top`, `stats`, `sql` and `export`: activations read, ranked, queried in SQL and written as files."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer

from actstore.api.exporting import correlated_neurons
from actstore.api.neurons import chosen_neurons
from actstore.commands import completion
from actstore.commands.choices import ExportFormat  # noqa: TC001  (Typer reads it)
from actstore.commands.options import (
    CaptureName,
    Json,
    K,
    Layers,
    NeuronLayers,
    NeuronName,
    Neurons,
    Quiet,
    Rows,
    Site,
    StorePath,
    complete,
    parse_bytes,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json, print_neuron, print_rows
from actstore.display.wide_tables import fitted_table
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.exports.formats import WITH_TOKENS_BESIDE
from actstore.store.reader import Store
from actstore.store.sandbox import TIMEOUT_S
from actstore.store.token_tables import companion_of

if TYPE_CHECKING:
    from actstore.store.reader import Capture

COLUMNS = ("name", "count", "mean", "std", "min", "q05", "q50", "q95", "max", "positive", "non_finite", "overflow")
"""The columns of the table of neurons that `stats` shows; captures of earlier versions lack the last."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (top, stats, sql, export):
        app.command()(command)


def top(
    store: StorePath,
    neuron: NeuronName,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Maximum number of exemplars.")] = 10,
    around: Annotated[int, typer.Option(min=0, help="Number of tokens shown on either side.")] = 16,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Where NEURON is most active: its exemplars, tokens highlighted by activation, and its histogram.

    Example: `actstore top gpt2.actstore L3.N17 -k 5`
    """
    with terminal.spinner("reading exemplars", enabled=not quiet):
        opened = Store(store)
        opened_capture, selected = opened.capture(capture), opened.neuron(neuron)
        exemplars = selected.exemplars(k, capture, site, around).to_pylist()
        statistics, histogram = selected.statistics(capture, site), selected.histogram(capture, site)
    if as_json:
        print_json({"neuron": selected.name, "statistics": statistics, "exemplars": exemplars})
        return
    terminal.warn(overflow_sentences(opened_capture, [site], neurons=[(selected.layer, selected.index)]))
    print_neuron(selected.name, statistics, exemplars)
    terminal.out.print()
    terminal.out.print(terminal.histogram(*histogram))


def stats(
    store: StorePath,
    capture: CaptureName = None,
    site: Annotated[
        str | None, typer.Option(metavar="SITE", help="Only this site.", autocompletion=completion.sites)
    ] = None,
    layers: Layers = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Share of positive activations for each value of this label.",
            autocompletion=completion.labels,
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column to sort by, largest first.", autocompletion=complete(COLUMNS))
    ] = "max",
    k: K = 20,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Every neuron's statistics over a capture: moments, quantiles, share of positive activations.

    Example: `actstore stats gpt2.actstore --sort std -k 10`
    """
    opened = Store(store)
    opened_capture = opened.capture(capture)
    with terminal.spinner("adding up statistics", enabled=not quiet):
        rows = _rank(opened, opened_capture, site, parse_layers(layers), by, sort, k)
    if as_json:
        print_json({"capture": opened_capture.record.name, "neurons": rows.to_pylist()})
        return
    if not rows.num_rows:
        raise InvalidInputError(
            f"No neuron matches. There are sites {', '.join(opened_capture.record.sites)}, and layers 0 to "
            f"{len(opened_capture.store.model.layers) - 1}."
        )
    headings = [rows.column_names[0], *((c, "right") for c in rows.column_names[1:])]
    n_keys = rows.column_names.index("name") + 1
    terminal.out.print(fitted_table(None, headings, [list(r.values()) for r in rows.to_pylist()], n_keys=n_keys))
    if by is not None:
        terminal.out.print(f"Share of values above zero by {by}; the neurons with the largest {sort}.", style="dim")


def _rank(
    store: Store,
    opened_capture: Capture,
    site: str | None,
    layers: tuple[int, ...] | None,
    by: str | None,
    sort: str,
    k: int,
) -> pa.Table:
    """The k neurons with the largest values in a column of the table of neurons, with the columns that `stats` shows."""
    known = opened_capture.neurons().column_names
    columns = ["site"] * (len(opened_capture.record.sites) > 1) + [name for name in COLUMNS if name in known]
    selected = [f'"{c}"' for c in columns]
    if by is not None:
        values = _values(opened_capture, by)
        identity = columns[: columns.index("name") + 1]
        # Label values may be empty, or differ in case only: neither can name a column in SQL.
        shares = (f"positive_by_label[{_sql_string(f'{by}={v}')}] AS label{i}" for i, v in enumerate(values))
        selected = [*identity, *shares]
        columns = [*identity, *(f"{by}={v}" if v in identity else v for v in values)]
    if sort not in known:
        raise InvalidInputError(f"There is no column {sort!r} to sort by. Columns: {', '.join(known)}.")
    if site is not None and site not in opened_capture.record.sites:
        raise InvalidInputError(
            f"Capture {opened_capture.record.name!r} has no site {site!r}. "
            f"Its sites are: {', '.join(opened_capture.record.sites)}."
        )
    of_site = f"site = {_sql_string(site)}" if site is not None else "true"
    of_layers = f"layer IN ({', '.join(map(str, layers))})" if layers is not None else "true"
    query = (
        f"SELECT {', '.join(selected)} FROM neurons WHERE {of_site} AND {of_layers} "
        f'ORDER BY "{sort}" DESC NULLS LAST, layer, neuron LIMIT {k}'
    )
    return store.sql(query, opened_capture.record.name).rename_columns(columns)


def _values(opened_capture: Capture, label: str) -> list[str]:
    """The values of a label column; `InvalidInputError` where there is none of the name."""
    plan = opened_capture.record.plan
    if label not in plan.label_columns:
        known = ", ".join(plan.label_columns) or "none"
        raise InvalidInputError(
            f"Capture {opened_capture.record.name!r} has no label {label!r}. Its labels are: {known}."
        )
    return [value for column, value in plan.labels if column == label]


def _sql_string(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def sql(
    store: StorePath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="DuckDB SQL on the store's tables.")],
    capture: CaptureName = None,
    rows: Rows = 200,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory that the query may take, such as 2GB. [default: half of the machine's]"
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="Time that the query may run.")
    ] = TIMEOUT_S,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Query STORE in SQL: tables neurons, documents, windows, tokens of a capture; vocabulary and model of the store.

    The query reads the store's tables and nothing else: no other file, no network, and it writes nothing.

    Example: `actstore sql gpt2.actstore "select layer, avg(positive) from neurons group by layer order by layer"`
    """
    with terminal.spinner("querying", enabled=not quiet):
        nbytes = parse_bytes(memory) if memory is not None else None
        result = Store(store).sql(query, capture, memory=nbytes, timeout_s=timeout_s)
    if as_json:
        print_json({"columns": result.column_names, "rows": result.to_pylist()})
        return
    shown = result.slice(0, rows or None)
    columns = [(field.name, "right" if _is_number(field.type) else "left") for field in result.schema]
    print_rows(columns, [list(r.values()) for r in shown.to_pylist()], result.num_rows, "rows")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def export(
    store: StorePath,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, or the folder.")],
    layout: Annotated[
        ExportFormat | None, typer.Option("--format", help="Layout of FILE. [default: that of its suffix]")
    ] = None,
    neurons: Neurons = None,
    layers: NeuronLayers = None,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Activations of selected neurons over all tokens, as an ordinary file, with each token's text, document and labels.

    Parquet, CSV and datasets have these as columns; beside .npy and .safetensors, which hold numbers only, FILE.tokens.parquet
    is written, with one row per token in the same order. delphi and neuronpedia write folders, dashboard JSON lines.

    Example: `actstore export gpt2.actstore --output l3.parquet --neurons L3.N17,L3.N18`
    """
    from actstore.store.exports.export import export_activations, format_of

    opened = Store(store)
    opened_capture = opened.capture(capture)
    selection = chosen_neurons(opened_capture, site, neurons, parse_layers(layers)) or []
    name, done = format_of(output, layout), 0
    with terminal.spinner("correlating neurons", enabled=not quiet):
        correlated = correlated_neurons(opened_capture, selection, site, name)
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:

        def count(_: int) -> None:
            nonlocal done
            done += 1
            advance(done, len(opened_capture.blocks))

        n_tokens = export_activations(
            opened_capture, output, neurons=selection, site=site, format=name, correlated=correlated, on_block=count
        )
    terminal.warn(overflow_sentences(opened_capture, [site], "so they are in the file too", selection))
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    nbytes = sum(map(os.path.getsize, files))
    companion = companion_of(output) if name in WITH_TOKENS_BESIDE else None
    if as_json:
        about = {"file": str(output), "tokens": n_tokens, "neurons": len(selection), "bytes": nbytes}
        print_json(about | ({"tokens_file": str(companion)} if companion else {}))
        return
    terminal.out.print(
        f"{output}: {terminal.plural(len(selection), 'neuron')} over {terminal.plural(n_tokens, 'token')}, "
        f"{terminal.format_bytes(nbytes)}." + (f" The tokens' texts and labels: {companion}." if companion else ""),
        soft_wrap=True,
        markup=False,
    )

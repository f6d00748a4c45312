"""`actstore top`, `stats`, `sql` and `export`: neurons' activations read, ranked, asked in SQL and written as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer

from actstore.commands.options import (
    CaptureName,
    Json,
    K,
    Layers,
    NeuronName,
    Neurons,
    Quiet,
    Rows,
    Site,
    StorePath,
    chosen_neurons,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json, print_neuron, print_rows
from actstore.display.wide_tables import fitted_table
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.store.reader import Capture

COLUMNS = ("name", "count", "mean", "std", "min", "q05", "q50", "q95", "max", "positive", "non_finite", "overflow")
"""What `stats` shows of the table of neurons; captures of earlier versions lack the last."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (top, stats, sql, export):
        app.command()(command)


def top(
    store: StorePath,
    neuron: NeuronName,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many exemplars.")] = 10,
    around: Annotated[int, typer.Option(min=0, help="Tokens shown on either side.")] = 16,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Where NEURON is highest: its exemplars, tokens highlighted by activation, and its histogram.

    Example: `actstore top gpt2.actstore L3.N17 -k 5`
    """
    with terminal.spinner("reading exemplars", enabled=not quiet):
        opened = Store(store)
        held, chosen = opened.capture(capture), opened.neuron(neuron)
        exemplars = chosen.exemplars(k, capture, site, around).to_pylist()
        statistics, histogram = chosen.statistics(capture, site), chosen.histogram(capture, site)
    if as_json:
        print_json({"neuron": chosen.name, "statistics": statistics, "exemplars": exemplars})
        return
    terminal.warn(overflow_sentences(held, [site], neurons=[(chosen.layer, chosen.index)]))
    print_neuron(chosen.name, statistics, exemplars)
    terminal.out.print()
    terminal.out.print(terminal.histogram(*histogram))


def stats(
    store: StorePath,
    capture: CaptureName = None,
    site: Annotated[str | None, typer.Option(metavar="SITE", help="Only this site.")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", "--layer", metavar="LAYERS", help="Only layers such as 0,3-5.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Share of positive activations for each value of this label.")
    ] = None,
    sort: Annotated[str, typer.Option(metavar="COLUMN", help="Column to sort by, largest first.")] = "max",
    k: K = 20,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Every neuron's statistics over a capture: moments, quantiles, share of positive activations.

    Example: `actstore stats gpt2.actstore --sort std -k 10`
    """
    opened = Store(store)
    held = opened.capture(capture)
    with terminal.spinner("adding up statistics", enabled=not quiet):
        rows = _ranked(opened, held, site, parse_layers(layers), by, sort, k)
    if as_json:
        print_json({"capture": held.record.name, "neurons": rows.to_pylist()})
        return
    if not rows.num_rows:
        raise InvalidInputError(
            f"No neuron matches: sites {', '.join(held.record.sites)}, {len(held.store.model.layers)} layers."
        )
    headings = [rows.column_names[0], *((c, "right") for c in rows.column_names[1:])]
    n_keys = rows.column_names.index("name") + 1
    terminal.out.print(fitted_table(None, headings, [list(r.values()) for r in rows.to_pylist()], n_keys=n_keys))
    if by is not None:
        terminal.out.print(f"Share of values above zero by {by}; the neurons with the largest {sort}.", style="dim")


def _ranked(
    store: Store, held: Capture, site: str | None, layers: tuple[int, ...] | None, by: str | None, sort: str, k: int
) -> pa.Table:
    """The k neurons with the largest values in a column of the table of neurons, and what `stats` shows of each."""
    known = held.neurons().column_names
    columns = ["site"] * (len(held.record.sites) > 1) + [name for name in COLUMNS if name in known]
    selected = [f'"{c}"' for c in columns]
    if by is not None:
        values = _values(held, by)
        identity = columns[: columns.index("name") + 1]
        # Label values may be empty, or differ in case only: neither can name a column in SQL.
        shares = (f"positive_by_label[{_sql_string(f'{by}={v}')}] AS label{i}" for i, v in enumerate(values))
        selected = [*identity, *shares]
        columns = [*identity, *(f"{by}={v}" if v in identity else v for v in values)]
    if sort not in known:
        raise InvalidInputError(f"There is no column {sort!r} to sort by. Columns: {', '.join(known)}.")
    if site is not None and site not in held.record.sites:
        raise InvalidInputError(
            f"Capture {held.record.name!r} has no site {site!r}. Its sites are: {', '.join(held.record.sites)}."
        )
    of_site = f"site = {_sql_string(site)}" if site is not None else "true"
    of_layers = f"layer IN ({', '.join(map(str, layers))})" if layers is not None else "true"
    query = (
        f"SELECT {', '.join(selected)} FROM neurons WHERE {of_site} AND {of_layers} "
        f'ORDER BY "{sort}" DESC NULLS LAST, layer, neuron LIMIT {k}'
    )
    return store.sql(query, held.record.name).rename_columns(columns)


def _values(held: Capture, label: str) -> list[str]:
    """The values of a label column; `InvalidInputError` where there is none of the name."""
    plan = held.record.plan
    if label not in plan.label_columns:
        known = ", ".join(plan.label_columns) or "none"
        raise InvalidInputError(f"Capture {held.record.name!r} has no label {label!r}. Its labels are: {known}.")
    return [value for column, value in plan.labels if column == label]


def _sql_string(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def sql(
    store: StorePath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="DuckDB SQL over the store's tables.")],
    capture: CaptureName = None,
    rows: Rows = 200,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Ask STORE in SQL: tables neurons, documents, windows, tokens of a capture; vocabulary and model of the store.

    Example: `actstore sql gpt2.actstore "select layer, avg(positive) from neurons group by layer order by layer"`
    """
    with terminal.spinner("asking", enabled=not quiet):
        result = Store(store).sql(query, capture)
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
    target: Annotated[str, typer.Argument(metavar="FILE", help="Ends in .parquet, .npy or .safetensors.")],
    neurons: Neurons = None,
    layers: Layers = None,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Activations of chosen neurons over all tokens, as an ordinary file, with each token's text, document and labels.

    Parquet has these as columns; beside .npy and .safetensors, which hold numbers only, FILE.tokens.parquet is written, a row
    per token in the same order.

    Example: `actstore export gpt2.actstore l3.parquet --neurons L3.N17,L3.N18`
    """
    from actstore.store.export import export_activations
    from actstore.store.token_tables import companion_of

    opened = Store(store)
    held = opened.capture(capture)
    chosen = chosen_neurons(held, site, neurons, layers) or []
    done = 0
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:

        def count(_: int) -> None:
            nonlocal done
            done += 1
            advance(done, len(held.blocks))

        n_tokens = export_activations(held, target, neurons=chosen, site=site, on_block=count)
    terminal.warn(overflow_sentences(held, [site], "so they are in the file too", chosen))
    nbytes = os.path.getsize(target)
    beside = companion_of(Path(target)) if Path(target).suffix != ".parquet" else None
    if as_json:
        about = {"file": target, "tokens": n_tokens, "neurons": len(chosen), "bytes": nbytes}
        print_json(about | ({"tokens_file": str(beside)} if beside else {}))
        return
    terminal.out.print(
        f"{target}: {terminal.plural(len(chosen), 'neuron')} over {terminal.plural(n_tokens, 'token')}, "
        f"{terminal.format_bytes(nbytes)}." + (f" The tokens' texts and labels: {beside}." if beside else ""),
        soft_wrap=True,
        markup=False,
    )

"""The command line: options in, one table for people or one JSON document for machines out.

Every command is a few lines around a call that Python users can make themselves. Mistakes of the user's end in one
sentence on standard error and exit status 2, runs that stopped half-way in status 1. Knows nothing about how anything is
computed; engine and models are imported only by the commands that need them.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore import terminal
from actstore.commands import (
    attribute,
    change,
    contributions,
    coverage,
    edit,
    graph,
    knowledge,
    multimodal,
    naica,
    selectivity,
)
from actstore.commands import capture as capture_command
from actstore.commands.options import CaptureName, Json, Site, StorePath, parse_layers
from actstore.reports import describe_model, describe_store, print_json, print_neuron, print_store
from actstore.store.errors import ActstoreError, CaptureError, InvalidInputError
from actstore.store.neuron import parse_neuron
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    help="Run a transformer once; ask its neurons forever.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id or the path of a model folder.")],
    as_json: Json = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run model code that comes with the model.")] = False,
) -> None:
    """What would be captured of MODEL: layers, neurons, module paths, sites, bytes a token. No weights are loaded.

    Example: `actstore inspect gpt2`
    """
    from actstore.engine.models import inspect_model

    spec = inspect_model(model, trust_remote_code=trust_remote_code)
    value = describe_model(spec)
    if as_json:
        print_json(value)
        return
    terminal.out.print(f"{spec.name}: {spec.model_type}, {spec.kind}, width {spec.d_model}, {spec.dtype}", style="bold")
    rows = [(f"L{s.layer}", s.neurons, "gated" if s.gated else "plain", s.stack, s.module) for s in spec.layers]
    terminal.out.print(terminal.table(None, ["layer", ("neurons", "right"), "MLP", "stack", "output projection"], rows))
    per_token = value["bytes_per_token"]
    terminal.out.print(
        f"{value['neurons']:,} neurons; a token takes {terminal.format_bytes(per_token['mlp.post'])} at mlp.post, uncompressed."
    )
    terminal.out.print(f"Sites: {', '.join(spec.sites)}")


capture_command.register(app)


@app.command()
def info(store: StorePath, as_json: Json = False) -> None:
    """What STORE holds: the model, its layers, every capture and how far it is filled.

    Example: `actstore info gpt2.actstore`
    """
    opened = Store(store)
    if as_json:
        print_json(describe_store(opened))
    else:
        print_store(opened)


@app.command()
def verify(
    store: StorePath,
    capture: CaptureName = None,
    refill: Annotated[int, typer.Option(min=0, help="Recompute so many blocks with the model and compare.")] = 0,
    model: Annotated[str | None, typer.Option(help="Where the model is now. [default: where it was]")] = None,
    images: Annotated[
        str | None, typer.Option(help="Where captured images are now. [default: where they were]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to recompute: auto, cpu, cuda …")] = "auto",
    as_json: Json = False,
) -> None:
    """Is STORE what its records say? Checks every checksum, also of neurons' graphs; with --refill values against the model.

    Exit status 1 where something is damaged. Example: `actstore verify gpt2.actstore --refill 2`
    """
    from actstore.store.verify import verify_capture, verify_graphs

    opened = Store(store)
    names = [capture] if capture else list(opened.captures)
    damage = []
    refilled: list[dict[str, Any]] = []
    for name in names:
        held = opened.capture(name)
        damage += verify_capture(held)
        if refill:
            from actstore.engine.refill import refill_blocks

            broken = {d.block for d in damage if d.capture == name}
            found, differing = refill_blocks(held, refill, model=model, images=images, device=device, without=broken)
            refilled += found
            damage += differing
    graphs, damaged_graphs = verify_graphs(opened.folder, capture)
    damage += damaged_graphs
    if as_json:
        fields = ("capture", "layer", "block", "site", "key", "what", "graphs")
        value = {
            "ok": not damage,
            "damaged": [{f: getattr(d, f) for f in fields} for d in damage],
            "graphs": graphs,
            "refilled": refilled,
        }
        print_json(value)
    else:
        for item in damage:
            terminal.out.print(f"damaged: {item}", style="red", soft_wrap=True)
        for row in refilled:
            terminal.out.print(
                f"capture {row['capture']!r}, block {row['block']}: recomputed, "
                f"largest difference {row['largest_difference']:.3g}"
            )
        n_blocks = sum(len(opened.capture(name).blocks) for name in names)
        checked = f"{n_blocks} blocks of {len(names)} captures"
        if graphs:
            checked += f", {len(graphs)} set{'s' * (len(graphs) != 1)} of graphs"
        terminal.out.print(f"{checked}: {f'{len(damage)} damaged parts' if damage else 'all well'}.")
    if damage:
        raise typer.Exit(1)


@app.command()
def top(
    store: StorePath,
    neuron: Annotated[str, typer.Argument(metavar="NEURON", help="Such as L3.N17.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many exemplars.")] = 10,
    around: Annotated[int, typer.Option(min=0, help="Tokens shown on either side.")] = 16,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    as_json: Json = False,
) -> None:
    """Where NEURON is highest: its exemplars, tokens highlighted by activation, and its histogram.

    Example: `actstore top gpt2.actstore L3.N17 -k 5`
    """
    chosen = Store(store).neuron(neuron)
    exemplars = chosen.exemplars(k, capture, site, around).to_pylist()
    if as_json:
        print_json({"neuron": chosen.name, "statistics": chosen.statistics(capture, site), "exemplars": exemplars})
        return
    print_neuron(chosen.name, chosen.statistics(capture, site), exemplars)
    terminal.out.print()
    terminal.out.print(terminal.histogram(*chosen.histogram(capture, site)))


@app.command()
def stats(
    store: StorePath,
    capture: CaptureName = None,
    site: Annotated[str | None, typer.Option(help="Only this site.")] = None,
    layer: Annotated[int | None, typer.Option(help="Only this layer.")] = None,
    by: Annotated[str | None, typer.Option(help="Share of positive activations for each value of this label.")] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by, largest first.")] = "max",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many neurons.")] = 20,
    as_json: Json = False,
) -> None:
    """Every neuron's statistics over a capture: moments, quantiles, share of positive activations.

    Example: `actstore stats gpt2.actstore --sort std -k 10`
    """
    opened = Store(store)
    held = opened.capture(capture)
    columns = ["name", "count", "mean", "std", "min", "q05", "q50", "q95", "max", "positive", "non_finite"]
    if len(held.record.sites) > 1:
        columns.insert(0, "site")
    selected = [f'"{c}"' for c in columns]
    if by is not None:
        if by not in held.record.plan.label_columns:
            known = ", ".join(held.record.plan.label_columns) or "none"
            raise InvalidInputError(f"Capture {held.record.name!r} has no label {by!r}. Its labels are: {known}.")
        values = [v for column, v in held.record.plan.labels if column == by]
        identity = columns[: columns.index("name") + 1]
        # Label values may be empty, or differ in case only: neither can name a column in SQL.
        shares = (f"positive_by_label[{_sql_string(f'{by}={v}')}] AS label{i}" for i, v in enumerate(values))
        selected = [*identity, *shares]
        columns = [*identity, *(f"{by}={v}" if v in identity else v for v in values)]
    if sort not in held.neurons().column_names:
        raise InvalidInputError(
            f"There is no column {sort!r} to sort by. Columns: {', '.join(held.neurons().column_names)}."
        )
    conditions = ["true"]
    if site is not None:
        if site not in held.record.sites:
            raise InvalidInputError(
                f"Capture {held.record.name!r} has no site {site!r}. Its sites are: {', '.join(held.record.sites)}."
            )
        conditions.append(f"site = {_sql_string(site)}")
    if layer is not None:
        conditions.append(f"layer = {layer}")
    query = (
        f"SELECT {', '.join(selected)} FROM neurons WHERE {' AND '.join(conditions)} "
        f'ORDER BY "{sort}" DESC NULLS LAST, layer, neuron LIMIT {k}'
    )
    rows = opened.sql(query, held.record.name).rename_columns(columns).to_pylist()
    if as_json:
        print_json({"capture": held.record.name, "neurons": rows})
        return
    if not rows:
        raise InvalidInputError(
            f"No neuron matches: sites {', '.join(held.record.sites)}, {len(opened.model.layers)} layers."
        )
    headings = [columns[0], *((c, "right") for c in columns[1:])]
    terminal.out.print(terminal.table(None, headings, [list(r.values()) for r in rows]))


def _sql_string(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@app.command()
def sql(
    store: StorePath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="DuckDB SQL over the store's tables.")],
    capture: CaptureName = None,
    as_json: Json = False,
) -> None:
    """Ask STORE in SQL: tables neurons, documents, windows, tokens of a capture; vocabulary and model of the store.

    Example: `actstore sql gpt2.actstore "select layer, avg(positive) from neurons group by layer order by layer"`
    """
    result = Store(store).sql(query, capture)
    if as_json:
        print_json({"columns": result.column_names, "rows": result.to_pylist()})
        return
    shown = result.slice(0, 200)
    terminal.out.print(terminal.table(None, result.column_names, [list(r.values()) for r in shown.to_pylist()]))
    if result.num_rows > 200:
        terminal.out.print(f"… {result.num_rows - 200:,} more rows; all of them with --json.")


@app.command()
def export(
    store: StorePath,
    target: Annotated[str, typer.Argument(metavar="FILE", help="Ends in .parquet, .npy or .safetensors.")],
    neurons: Annotated[str | None, typer.Option(help="Such as L3.N17,L4.N2.")] = None,
    layers: Annotated[str | None, typer.Option(help="All neurons of layers such as 0,3-5.")] = None,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    as_json: Json = False,
) -> None:
    """Activations of chosen neurons over all tokens, as one ordinary file.

    Example: `actstore export gpt2.actstore l3.parquet --neurons L3.N17,L3.N18`
    """
    from actstore.store.export import export_activations

    opened = Store(store)
    held = opened.capture(capture)
    chosen = [parse_neuron(name) for name in neurons.split(",")] if neurons else []
    for layer, index in chosen:
        opened.neuron(layer, index)
    for layer in parse_layers(layers) if layers is not None else ():
        if site not in held.record.sites or layer not in held.record.layers(site):
            held.layer_statistics(layer, site)  # raises, saying what there is
        chosen += [(layer, index) for index in range(held.record.layers(site)[layer])]
    n_tokens = export_activations(held, target, neurons=chosen, site=site)
    if as_json:
        print_json({"file": target, "tokens": n_tokens, "neurons": len(chosen), "bytes": os.path.getsize(target)})
    else:
        size = terminal.format_bytes(os.path.getsize(target))
        neurons_of = "neuron" if len(chosen) == 1 else "neurons"
        terminal.out.print(f"{target}: {len(chosen):,} {neurons_of} over {n_tokens:,} tokens, {size}.")


# In the order in which --help lists them.
for family in (contributions, attribute, naica, knowledge, selectivity, change, coverage, graph, multimodal, edit):
    family.register(app)


def main() -> None:
    """Run the command line; whatever goes wrong ends in a sentence and an exit status."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(_run(app))


_FILE_SYSTEM_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG,
}  # fmt: skip
"""What the user can mend, and a program cannot cause by itself."""


def _run(command: Callable[[], Any]) -> int:
    try:
        command()
    except ActstoreError as error:
        terminal.err.print(f"Error: {error}", soft_wrap=True, markup=False)
        return 1 if isinstance(error, CaptureError) else 2
    except KeyboardInterrupt:
        terminal.err.print("Interrupted.")
        return 130
    except OSError as error:
        if error.errno not in _FILE_SYSTEM_ERRORS:
            raise
        terminal.err.print(f"Error: {error.strerror}: {error.filename or 'the disk'}.", soft_wrap=True, markup=False)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


if __name__ == "__main__":
    main()

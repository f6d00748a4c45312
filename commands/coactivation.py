"""`coactivation`: the neurons that fire with a neuron, or every neuron's nearest, as a table."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from actstore.commands import completion
from actstore.commands.choices import CoactivationMeasure  # noqa: TC001  (Typer reads it)
from actstore.commands.executors import On, ScanDevice, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import CaptureName, Json, Layers, Positions, Quiet, Site, StorePath, parse_layers
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.neurons import parse_neuron
from actstore.store.reader import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from actstore.engine.coactivation.coactivation import Coactivations
    from actstore.engine.coactivation.nearest import NearestNeurons
    from actstore.store.reader import Capture


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(coactivation)


def coactivation(
    store: StorePath,
    neuron: Annotated[
        str | None,
        typer.Argument(
            metavar="NEURON",
            help="A neuron, such as L3.N17; without it, all pairs of neurons are compared.",
            autocompletion=completion.neurons,
        ),
    ] = None,
    sort: Annotated[CoactivationMeasure, typer.Option(help="Measure whose largest values are shown.")] = "correlation",
    k: Annotated[
        int, typer.Option("--k", "-k", min=1, help="Maximum number of neurons, for each where all are compared.")
    ] = 20,
    threshold: Annotated[float, typer.Option(help="A neuron fires where its activation is larger.")] = 0.0,
    layers: Layers = None,
    within_layers: Annotated[
        bool, typer.Option("--within-layers", help="Compare neurons with those of their own layer only.")
    ] = False,
    site: Site = "mlp.post",
    positions: Positions = "counted",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table into this .parquet file.")
    ] = None,
    capture: CaptureName = None,
    device: ScanDevice = "auto",
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons that fire with NEURON, by correlation and by the tokens on which both fire; or every neuron's nearest.

    *Correlation* is Pearson's, of activations; *Jaccard* the tokens on which both fire, of those on which either does. Without
    NEURON the time grows with the square of the number of neurons. Blocks, or tiles of pairs, are divided among --workers.

    Example: `actstore coactivation gpt2.actstore L3.N17 -k 10`
    """
    from actstore.engine.coactivation.coactivation import find_coactivation
    from actstore.engine.coactivation.files import check_output, write_coactivation
    from actstore.engine.coactivation.nearest import find_nearest
    from actstore.engine.coactivation.settings import CoactivationSettings
    from actstore.engine.coactivation.warnings import coactivation_warnings
    from actstore.engine.devices.device import find_device
    from actstore.engine.workers.scan import executor_of

    path = check_output(output)
    settings = CoactivationSettings(sort, k, threshold, parse_layers(layers), within_layers, site, positions)
    of_neuron = None if neuron is None else parse_neuron(neuron)
    opened, executor, target = Store(store).capture(capture), executor_of(workers, on), find_device(device, on)
    found: Coactivations | NearestNeurons
    if of_neuron is not None:
        with terminal.counting_bar("blocks", enabled=not quiet) as advance:
            found = find_coactivation(opened, *of_neuron, settings, on_block=advance, executor=executor, device=target)
        described = _describe(opened, found)
    else:
        with terminal.counting_bar("tiles", enabled=not quiet) as advance:
            found = find_nearest(opened, settings, on_tile=advance, executor=executor, device=target)
        described = _describe_all(opened, found)
    table = found.table()
    if path is not None:
        write_coactivation(path, table)
    warnings = coactivation_warnings(opened, settings)
    terminal.warn(warnings)
    if as_json:
        print_json(described | {"file": None if path is None else str(path), "warnings": warnings})
        return
    _print(found, table, path)


SHOWN_PAIRS = 20
"""Pairs shown where all neurons are compared; the JSON, and the file, have every neuron's nearest."""


def _settings(capture: Capture, found: Coactivations | NearestNeurons) -> dict[str, Any]:
    settings = found.settings
    return {
        "capture": capture.record.name,
        "site": settings.site,
        "positions": settings.positions,
        "sort": settings.sort,
        "threshold": settings.threshold,
        "tokens": found.n_tokens,
    }


def _rows(numbers: Any, names: list[str], columns: dict[str, Any]) -> list[dict[str, Any]]:
    """One description per neuron: its name, and a value of each column, null where it is NaN."""
    values = zip(*(column[numbers].tolist() for column in columns.values()), strict=True)
    return [{"neuron": name} | dict(zip(columns, row, strict=True)) for name, row in zip(names, values, strict=True)]


def _describe(capture: Capture, found: Coactivations) -> dict[str, Any]:
    nearest = found.nearest()
    columns = {name: getattr(found, name) for name in ("correlation", "jaccard", "both_fire", "fires", "tokens")}
    neurons = _rows(nearest, found.index.names(nearest), columns)
    return {"neuron": found.name, "fires": found.own_fires, "neurons": neurons} | _settings(capture, found)


def _describe_all(capture: Capture, found: NearestNeurons) -> dict[str, Any]:
    from actstore.engine.coactivation.nearest import COLUMNS

    neighbours, neurons = found.neighbours, []
    columns = {name: getattr(neighbours, name) for name in COLUMNS}
    names = found.index.names(np.arange(len(found.index)))
    for number, numbers in enumerate(neighbours.numbers):
        n = int((numbers >= 0).sum())
        of_neuron = {name: column[number] for name, column in columns.items()}
        nearest = _rows(slice(0, n), found.index.names(numbers[:n]), of_neuron)
        neurons.append({"neuron": names[number], "fires": int(found.fires[number]), "nearest": nearest})
    return {"neurons": neurons} | _settings(capture, found)


def _print(found: Coactivations | NearestNeurons, table: pa.Table, path: Path | None) -> None:
    from actstore.engine.coactivation.coactivation import Coactivations

    if isinstance(found, Coactivations):
        _print_one(found)
    else:
        _print_all(found)
    if path is not None:
        line = f"{path}: {terminal.plural(table.num_rows, 'row')}."
        terminal.out.print(line, soft_wrap=True, markup=False)


def _print_one(found: Coactivations) -> None:
    above = f"above {found.settings.threshold:g}"
    share = terminal.percent(found.own_fires / max(found.n_tokens, 1))
    line = (
        f"{found.name}: fires, {above}, on {found.own_fires:,} of {terminal.plural(found.n_tokens, 'token')}, {share}"
    )
    terminal.out.print(line, style="bold", soft_wrap=True)
    columns = ["neuron", ("correlation", "right"), ("Jaccard", "right"), ("both fire", "right"), ("fires", "right")]
    rows = [
        [row["name"], row["correlation"], row["jaccard"], row["both_fire"], row["fires"]]
        for row in found.table().to_pylist()
    ]
    terminal.out.print(terminal.table(None, columns, rows))


def _print_all(found: NearestNeurons) -> None:
    numbers, others, values = found.strongest(SHOWN_PAIRS)
    line = (
        f"The nearest of {terminal.plural(len(found.index), 'neuron')} by {found.settings.sort} over "
        f"{terminal.plural(found.n_tokens, 'token')}; the strongest pairs:"
    )
    terminal.out.print(line, style="bold", soft_wrap=True)
    columns = ["neuron", "other", ("correlation", "right"), ("Jaccard", "right"), ("both fire", "right")]
    columns += [("fires", "right"), ("other fires", "right")]
    fires = found.fires.tolist()
    pairs = zip(numbers.tolist(), others.tolist(), strict=True)
    measured = [values[name].tolist() for name in ("correlation", "jaccard", "both_fire")]
    rows = [
        [*found.index.names(np.array(pair)), *row, *(fires[number] for number in pair)]
        for pair, row in zip(pairs, zip(*measured, strict=True), strict=True)
    ]
    terminal.out.print(terminal.table(None, columns, rows))

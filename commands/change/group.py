"""`actstore change`: the neurons whose activations differ most between two models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.commands.change import patch as change_patch
from actstore.commands.change.patch import OtherCapture, OtherStore, Share, find_changed
from actstore.commands.executors import On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import CaptureName, Json, Positions, Quiet, Site, StorePath, as_rows, family
from actstore.display import terminal
from actstore.display.reports import print_json

if TYPE_CHECKING:
    from actstore.engine.change.change import Change

group = family(
    """Neurons that act differently in two models on the same tokens (change scores, safety neurons).

    `actstore change STORE OTHER` is short for `actstore change show STORE OTHER`; `patch` runs both models.

    Example: `actstore change base.actstore tuned.actstore`"""
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="change")


@group.command()
def show(
    store: StorePath,
    other: OtherStore,
    capture: CaptureName = None,
    other_capture: OtherCapture = None,
    site: Site = "mlp.post",
    positions: Positions = "counted",
    share: Share = 0.05,
    k: Annotated[
        int | None,
        typer.Option(
            "--k", "-k", min=1, help="Maximum number of neurons shown. [default: 20; with --json all of --share]"
        ),
    ] = None,
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons whose activations differ most between two models: root mean square difference, over every layer.

    Both stores must hold captures of the same corpus with the same settings. Blocks are divided among --workers.

    Example: `actstore change base.actstore tuned.actstore --share 0.05`
    """
    change, selection = find_changed(
        (store, other), (capture, other_capture or capture), site, positions, share, quiet, workers, on
    )
    terminal.warn(change.warnings)
    nothing_differs = change.nothing_differs
    layers = {int(layer): len(neurons) for layer, neurons in change.by_layer(selection).items()}
    if as_json:
        listed = selection[:k] if k is not None else selection
        print_json(
            {
                "site": site,
                "positions": positions,
                "tokens": change.n_positions,
                "share": share,
                "selected": len(selection),
                "neurons": as_rows(change.scores[listed], change.names(listed)),
                "layers": [
                    {"layer": layer, "neurons": width, "selected": layers.get(layer, 0), "mean": mean}
                    for layer, width, mean in _layers(change)
                ],
                "warnings": [*change.warnings, *([nothing_differs] if nothing_differs else [])],
            }
        )
        return
    if nothing_differs is not None:
        terminal.out.print(nothing_differs, style="bold", soft_wrap=True)
        return
    terminal.out.print(
        f"{len(selection):,} of {len(change.scores):,} neurons ({100 * share:g} %) changed most, over {change.n_positions:,} "
        "tokens.",
        style="bold",
        soft_wrap=True,
    )
    listed = selection[: k or 20]
    rows = [(row["neuron"], row["score"]) for row in as_rows(change.scores[listed], change.names(listed))]
    terminal.out.print(terminal.table(None, ["neuron", ("change", "right")], rows))
    terminal.out.print()
    columns = ["layer", ("neurons", "right"), ("selected", "right"), ("mean change", "right")]
    shown = [(f"L{layer}", width, layers.get(layer, 0), mean) for layer, width, mean in _layers(change)]
    terminal.out.print(terminal.table(None, columns, shown))


change_patch.register(group)


def _layers(change: Change) -> list[tuple[int, int, float]]:
    """(layer, neurons, mean score of those that have one)."""
    rows = []
    for layer, scores in change.sums.scores().items():
        known = scores[scores == scores]
        rows.append((layer, len(scores), float(known.mean()) if len(known) else math.nan))
    return rows

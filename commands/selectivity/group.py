"""`actstore selectivity`: neurons that fire for one label's tokens only, and the effect of switching them off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from actstore.commands.executors import On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import By, CaptureName, Json, OverlapFile, Quiet, Seed, StorePath, family
from actstore.commands.selectivity import evaluate as selectivity_evaluate
from actstore.commands.selectivity import lens as selectivity_lens
from actstore.commands.selectivity.describe import describe, layer_counts
from actstore.commands.selectivity.selecting import FiringSite, Method, Modality, Quantile, Share, Tuned, measure
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.reader import Store

if TYPE_CHECKING:
    import typer

    from actstore.engine.selectivity.selectivity import Selectivity
    from actstore.store.reader import Capture

SHOWN_NEURONS = 8
"""Neurons shown of each label; the JSON has all."""
SHOWN_LABELS = 8
"""Up to this number of labels, a neuron's P of every label is shown; with more, those of its own and the next highest."""

group = family(
    """Neurons that fire for one label's tokens and hardly for another's (LAPE, DAPE).

    `actstore selectivity STORE` is short for `actstore selectivity show STORE`; `evaluate` runs the model without them.

    Example: `actstore selectivity gpt2.actstore --by language`"""
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="selectivity")


@group.command()
def show(
    store: StorePath,
    by: By,
    capture: CaptureName = None,
    site: FiringSite = None,
    modality: Modality = None,
    share: Share = 0.01,
    activation_quantile: Quantile = 0.95,
    method: Method = "lape",
    tuned: Tuned = None,
    seed: Seed = 0,
    overlap_map: OverlapFile = None,
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons of STORE that are selective for each value of a label, by the entropy of their firing probabilities.

    Statistics say how often neurons fire; with --modality, blocks are read, which are divided among --workers.

    Example: `actstore selectivity gpt2.actstore --by language --share 0.01`
    """
    from actstore.display.heat_map import check_picture
    from actstore.display.overlap_map import write_overlap
    from actstore.engine.selectivity.selectivity import SelectivitySettings

    if overlap_map is not None:
        check_picture(overlap_map)
    opened = Store(store).capture(capture)
    settings = SelectivitySettings(by, site, modality, share, activation_quantile, method, seed)
    result = measure(opened, settings, tuned, quiet, workers, on)
    if overlap_map is not None:
        about = f"{opened.store.model.name}, capture {opened.record.name}: {method}, {share:g} of all neurons"
        write_overlap(overlap_map, result.neurons, f"Neurons that values of {by} share", about)
    if as_json:
        print_json(describe(opened, result))
    else:
        _print(opened, result)


selectivity_evaluate.register(group)
selectivity_lens.register(group)


def _membership(result: Selectivity) -> str:
    """When a neuron belongs to a label, as a clause."""
    threshold, method = result.selection.threshold, result.settings.method
    if method == "random":
        return "as many of each label as LAPE selects, drawn at random"
    if method == "lave":
        return f"a neuron belongs to labels for which its mean activation is above {threshold:.4g}"
    if method == "pv":
        return (
            f"a neuron belongs to labels for which its write vector changes by more than {terminal.percent(threshold)}"
        )
    return f"a neuron belongs to labels for which it fires on more than {terminal.percent(threshold)} of tokens"


def _print(capture: Capture, result: Selectivity) -> None:
    selection = result.selection
    terminal.out.print(
        f"{len(selection.neurons):,} of {len(selection.entropies):,} neurons are selective by {result.settings.by} in capture "
        f"{capture.record.name!r}; {_membership(result)}.",
        style="bold",
        soft_wrap=True,
    )
    layers = list(result.firing.layers)
    columns = ["label", *((name, "right") for name in ("tokens", "neurons", *(f"L{layer}" for layer in layers)))]
    rows = [
        (label, n, len(flat), *layer_counts(result, flat).values())
        for (label, flat), n in zip(result.neurons.items(), result.firing.n_tokens.tolist(), strict=True)
    ]
    terminal.out.print(fitted_table(None, columns, rows, n_keys=3))
    terminal.out.print()
    _print_most_selective(result)


def _print_most_selective(result: Selectivity) -> None:
    """The first neurons of each label with their entropy and how often they fire: for every label, or for the two highest."""
    labels, probabilities = result.firing.labels, result.firing.probabilities
    columns: list[Any] = ["label", "neuron", ("entropy", "right")]
    few = len(labels) <= SHOWN_LABELS
    columns += [(f"P({label})", "right") for label in labels] if few else [("P", "right"), ("next highest", "right")]
    rows: list[list[Any]] = []
    for i, (label, flat) in enumerate(result.neurons.items()):
        for name, neuron in zip(result.firing.names(flat[:SHOWN_NEURONS]), flat[:SHOWN_NEURONS].tolist(), strict=True):
            row = probabilities[neuron].tolist()
            other = max((j for j in range(len(labels)) if j != i), key=row.__getitem__)
            shown = [f"{p:.4f}" for p in row] if few else [f"{row[i]:.4f}", f"{labels[other]} {row[other]:.4f}"]
            rows.append([label, name, f"{result.selection.entropies[neuron]:.4f}", *shown])
    terminal.out.print(fitted_table("The most selective of each", columns, rows, n_keys=3))
    terminal.out.print(
        "Entropy: of a neuron's P over the labels, in nats; 0 where it fires for one label only, "
        f"{math.log(len(labels)):.4f} where it fires for all alike. P: the share of a label's tokens on which it fires.",
        style="dim",
        soft_wrap=True,
    )

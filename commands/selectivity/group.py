"""`actstore selectivity`: neurons that fire for one label's tokens only, and the effect of switching them off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.api.selectivity import held_out_windows
from actstore.commands.choices import FiringSiteName, ModalityName
from actstore.commands.executors import On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    By,
    CaptureName,
    Device,
    Json,
    ModelOption,
    Quiet,
    Seed,
    StorePath,
    TokenizerName,
    TrustRemoteCode,
    captured_model,
    family,
    load,
)
from actstore.commands.selectivity import lens as selectivity_lens
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.selectivity.mask_matrix import MaskMatrix
    from actstore.engine.selectivity.selectivity import Selectivity, SelectivitySettings
    from actstore.store.reader import Capture

SHOWN_NEURONS = 8
"""Neurons shown of each label; the JSON has all."""
SHOWN_LABELS = 8
"""Up to this number of labels, a neuron's P of every label is shown; with more, those of its own and the next highest."""

FiringSite = Annotated[
    FiringSiteName | None,
    typer.Option("--site", help="Site whose values say whether a neuron fires. [default: the gate where there is one]"),
]
Modality = Annotated[
    ModalityName | None,
    typer.Option(help="Count only tokens of this modality. [default: all but special tokens]"),
]
Share = Annotated[float, typer.Option(help="Number of neurons to select, as a share of all.")]
Quantile = Annotated[
    float,
    typer.Option(
        help="A neuron belongs to the labels for which its probability of firing exceeds this quantile of all."
    ),
]

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
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons of STORE that are selective for each value of a label, by the entropy of their firing probabilities.

    Statistics say how often neurons fire; with --modality, blocks are read, which are divided among --workers.

    Example: `actstore selectivity gpt2.actstore --by language --share 0.01`
    """
    from actstore.engine.selectivity.selectivity import SelectivitySettings

    opened = Store(store).capture(capture)
    result = _measure(opened, SelectivitySettings(by, site, modality, share, activation_quantile), quiet, workers, on)
    if as_json:
        print_json(_describe(opened, result))
    else:
        _print(opened, result)


@group.command()
def evaluate(
    store: StorePath,
    by: By,
    model: ModelOption = None,
    corpus: Annotated[
        str | None,
        typer.Argument(metavar="CORPUS", help="Held-out documents with the same label. [default: the capture's own]"),
    ] = None,
    capture: CaptureName = None,
    site: FiringSite = None,
    modality: Modality = None,
    share: Share = 0.01,
    activation_quantile: Quantile = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Number of tokens to predict per label.")] = 10_000,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 4096,
    random: Annotated[int, typer.Option(help="Number of draws of random neurons, as many in the same layers.")] = 1,
    seed: Seed = 0,
    tokenizer: TokenizerName = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Switch off each label's neurons and measure the change in perplexity on every label's text: label × label.

    Example: `actstore selectivity evaluate gpt2.actstore capture-out.jsonl --by language`
    """
    from actstore.engine.selectivity.mask_matrix import MaskSettings, by_layer, measure_masks
    from actstore.engine.selectivity.selectivity import SelectivitySettings

    settings = MaskSettings(max_tokens, batch_tokens, random, seed)
    opened = Store(store).capture(capture)
    result = _measure(opened, SelectivitySettings(by, site, modality, share, activation_quantile), quiet)
    source = captured_model(opened.store, model)
    with terminal.spinner("reading the text", enabled=not quiet):
        windows = held_out_windows(
            opened, result, corpus, max_tokens, tokenizer or source, trust_remote_code=trust_remote_code
        )
    loaded = load(source, dtype=opened.record.dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    neurons = {label: by_layer(result.firing.locate(flat)) for label, flat in result.neurons.items()}
    with terminal.counting_bar("tokens", enabled=not quiet) as report:
        matrix = measure_masks(loaded, opened, neurons, windows, settings, report)
    if as_json:
        print_json(_describe(opened, result) | _describe_matrix(matrix, corpus, settings.n_random, settings.seed))
    else:
        _print_matrix(matrix, corpus, settings.n_random)


selectivity_lens.register(group)


def _measure(
    capture: Capture, settings: SelectivitySettings, quiet: bool, workers: int | None = None, on: str = "local"
) -> Selectivity:
    from actstore.engine.selectivity.selectivity import find_selectivity
    from actstore.engine.workers.scan import executor_of

    with terminal.spinner("counting activations above zero", enabled=not quiet):
        result = find_selectivity(capture, settings, executor_of(workers, on))
    terminal.warn(result.warnings)
    return result


def _describe(capture: Capture, result: Selectivity) -> dict[str, Any]:
    firing, selection, settings = result.firing, result.selection, result.settings
    names = dict(zip(selection.neurons.tolist(), firing.names(selection.neurons), strict=True))
    every = firing.probabilities
    probabilities = every[selection.neurons]
    return {
        "capture": capture.record.name,
        "by": settings.by,
        "site": settings.site,
        "modality": settings.modality,
        "share": settings.share,
        "activation_quantile": settings.activation_quantile,
        "threshold": selection.threshold,
        "neurons": len(selection.entropies),
        "candidates": selection.n_candidates,
        "selected": len(selection.neurons),
        "labels": {label: [names[n] for n in flat.tolist()] for label, flat in result.neurons.items()},
        "counts": {label: len(flat) for label, flat in result.neurons.items()},
        "tokens": dict(zip(firing.labels, firing.n_tokens.tolist(), strict=True)),
        "by_layer": {label: _layer_counts(result, flat) for label, flat in result.neurons.items()},
        "scores": [
            {
                "neuron": names[flat],
                "entropy": float(selection.entropies[flat]),
                "probabilities": dict(zip(firing.labels, row, strict=True)),
            }
            for flat, row in zip(selection.neurons.tolist(), probabilities.tolist(), strict=True)
        ],
        "neurons_by_label": {
            label: [
                {
                    "neuron": names[n],
                    "entropy": float(selection.entropies[n]),
                    "probability": float(every[n, i]),
                    "probabilities": dict(zip(firing.labels, every[n].tolist(), strict=True)),
                }
                for n in flat.tolist()
            ]
            for i, (label, flat) in enumerate(result.neurons.items())
        },
        "warnings": result.warnings,
    }


def _layer_counts(result: Selectivity, flat: NDArray[Any]) -> dict[int, int]:
    counts = dict.fromkeys(result.firing.layers, 0)
    for layer, _ in result.firing.locate(flat):
        counts[layer] += 1
    return counts


def _print(capture: Capture, result: Selectivity) -> None:
    selection = result.selection
    terminal.out.print(
        f"{len(selection.neurons):,} of {len(selection.entropies):,} neurons are selective by {result.settings.by} in capture "
        f"{capture.record.name!r}; a neuron belongs to labels for which it fires on more than "
        f"{terminal.percent(selection.threshold)} of tokens.",
        style="bold",
        soft_wrap=True,
    )
    layers = list(result.firing.layers)
    columns = ["label", *((name, "right") for name in ("tokens", "neurons", *(f"L{layer}" for layer in layers)))]
    rows = [
        (label, n, len(flat), *_layer_counts(result, flat).values())
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
        "Entropy: of a neuron's P over the labels, in nats; 0 where it fires for one label only. P: the share of a label's "
        "tokens on which it fires.",
        style="dim",
        soft_wrap=True,
    )


def _describe_matrix(matrix: MaskMatrix, corpus: str | None, n_random: int, seed: int) -> dict[str, Any]:
    def table(values: NDArray[Any]) -> dict[str, dict[str, float]]:
        return {row: dict(zip(matrix.labels, cells, strict=True)) for row, cells in _rows(matrix.labels, values)}

    return {
        "corpus": corpus,
        "predicted": dict(zip(matrix.labels, matrix.n_tokens.tolist(), strict=True)),
        "nats": dict(zip(matrix.labels, matrix.clean.tolist(), strict=True)),
        "masked_nats": table(matrix.masked),
        "matrix": table(matrix.change),
        "random": {"draws": n_random, "seed": seed, "matrix": table(matrix.random_change) if n_random else None},
    }


def _rows(labels: Sequence[str], values: NDArray[Any]) -> list[tuple[str, list[float]]]:
    return list(zip(labels, values.tolist(), strict=True))


def _print_matrix(matrix: MaskMatrix, corpus: str | None, n_random: int) -> None:
    terminal.out.print(
        "Change in perplexity with the row's neurons switched off, on the text of the column's label in "
        f"{corpus or 'the capture'}",
        style="bold",
        soft_wrap=True,
    )
    n_neurons = matrix.n_neurons.tolist()
    rows: list[tuple[Any, ...]] = [("perplexity unchanged", None, *(f"{x:.4g}" for x in _exp(matrix.clean.tolist())))]
    rows += [
        (label, n, *map(_percent, cells))
        for (label, cells), n in zip(_rows(matrix.labels, matrix.change), n_neurons, strict=True)
    ]
    if n_random:
        rows += [
            (f"random, as {label}", n, *map(_percent, cells))
            for (label, cells), n in zip(_rows(matrix.labels, matrix.random_change), n_neurons, strict=True)
        ]
    columns = ["neurons off", *((name, "right") for name in ("neurons", *matrix.labels))]
    terminal.out.print(fitted_table(None, columns, rows, n_keys=2))


def _exp(nats: list[float]) -> list[float]:
    return [math.exp(x) if x < 700 else math.inf for x in nats]


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %" if abs(change) < 100 else f"× {1 + change:.3g}"

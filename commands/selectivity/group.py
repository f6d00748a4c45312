"""`actstore selectivity`: neurons that fire for one label's tokens only, and what switching them off does.

Knows nothing about how any of it is computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (
    By,
    CaptureName,
    Device,
    Json,
    ModelName,
    Quiet,
    StorePath,
    TokenizerName,
    TrustRemoteCode,
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
"""Up to so many labels, a neuron's P of every label is shown; beyond, of its own and the next highest."""

FiringSite = Annotated[
    str | None,
    typer.Option("--site", metavar="SITE", help="mlp.gate or mlp.post. [default: the gate where there is one]"),
]
Modality = Annotated[
    str | None,
    typer.Option(
        metavar="MODALITY", help="Count only text, image or generated tokens. [default: all but special ones]"
    ),
]
Share = Annotated[float, typer.Option(help="Neurons to select, as a share of all.")]
Quantile = Annotated[
    float, typer.Option(help="A neuron belongs to labels whose probability exceeds this quantile of all.")
]

group = family(
    """Neurons that fire for one label's tokens and hardly for another's (LAPE, DAPE).

    `actstore selectivity STORE` is short for `actstore selectivity show STORE`; `evaluate` runs the model with them off.

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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons of STORE that are selective for each value of a label, by entropy of how often they fire for each.

    Example: `actstore selectivity gpt2.actstore --by language --share 0.01`
    """
    from actstore.engine.selectivity.selectivity import SelectivitySettings

    held = Store(store).capture(capture)
    found = _find(held, SelectivitySettings(by, site, modality, share, activation_quantile), quiet)
    if as_json:
        print_json(_describe(held, found))
    else:
        _print(held, found)


@group.command()
def evaluate(
    model: ModelName,
    store: StorePath,
    by: By,
    corpus: Annotated[
        str | None,
        typer.Argument(metavar="CORPUS", help="Held-out documents with the same label. [default: the capture's own]"),
    ] = None,
    capture: CaptureName = None,
    site: FiringSite = None,
    modality: Modality = None,
    share: Share = 0.01,
    activation_quantile: Quantile = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Tokens to predict of each label.")] = 10_000,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a forward pass.")] = 4096,
    random: Annotated[int, typer.Option(help="Draws of as many random neurons of the same layers.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the random neurons.")] = 0,
    tokenizer: TokenizerName = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Switch off each label's neurons and measure the change in perplexity on every label's text: label × label.

    Example: `actstore selectivity evaluate gpt2 gpt2.actstore held-out.jsonl --by language`
    """
    from actstore.engine.selectivity.mask_matrix import MaskSettings, by_layer, measure_masks
    from actstore.engine.selectivity.selectivity import SelectivitySettings

    settings = MaskSettings(max_tokens, batch_tokens, random, seed)
    held = Store(store).capture(capture)
    found = _find(held, SelectivitySettings(by, site, modality, share, activation_quantile), quiet)
    with terminal.spinner("reading the text", enabled=not quiet):
        windows = _windows(held, found, corpus, max_tokens, tokenizer or model, trust_remote_code)
    loaded = load(model, dtype=held.record.dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    neurons = {label: by_layer(found.firing.locate(flat)) for label, flat in found.neurons.items()}
    with terminal.counting_bar("tokens", enabled=not quiet) as report:
        matrix = measure_masks(loaded, held, neurons, windows, settings, report)
    if as_json:
        print_json(_describe(held, found) | _describe_matrix(matrix, corpus, settings.n_random, settings.seed))
    else:
        _print_matrix(matrix, corpus, settings.n_random)


selectivity_lens.register(group)


def _find(held: Capture, settings: SelectivitySettings, quiet: bool) -> Selectivity:
    from actstore.engine.selectivity.selectivity import find_selectivity

    with terminal.spinner("counting firings", enabled=not quiet):
        found = find_selectivity(held, settings)
    terminal.warn(found.warnings)
    return found


def _windows(
    held: Capture, found: Selectivity, corpus: str | None, max_tokens: int, tokenizer: str, trust_remote_code: bool
) -> list[Any]:
    from actstore.engine.inputs.corpus import read_corpus
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.engine.selectivity.mask_matrix import corpus_options, windows_of_capture, windows_of_corpus

    by, labels = found.settings.by, found.firing.labels
    if corpus is None:
        return list(windows_of_capture(held, by, labels, max_tokens))
    documents = read_corpus(corpus, corpus_options(held, by))
    with_text = held.record.plan.tokenizer_fingerprint or tokenizer != held.store.model.name
    loaded = TextTokenizer.load(tokenizer, trust_remote_code=trust_remote_code) if with_text else None
    return list(windows_of_corpus(documents, held, by, labels, max_tokens, loaded))


def _describe(held: Capture, found: Selectivity) -> dict[str, Any]:
    firing, chosen, settings = found.firing, found.selection, found.settings
    names = dict(zip(chosen.neurons.tolist(), firing.names(chosen.neurons), strict=True))
    every = firing.probabilities
    probabilities = every[chosen.neurons]
    return {
        "capture": held.record.name,
        "by": settings.by,
        "site": settings.site,
        "modality": settings.modality,
        "share": settings.share,
        "activation_quantile": settings.activation_quantile,
        "threshold": chosen.threshold,
        "neurons": len(chosen.entropies),
        "candidates": chosen.n_candidates,
        "selected": len(chosen.neurons),
        "labels": {label: [names[n] for n in flat.tolist()] for label, flat in found.neurons.items()},
        "counts": {label: len(flat) for label, flat in found.neurons.items()},
        "tokens": dict(zip(firing.labels, firing.n_tokens.tolist(), strict=True)),
        "by_layer": {label: _layer_counts(found, flat) for label, flat in found.neurons.items()},
        "scores": [
            {
                "neuron": names[flat],
                "entropy": float(chosen.entropies[flat]),
                "probabilities": dict(zip(firing.labels, row, strict=True)),
            }
            for flat, row in zip(chosen.neurons.tolist(), probabilities.tolist(), strict=True)
        ],
        "neurons_by_label": {
            label: [
                {
                    "neuron": names[n],
                    "entropy": float(chosen.entropies[n]),
                    "probability": float(every[n, i]),
                    "probabilities": dict(zip(firing.labels, every[n].tolist(), strict=True)),
                }
                for n in flat.tolist()
            ]
            for i, (label, flat) in enumerate(found.neurons.items())
        },
        "warnings": found.warnings,
    }


def _layer_counts(found: Selectivity, flat: NDArray[Any]) -> dict[int, int]:
    counts = dict.fromkeys(found.firing.layers, 0)
    for layer, _ in found.firing.locate(flat):
        counts[layer] += 1
    return counts


def _print(held: Capture, found: Selectivity) -> None:
    chosen = found.selection
    terminal.out.print(
        f"{len(chosen.neurons):,} of {len(chosen.entropies):,} neurons are selective by {found.settings.by} in capture "
        f"{held.record.name!r}; a neuron belongs to labels for which it fires on more than "
        f"{terminal.percent(chosen.threshold)} of tokens.",
        style="bold",
        soft_wrap=True,
    )
    layers = list(found.firing.layers)
    columns = ["label", *((name, "right") for name in ("tokens", "neurons", *(f"L{layer}" for layer in layers)))]
    rows = [
        (label, n, len(flat), *_layer_counts(found, flat).values())
        for (label, flat), n in zip(found.neurons.items(), found.firing.n_tokens.tolist(), strict=True)
    ]
    terminal.out.print(fitted_table(None, columns, rows, n_keys=3))
    terminal.out.print()
    _print_most_selective(found)


def _print_most_selective(found: Selectivity) -> None:
    """The first neurons of each label with their entropy and how often they fire: for every label, or for the two highest."""
    labels, probabilities = found.firing.labels, found.firing.probabilities
    columns: list[Any] = ["label", "neuron", ("entropy", "right")]
    few = len(labels) <= SHOWN_LABELS
    columns += [(f"P({label})", "right") for label in labels] if few else [("P", "right"), ("next highest", "right")]
    rows: list[list[Any]] = []
    for i, (label, flat) in enumerate(found.neurons.items()):
        for name, neuron in zip(found.firing.names(flat[:SHOWN_NEURONS]), flat[:SHOWN_NEURONS].tolist(), strict=True):
            row = probabilities[neuron].tolist()
            other = max((j for j in range(len(labels)) if j != i), key=row.__getitem__)
            shown = [f"{p:.4f}" for p in row] if few else [f"{row[i]:.4f}", f"{labels[other]} {row[other]:.4f}"]
            rows.append([label, name, f"{found.selection.entropies[neuron]:.4f}", *shown])
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
        f"Change in perplexity with a row's neurons off, on the text of the column's label in {corpus or 'the capture'}",
        style="bold",
        soft_wrap=True,
    )
    n_neurons = matrix.n_neurons.tolist()
    rows: list[tuple[Any, ...]] = [("perplexity as it is", None, *(f"{x:.4g}" for x in _exp(matrix.clean.tolist())))]
    rows += [
        (label, n, *map(_percent, cells))
        for (label, cells), n in zip(_rows(matrix.labels, matrix.change), n_neurons, strict=True)
    ]
    if n_random:
        rows += [
            (f"random, like {label}", n, *map(_percent, cells))
            for (label, cells), n in zip(_rows(matrix.labels, matrix.random_change), n_neurons, strict=True)
        ]
    columns = ["neurons off", *((name, "right") for name in ("neurons", *matrix.labels))]
    terminal.out.print(fitted_table(None, columns, rows, n_keys=2))


def _exp(nats: list[float]) -> list[float]:
    return [math.exp(x) if x < 700 else math.inf for x in nats]


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %" if abs(change) < 100 else f"× {1 + change:.3g}"

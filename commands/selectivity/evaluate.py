"""`selectivity evaluate`: the effect on perplexity of switching a label's neurons off, or of keeping them only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.api.selectivity import held_out_windows
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
    load,
)
from actstore.commands.selectivity.describe import describe
from actstore.commands.selectivity.selecting import (
    FiringSite,
    Method,
    Modality,
    Quantile,
    Share,
    Tuned,
    measure,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.selectivity.mask_matrix import MaskMatrix


def register(group: typer.Typer) -> None:
    """Add the subcommand to `selectivity`."""
    group.command()(evaluate)


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
    method: Method = "lape",
    tuned: Tuned = None,
    keep_only: Annotated[
        bool, typer.Option("--keep-only", help="Switch off all neurons but the label's, instead of these.")
    ] = False,
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

    Beside each row stand as many random neurons of the same layers.

    Example: `actstore selectivity evaluate gpt2.actstore capture-out.jsonl --by language`
    """
    from actstore.engine.selectivity.mask_matrix import MaskSettings, by_layer, measure_masks
    from actstore.engine.selectivity.selectivity import SelectivitySettings

    settings = MaskSettings(max_tokens, batch_tokens, random, seed, keep_only)
    opened = Store(store).capture(capture)
    selection = SelectivitySettings(by, site, modality, share, activation_quantile, method, seed)
    result = measure(opened, selection, tuned, quiet)
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
        print_json(describe(opened, result) | _describe_matrix(matrix, corpus, settings.n_random, settings.seed))
    else:
        _print_matrix(matrix, corpus, settings.n_random)


def _describe_matrix(matrix: MaskMatrix, corpus: str | None, n_random: int, seed: int) -> dict[str, Any]:
    def table(values: NDArray[Any]) -> dict[str, dict[str, float]]:
        return {row: dict(zip(matrix.labels, cells, strict=True)) for row, cells in _rows(matrix.labels, values)}

    return {
        "corpus": corpus,
        "keep_only": matrix.keep_only,
        "predicted": dict(zip(matrix.labels, matrix.n_tokens.tolist(), strict=True)),
        "nats": dict(zip(matrix.labels, matrix.clean.tolist(), strict=True)),
        "masked_nats": table(matrix.masked),
        "matrix": table(matrix.change),
        "random": {"draws": n_random, "seed": seed, "matrix": table(matrix.random_change) if n_random else None},
    }


def _rows(labels: Sequence[str], values: NDArray[Any]) -> list[tuple[str, list[float]]]:
    return list(zip(labels, values.tolist(), strict=True))


def _print_matrix(matrix: MaskMatrix, corpus: str | None, n_random: int) -> None:
    off = "all neurons but the row's" if matrix.keep_only else "the row's neurons"
    terminal.out.print(
        f"Change in perplexity with {off} switched off, on the text of the column's label in {corpus or 'the capture'}",
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
    columns = [
        "neurons on" if matrix.keep_only else "neurons off",
        *((name, "right") for name in ("neurons", *matrix.labels)),
    ]
    terminal.out.print(fitted_table(None, columns, rows, n_keys=2))


def _exp(nats: list[float]) -> list[float]:
    return [math.exp(x) if x < 700 else math.inf for x in nats]


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %" if abs(change) < 100 else f"× {1 + change:.3g}"

"""`naica evaluate`: the effect of query-relevant neurons on their own queries, beside the baselines, in the paper's tables."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite, isnan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands import completion
from actstore.commands.choices import ProtocolName, RemovalName, SelectionMethod
from actstore.commands.options import (
    Attribution,
    Device,
    Dtype,
    Json,
    ModelOption,
    QuestionsName,
    Quiet,
    StorePath,
    TrustRemoteCode,
    captured_model,
    given,
    load,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.engine.naica.methods import METHODS
from actstore.engine.naica.protocols import PROTOCOLS

if TYPE_CHECKING:
    from actstore.engine.naica.evaluation import NaicaEvaluation


NOTE = (
    "Means over seeds ± standard deviation. PCR: mean change of P (percent of P) on related over that on unrelated queries, "
    "both of which ΔP gives; log-odds PCR: the same of log(P / (1 - P)), which stays comparable where P is near 0 or near 1. "
    "Flips: related prompts whose answer changes between right and wrong."
)
COLUMNS = (
    "neurons", "PCR boost", "PCR suppress", "ΔP % boost", "ΔP % suppress", "log-odds PCR boost", "log-odds PCR suppress",
    "flips % boost", "flips % suppress",
)  # fmt: skip
ACCURACIES = ("guess", "prompt", "its neurons", "random", "top neurons", "random, as many as top", "neurons")


# How neurons are selected: each is a field of `NaicaSettings`.
ClusterShare = Annotated[float, typer.Option("--t", help="A cluster holds the scores above this share of its largest.")]
CommonShare = Annotated[
    float,
    typer.Option("--u", help="Neurons in more than this share of the clusters are common, and removed; 1 keeps all."),
]
MaxNeurons = Annotated[int, typer.Option("--v", help="Maximum number of neurons per query.")]
Removal = Annotated[
    RemovalName,
    typer.Option(help="Remove common neurons after the v largest were taken, as published, or before, to take others."),
]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `naica`."""
    group.command()(evaluate)


def evaluate(
    ctx: typer.Context,
    store: StorePath,
    model: ModelOption = None,
    capture: QuestionsName = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="LABEL",
            help="The label whose other values are unrelated queries.",
            autocompletion=completion.labels,
        ),
    ] = "relation_name",
    method: Annotated[
        list[SelectionMethod] | None,
        typer.Option(help="How neurons are selected; all but naica are baselines; repeat for more. [default: all]"),
    ] = None,
    protocol: Annotated[
        list[ProtocolName] | None,
        typer.Option(
            help="What neurons are tested on: a held-out prompt of each query; a label's held-out queries; the prompts they "
            "were selected with, as in the paper; repeat for more. [default: all]"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of draws of unrelated and of held-out queries.")] = 5,
    max_queries: Annotated[
        int | None, typer.Option(help="Maximum number of queries to test on; neurons are selected with all.")
    ] = None,
    pool: Annotated[int, typer.Option(min=1, help="Number of neurons per label.")] = 20,
    attribution: Attribution = "ig",
    t: ClusterShare = 0.2,
    u: CommonShare = 0.3,
    v: MaxNeurons = 20,
    removal: Removal = "after",
    max_rows: Annotated[
        int, typer.Option(min=1, help="Maximum number of rows per pass, which bounds the memory.")
    ] = 160,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Suppress and boost the neurons of each query in the model, and measure its answer and those to unrelated queries.

    STORE holds the attributions of the model, as `actstore attribute` writes them. PCR is the mean change of the right letter's
    probability on related queries over that on unrelated ones.

    Example: `actstore naica evaluate facts.actstore --by relation_name --seeds 3`
    """
    from actstore.engine.naica.evaluation import EvaluationSettings, check_labels, evaluate_naica
    from actstore.engine.naica.naica import NaicaSettings
    from actstore.store.capture.questions.attributions import open_attributions
    from actstore.store.reader import Store

    defaults = EvaluationSettings()
    settings = EvaluationSettings(
        **given(ctx, EvaluationSettings),
        label=by,
        methods=tuple(dict.fromkeys(method or defaults.methods)),
        protocols=tuple(dict.fromkeys(protocol or defaults.protocols)),
        naica=NaicaSettings(**given(ctx, NaicaSettings)),
    )
    attributions = open_attributions(Store(store), capture)
    check_labels(attributions, settings)  # before the model is loaded
    source = captured_model(attributions.store, model)
    loaded = load(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    with terminal.counting_bar("prompts", enabled=not quiet) as advance:
        evaluation = evaluate_naica(loaded, attributions, settings, advance)
    terminal.warn(evaluation.warnings)
    if as_json:
        about = {"model": loaded.spec.name, "capture": attributions.capture.record.name, "settings": asdict(settings)}
        print_json(about | _describe(evaluation))
        return
    for title, columns, rows in tables(evaluation):
        terminal.out.print(fitted_table(title, columns, rows))
        terminal.out.print()
    terminal.out.print(NOTE, style="dim", soft_wrap=True)


def _describe(evaluation: NaicaEvaluation) -> dict[str, Any]:
    return {
        "summary": evaluation.summary(),
        "measurements": [one.as_row() for one in evaluation.measurements],
        "prediction": evaluation.accuracy_summary(),
        "accuracies": [asdict(one) for one in evaluation.accuracies],
        "warnings": list(evaluation.warnings),
        "fallback": evaluation.fallback,
    }


def tables(evaluation: NaicaEvaluation) -> list[tuple[str, list[Any], list[tuple[str, ...]]]]:
    """Title, columns and rows of every table: for each protocol PCR and editing, then prediction by neurons."""
    shown: list[tuple[str, list[Any], list[tuple[str, ...]]]] = []
    summary = evaluation.summary()
    for protocol in dict.fromkeys(str(row["protocol"]) for row in summary):
        of_protocol = {(row["method"], row["operation"]): row for row in summary if row["protocol"] == protocol}
        methods = dict.fromkeys(str(method) for method, _ in of_protocol)
        rows = []
        for method in methods:
            both = [of_protocol[method, operation] for operation in ("boost", "suppress")]
            rows.append(
                (
                    METHODS[method].label,
                    f"{both[0]['neurons']:.1f}",
                    *(_spread(row, "pcr") for row in both),
                    *(_changes(row, "percent") for row in both),
                    *(_spread(row, "log_odds_ratio") for row in both),
                    *(_percent(row, "related_flips") for row in both),
                )
            )
        columns = ["method", *((name, "right") for name in COLUMNS)]
        shown.append((f"{PROTOCOLS[protocol].label[0].upper()}{PROTOCOLS[protocol].label[1:]}", columns, rows))
    if accuracy := evaluation.accuracy_summary():
        names = ("guess", "prompt", "neuron", "random", "pool_neuron", "pool_random")
        columns = ["label", *((name, "right") for name in ACCURACIES)]
        rows = [
            (str(row["label"]), *(_spread(row, name, "{:.3f}") for name in names), f"{row['neurons']:.0f}")
            for row in accuracy
        ]
        shown.append(("Accuracy of predictions on held-out queries", columns, rows))
    return shown


def _number(value: float) -> str:
    if isnan(value):
        return "–"
    if not isfinite(value):
        return "∞"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _spread(row: dict[str, Any], name: str, form: str | None = None) -> str:
    shown = (lambda value: _number(value)) if form is None else form.format
    spread = row[f"{name}_sd"]
    return shown(row[name]) + (f" ± {shown(spread)}" if isfinite(spread) and row["seeds"] > 1 else "")


def _changes(row: dict[str, Any], name: str) -> str:
    return f"{row[f'related_{name}']:+.2f} / {row[f'unrelated_{name}']:+.3f}"


def _percent(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:.2f}" + (f" ± {100 * row[f'{name}_sd']:.2f}" if row["seeds"] > 1 else "")

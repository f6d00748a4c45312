"""`naica evaluate`: what query-relevant neurons do to the queries they are of, beside the baselines, as the paper's tables are.

`tables` is the same for whoever prints them otherwise.
"""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite, isnan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (
    Attribution,
    Device,
    Dtype,
    Json,
    ModelName,
    QuestionsName,
    Quiet,
    StorePath,
    TrustRemoteCode,
    given,
    load,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.naica.evaluation import NaicaEvaluation

NAMES = {
    "random": "random neurons",
    "activation": "activation",
    "kn": "knowledge neurons*",
    "without-ica": "QRNCA without ICA",
    "with-common": "QRNCA with common neurons",
    "naica": "QRNCA",
}
TITLES = {
    "query": "neurons tested on the prompts they were found with (the paper's protocol)",
    "prompt": "neurons tested on a prompt of their query that was left out",
    "label": "a label's neurons tested on the half of its queries that was left out",
}

NOTE = (
    "Means over seeds ± standard deviation. PCR: mean change of P (percent of P) on related over that on unrelated queries, "
    "both of which ΔP gives; log-odds PCR: the same of log(P / (1 - P)), which neither explodes where P is near 0 nor stalls "
    "where it is near 1. Flips: related prompts whose answer changes between right and wrong."
)
COLUMNS = (
    "neurons", "PCR boost", "PCR suppress", "ΔP % boost", "ΔP % suppress", "log-odds PCR boost", "log-odds PCR suppress",
    "flips % boost", "flips % suppress",
)  # fmt: skip
ACCURACIES = ("guess", "prompt", "its neurons", "random", "top neurons", "random, as many as top", "neurons")


# How neurons are chosen: each is a field of `NaicaSettings`.
ClusterShare = Annotated[float, typer.Option("--t", help="A cluster takes scores above this share of its largest.")]
CommonShare = Annotated[
    float, typer.Option("--u", help="Neurons in more than this share of the clusters are common; 1 keeps all.")
]
MostNeurons = Annotated[int, typer.Option("--v", help="Neurons a query, at most.")]


def register(group: typer.Typer) -> None:
    """Add the subcommand to `naica`."""
    group.command()(evaluate)


def evaluate(
    ctx: typer.Context,
    model: ModelName,
    store: StorePath,
    capture: QuestionsName = None,
    by: Annotated[
        str, typer.Option(metavar="LABEL", help="The label whose other values are unrelated queries.")
    ] = "relation_name",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            metavar="METHOD",
            help="naica or a baseline; repeat, or separate by commas. [default: all]",
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="query (the paper's), prompt, label (both held out); repeat for more. [default: all]"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often to draw unrelated queries and what is left out.")] = 5,
    max_queries: Annotated[
        int | None, typer.Option(help="Test on at most so many queries; neurons are found with all.")
    ] = None,
    pool: Annotated[int, typer.Option(min=1, help="Neurons of a label.")] = 20,
    attribution: Attribution = "ig",
    t: ClusterShare = 0.2,
    u: CommonShare = 0.3,
    v: MostNeurons = 20,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a pass, which bounds the memory.")] = 160,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Suppress and boost the neurons of each query in MODEL, and see what becomes of its answer and of unrelated ones.

    STORE holds the attributions of MODEL, as `actstore attribute` writes them. PCR is the mean change of the right letter's
    probability on related queries over that on unrelated ones.

    Example: `actstore naica evaluate gpt2 facts.actstore --by relation_name --seeds 3`
    """
    from actstore.engine.naica.evaluation import EvaluationSettings, check_labels, evaluate_naica
    from actstore.engine.naica.naica import NaicaSettings
    from actstore.store.capture.attributions import open_attributions
    from actstore.store.reader import Store

    defaults = EvaluationSettings()
    settings = EvaluationSettings(
        **given(ctx, EvaluationSettings),
        label=by,
        methods=_split(method) or defaults.methods,
        protocols=_split(protocol) or defaults.protocols,
        naica=NaicaSettings(**given(ctx, NaicaSettings)),
    )
    attributions = open_attributions(Store(store), capture)
    check_labels(attributions, settings)  # before the model is loaded
    loaded = load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    with terminal.counting_bar("prompts", enabled=not quiet) as advance:
        found = evaluate_naica(loaded, attributions, settings, advance)
    terminal.warn(found.warnings)
    if as_json:
        about = {"model": loaded.spec.name, "capture": attributions.capture.record.name, "settings": asdict(settings)}
        print_json(about | _describe(found))
        return
    for title, columns, rows in tables(found):
        terminal.out.print(fitted_table(title, columns, rows))
        terminal.out.print()
    terminal.out.print(NOTE, style="dim", soft_wrap=True)


def _describe(found: NaicaEvaluation) -> dict[str, Any]:
    return {
        "summary": found.summary(),
        "measurements": [one.as_row() for one in found.measurements],
        "prediction": found.accuracy_summary(),
        "accuracies": [asdict(one) for one in found.accuracies],
        "warnings": list(found.warnings),
        "fallback": found.fallback,
    }


def tables(found: NaicaEvaluation) -> list[tuple[str, list[Any], list[tuple[str, ...]]]]:
    """Title, columns and rows of every table: for each protocol PCR and editing, then prediction by neurons."""
    made: list[tuple[str, list[Any], list[tuple[str, ...]]]] = []
    summary = found.summary()
    for protocol in dict.fromkeys(str(row["protocol"]) for row in summary):
        mine = {(row["method"], row["operation"]): row for row in summary if row["protocol"] == protocol}
        methods = dict.fromkeys(str(method) for method, _ in mine)
        rows = []
        for method in methods:
            both = [mine[method, operation] for operation in ("boost", "suppress")]
            rows.append(
                (
                    NAMES[method],
                    f"{both[0]['neurons']:.1f}",
                    *(_spread(row, "pcr") for row in both),
                    *(_changes(row, "percent") for row in both),
                    *(_spread(row, "log_odds_ratio") for row in both),
                    *(_percent(row, "related_flips") for row in both),
                )
            )
        columns = ["method", *((name, "right") for name in COLUMNS)]
        made.append((f"{TITLES[protocol][0].upper()}{TITLES[protocol][1:]}", columns, rows))
    if accuracy := found.accuracy_summary():
        names = ("guess", "prompt", "neuron", "random", "pool_neuron", "pool_random")
        columns = ["label", *((name, "right") for name in ACCURACIES)]
        rows = [
            (str(row["label"]), *(_spread(row, name, "{:.3f}") for name in names), f"{row['neurons']:.0f}")
            for row in accuracy
        ]
        made.append(("Accuracy of predictions on held-out queries", columns, rows))
    return made


def _split(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for value in values or () for part in value.split(",") if part.strip()))


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

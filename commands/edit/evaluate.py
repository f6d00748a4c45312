"""`edit evaluate`: whether a model says what it should and all else as before, and whether other edits do as well."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.edit.rewrite import EditName, load_reader
from actstore.commands.options import Device, Json, ModelPlace, Quiet, StorePath, TrustRemoteCode, given
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table, transposed
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from actstore.engine.edit.evaluate import Evaluation

NAMES = {"edit": "the edit", "fine-tune": "fine-tuning, same rows", "random": "random neurons, same form"}
KINDS = {
    "reliability": ("word", "exact"),
    "text-generality": ("word", "exact"),
    "image-generality": ("word", "exact"),
    "text-locality": ("top1", "exact"),
    "image-locality": ("top10", "top1", "exact"),
}
"""What is shown of each kind of case; the first is the published measure."""
MEASURES = {"word": "", "exact": "whole answers", "top1": "", "top10": "ordered top 10"}
PREDICTED = "Change of the new word's logit less the old one's, predicted from the store and measured"
NOTE = (
    "Percent, means over cases (± standard deviation over draws). Reliability and generality: of the exchanged word's tokens, "
    "those that are now the most probable, the text before them given; locality: of most probable tokens, those that are what "
    "they were. Whole answers: every token so."
)


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(evaluate)


def evaluate(
    ctx: typer.Context,
    store: StorePath,
    name: EditName,
    capture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=KIND]",
            help="Documents with the word try the edit, others whether all else stays; repeat. KIND, such as text-generality, "
            "is what the former try. [default: without --cases, the edit's own capture, or the store's]",
        ),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines: prompt, kind, target or answer, image.")
    ] = None,
    perplexity: Annotated[
        str | None, typer.Option(metavar="NAME", help="A capture, to compare the likelihood of its tokens.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="fine-tune, random or none; repeat for more. [default: both]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each baseline.")] = 3,
    generate: Annotated[bool, typer.Option("--generate", help="Greedy answers too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a generated answer, at most.")] = 50,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Of each capture, the first so many windows.")] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A row per method, draw and case: .parquet or .jsonl.")
    ] = None,
    model: ModelPlace = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Try an edit on its model: reliability, generality, locality, beside fine-tuning of the same rows and random neurons.

    The model itself is left as it is. For a least-norm edit, the predicted change of logits is held against the measured one.

    Example: `actstore edit evaluate captions.actstore red-green-least-norm --capture held-out --generate`
    """
    from actstore.engine.edit.baselines import BASELINES
    from actstore.engine.edit.cases import read_cases
    from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit
    from actstore.store.edits import read_edit

    if table is not None and table.suffix not in (".parquet", ".jsonl"):
        raise InvalidInputError(f"A table is written as .parquet or .jsonl, found {table.name}. Mend --table.")
    opened = Store(store)
    edit = read_edit(opened.folder, name)
    own = edit.record.settings.get("capture")
    named = capture or ([] if cases is not None else [own or opened.capture().record.name])
    options = EvaluationOptions(
        **given(ctx, EvaluationOptions)
        | {
            "captures": tuple(_named(text) for text in named),
            "cases": tuple(read_cases(cases)) if cases is not None else (),
            "baselines": tuple(BASELINES)
            if baseline is None
            else tuple(b for b in dict.fromkeys(baseline) if b != "none"),
        }
    )
    for tried, _ in options.captures:
        opened.capture(tried)  # says now that there is none of the name
    held = opened.capture(own or (options.captures[0][0] if options.captures else None))
    reader = load_reader(held, model, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    with terminal.counting_bar("passes", enabled=not quiet) as advance:
        found = evaluate_edit(reader, opened, edit, options, advance)
    if table is not None:
        _write(table, found.rows)
    if as_json:
        print_json(_described(name, found))
        return
    for title, columns, rows in tables(found):
        # A row per measure: there are many of them, and few methods.
        shown = (columns, rows) if title else transposed("measure (cases)", columns, rows)
        terminal.out.print(fitted_table(title, *shown))
        terminal.out.print()
    terminal.out.print(NOTE, style="dim", soft_wrap=True)


def _named(text: str) -> tuple[str, str | None]:
    name, _, kind = text.partition("=")
    return name, kind or None


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as partial:
        if path.suffix == ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            partial.write_text("".join(lines), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(rows), partial)


def _described(name: str, found: Evaluation) -> dict[str, Any]:
    baselines = {method: draws for method, draws in found.methods.items() if method != "edit"}
    return {"edit": name, **found.methods["edit"][0], "baselines": baselines, "predicted": found.predicted}


def tables(found: Evaluation) -> list[tuple[str | None, list[Any], list[tuple[str, ...]]]]:
    """Title, columns and rows: the scores of every method, and what was predicted of logits beside what happened."""
    made: list[tuple[str | None, list[Any], list[tuple[str, ...]]]] = [(None, *_scores(found))]
    if found.predicted is not None:
        made.append((PREDICTED, *_predictions(found.predicted)))
    return made


def _scores(found: Evaluation) -> tuple[list[Any], list[tuple[str, ...]]]:
    """Columns and rows: a row for every method, a column for every measure of every kind of case that was tried."""
    first = found.methods["edit"][0]
    kinds = {kind: measures for kind, measures in KINDS.items() if kind in first["by_kind"]}
    columns: list[Any] = ["method"]
    measured: list[tuple[str, str]] = []
    for kind, measures in kinds.items():
        number = f" ({first['by_kind'][kind]['cases']:,})"
        headings = {measure: f"{kind} {MEASURES[measure]}".strip() + number for measure in measures}
        if "generated" in first["by_kind"][kind]:
            headings["generated"] = f"{kind} generated"
        columns += [(heading, "right") for heading in headings.values()]
        measured += [(kind, measure) for measure in headings]
    columns.append(("P of the word", "right"))
    if "perplexity" in first:
        columns.append(("perplexity", "right"))
    rows = []
    for method, draws in found.methods.items():
        cells = [_percent([draw["by_kind"][kind][measure] for draw in draws]) for kind, measure in measured]
        cells.append(_probability(draws))
        if "perplexity" in draws[0]:
            cells.append(_percent([draw["perplexity"]["change"] for draw in draws], "+") + " %")
        rows.append((NAMES.get(method, method), *cells))
    return columns, rows


def _predictions(predicted: dict[str, Any]) -> tuple[list[Any], list[tuple[str, ...]]]:
    """Columns and rows: where the old word was predicted, and elsewhere."""
    titles = {"targets": "where the old word was predicted", "controls": "elsewhere"}
    names = ("number", "predicted", "measured", "mean difference", "correlation")
    rows = [
        (
            title,
            f"{row['positions']:,}",
            *(f"{row[c]:.3f}" for c in ("predicted", "measured", "mean_difference")),
            f"{row['correlation']:.4f}",
        )
        for title, row in ((title, predicted[kind]) for kind, title in titles.items())
    ]
    return ["positions", *((name, "right") for name in names)], rows


def _percent(values: list[float], sign: str = "") -> str:
    import numpy as np

    shown = f"{100 * float(np.mean(values)):{sign}.1f}"
    return shown + (f" ± {100 * float(np.std(values, ddof=1)):.1f}" if len(values) > 1 else "")


def _probability(draws: list[dict[str, Any]]) -> str:
    """The word's probability before and after, over all cases that want it."""
    pairs = []
    for draw in draws:
        wanted = [row for kind, row in draw["by_kind"].items() if not kind.endswith("locality")]
        n = sum(row["cases"] for row in wanted)
        if n:
            pairs.append([sum(row[side] * row["cases"] for row in wanted) / n for side in ("p_before", "p_after")])
    if not pairs:
        return "–"
    before, after = (sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
    return f"{before:.3f} → {after:.3f}"

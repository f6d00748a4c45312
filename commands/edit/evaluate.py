"""`edit evaluate`: the reliability, generality and locality of an edit, beside those of baseline edits."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.choices import NO_BASELINE, BaselineName
from actstore.commands.edit.erase import describe_erasure, print_erasure
from actstore.commands.edit.rewrite import CaseRows, Cases, EditName, Images, load_reader
from actstore.commands.options import Device, Json, MaxNewTokens, ModelOption, Quiet, StorePath, TrustRemoteCode, given
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table, transposed
from actstore.engine.edit.baselines import BASELINES
from actstore.engine.edit.case_kinds import CASE_KINDS
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_file
from actstore.store.reader import Store
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from actstore.engine.edit.evaluate import Evaluation

NAMES = {"edit": "the edit", "fine-tune": "fine-tuning, same rows", "random": "random neurons, same form"}
MEASURES = {
    "word": "",
    "exact": "whole answers",
    "top1": "",
    "top10": "ordered top 10",
    "generated": "generated",
    "preferred": "more probable",
    "entropy": "n-gram entropy",
}
"""Measure → what it is called beside its kind; the first of a kind is the published one."""
PREDICTED = "Change of the new word's logit less the old one's, predicted from the store and measured"
NOTE = (
    "Percent, means over cases (± standard deviation over draws). Reliability, generality and portability: of the target's "
    "tokens, those that are now the most probable, given the text before them; locality: of the most probable tokens, those "
    "that are unchanged. Whole answers: answers of which every token is. More probable: answers that are, than the other that "
    "a case names, by the mean log probability of their tokens."
)
PARTS = {
    "text": "Nothing says where answers begin in these texts: positions inside questions count too. --answers-after says it."
}
IN_QUESTIONS = "inside questions: "


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
            help="Capture to test on: documents with the word test the edit, the others test locality; repeat for more. KIND, "
            "such as text-generality, is the kind of the former. [default: without --cases, the edit's own prompts or capture]",
        ),
    ] = None,
    cases: Cases = None,
    row: CaseRows = None,
    images: Images = None,
    answers_after: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What answers follow in the texts of a capture: positions before it are reported apart.",
        ),
    ] = None,
    perplexity: Annotated[
        str | None, typer.Option(metavar="NAME", help="A capture on whose tokens perplexity is compared.")
    ] = None,
    baseline: Annotated[
        list[BaselineName] | None, typer.Option(help="Edit to compare with; repeat for more. [default: all]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of draws of each baseline.")] = 3,
    generate: Annotated[bool, typer.Option("--generate", help="Generate greedy answers too.")] = False,
    max_new_tokens: MaxNewTokens = 50,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Maximum number of windows per capture.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write one row per method, draw and case into this file, .parquet or .jsonl."
        ),
    ] = None,
    model: ModelOption = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test an edit on its model: reliability, generality, locality, beside fine-tuning of the same rows and random neurons.

    Of prompts, portability and fluency too, where their file has tests of them. The model itself is not changed. For a
    least-norm edit of words, the predicted change of logits is compared with the measured one. An edit that erases a relation
    is tested on its questions, beside random neurons.

    Example: `actstore edit evaluate captions.actstore red-green-least-norm --capture held-out --generate`
    """
    from actstore.engine.edit.erasure import evaluate_erasure
    from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit, own_tests
    from actstore.engine.edit.requests.files import read_cases
    from actstore.store.capture.questions.attributions import open_attributions
    from actstore.store.edits import read_edit

    if output is not None and output_file(output).suffix not in (".parquet", ".jsonl"):
        raise InvalidInputError(f"A table is written as .parquet or .jsonl, found {output.name}. Check --output.")
    opened = Store(store)
    edit = read_edit(opened.folder, name)
    if edit.record.form == "erase" and not capture and cases is None:
        if perplexity is not None or generate or max_windows is not None or answers_after is not None:
            raise InvalidInputError(
                "An edit that erases is evaluated on all of its questions. Pass --capture or --cases for other measures."
            )
        draws = 0 if baseline is not None and "random" not in baseline else seeds
        attributions = open_attributions(opened, edit.record.settings["questions"])
        reader = load_reader(
            attributions.capture, model, device=device, trust_remote_code=trust_remote_code, quiet=quiet
        )
        with terminal.counting_bar("passes", enabled=not quiet) as advance:
            erasure = evaluate_erasure(reader, opened, edit, seeds=draws, on_step=advance)
        if output is not None:
            _write(output, erasure.rows)
        if as_json:
            print_json(describe_erasure(name, erasure))
        else:
            print_erasure(erasure)
        return
    captures = tuple(_split_kind(text) for text in capture or ())
    tested = tuple(read_cases(cases, row or (), images)) if cases is not None else ()
    if not captures and cases is None:
        captures, tested = own_tests(edit, opened)
    options = EvaluationOptions(
        **given(ctx, EvaluationOptions)
        | {
            "captures": captures,
            "cases": tested,
            "baselines": tuple(BASELINES)
            if not baseline
            else tuple(b for b in dict.fromkeys(baseline) if b != NO_BASELINE),
        }
    )
    for name_of_capture, _ in options.captures:
        opened.capture(name_of_capture)  # fails before the work, where there is no such capture
    own_capture = opened.capture(
        edit.record.settings.get("capture") or (options.captures[0][0] if options.captures else None)
    )
    reader = load_reader(own_capture, model, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    with terminal.counting_bar("passes", enabled=not quiet) as advance:
        evaluation = evaluate_edit(reader, opened, edit, options, advance)
    if output is not None:
        _write(output, evaluation.rows)
    if as_json:
        print_json(_describe(name, evaluation))
        return
    for title, columns, rows in tables(evaluation):
        # One row per measure: there are many of them, and few methods.
        shown = (columns, rows) if title else transposed("measure (cases)", columns, rows)
        terminal.out.print(fitted_table(title, *shown))
        terminal.out.print()
    terminal.out.print(NOTE, style="dim", soft_wrap=True)
    for part in sorted({entry["part"] for entry in evaluation.rows} & PARTS.keys()):
        terminal.out.print(PARTS[part], style="dim", soft_wrap=True)


def _split_kind(text: str) -> tuple[str, str | None]:
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


def _describe(name: str, evaluation: Evaluation) -> dict[str, Any]:
    baselines = {method: draws for method, draws in evaluation.methods.items() if method != "edit"}
    return {"edit": name, **evaluation.methods["edit"][0], "baselines": baselines, "predicted": evaluation.predicted}


def tables(evaluation: Evaluation) -> list[tuple[str | None, list[Any], list[tuple[str, ...]]]]:
    """Title, columns and rows: the scores of every method; the predicted and the measured change of logits."""
    shown: list[tuple[str | None, list[Any], list[tuple[str, ...]]]] = [(None, *_scores(evaluation))]
    if evaluation.predicted is not None:
        shown.append((PREDICTED, *_predictions(evaluation.predicted)))
    return shown


def _scores(evaluation: Evaluation) -> tuple[list[Any], list[tuple[str, ...]]]:
    """Columns and rows: one row per method, one column per measure of each kind of case."""
    first = evaluation.methods["edit"][0]
    columns: list[Any] = ["method"]
    measured: list[tuple[str, str, str]] = []
    for group, before in (("by_kind", ""), ("questions", IN_QUESTIONS)):
        for kind, summary in first[group].items():
            measures = [*CASE_KINDS[kind].measures, *(m for m in ("preferred", "generated") if m in summary)]
            headings = {measure: f"{before}{kind} {MEASURES[measure]}".strip() for measure in measures}
            columns += [(f"{heading} ({summary['cases']:,})", "right") for heading in headings.values()]
            measured += [(group, kind, measure) for measure in headings]
    columns.append(("P of the word", "right"))
    if "perplexity" in first:
        columns.append(("perplexity", "right"))
    rows = []
    for method, draws in evaluation.methods.items():
        cells = [_cell(draws, *where) for where in measured]
        cells.append(_probability(draws))
        if "perplexity" in draws[0]:
            cells.append(_percent([draw["perplexity"]["change"] for draw in draws], "+") + " %")
        rows.append((NAMES.get(method, method), *cells))
    return columns, rows


def _cell(draws: list[dict[str, Any]], group: str, kind: str, measure: str) -> str:
    """One measure over all draws: percent, or bits before and after."""
    values = [draw[group][kind][measure] for draw in draws]
    if measure != "entropy":
        return _percent(values)
    before = draws[0][group][kind]["entropy_before"]
    return f"{before:.2f} → {sum(values) / len(values):.2f}"


def _predictions(predicted: dict[str, Any]) -> tuple[list[Any], list[tuple[str, ...]]]:
    """Columns and rows: positions at which the old word was predicted, and others."""
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
    """The word's probability before and after, over all cases whose target it is."""
    pairs = []
    for draw in draws:
        targeted = [row for kind, row in draw["by_kind"].items() if "p_after" in row and not kind.endswith("locality")]
        n = sum(row["cases"] for row in targeted)
        if n:
            pairs.append([sum(row[side] * row["cases"] for row in targeted) / n for side in ("p_before", "p_after")])
    if not pairs:
        return "–"
    before, after = (sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
    return f"{before:.3f} → {after:.3f}"

"""`edit evaluate`: whether a model says what it should and all else as before, and whether other edits do as well."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore import terminal
from actstore.commands.edit_rewrite import ModelOption, load_reader
from actstore.commands.options import Device, Json, Quiet, StorePath, TrustRemoteCode  # noqa: TC001  (Typer reads them)
from actstore.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

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
NOTE = (
    "Percent, means over cases (± standard deviation over draws). Reliability and generality: of the exchanged word's tokens, "
    "those that are now the most probable, the text before them given; locality: of most probable tokens, those that are what "
    "they were. Whole answers: every token so."
)


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(evaluate)


def evaluate(
    store: StorePath,
    name: Annotated[str, typer.Argument(metavar="EDIT", help="Name of an edit in STORE.")],
    capture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=KIND]",
            help="Documents with the word try the edit, others whether all else stays; repeat. KIND, such as text-generality, "
            "is what the former try. [default: without --cases, the edit's own capture]",
        ),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines: prompt, kind, target or answer, image.")
    ] = None,
    perplexity: Annotated[
        str | None, typer.Option(metavar="CAPTURE", help="Compare the likelihood of its tokens.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="fine-tune, random or none; repeat for more. [default: both]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each baseline.")] = 3,
    generate: Annotated[bool, typer.Option(help="Greedy answers too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a generated answer, at most.")] = 50,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Of each capture, the first so many windows.")] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A row per method, draw and case: .parquet or .jsonl.")
    ] = None,
    model: ModelOption = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Try an edit on its model: reliability, generality, locality, beside fine-tuning of the same rows and random neurons.

    The model itself is left as it is. For a least-norm edit, the predicted change of logits is held against the measured one.

    Example: `actstore edit evaluate captions.actstore red-green-least-norm --capture held-out --generate`
    """
    from actstore.engine.edit.cases import read_cases
    from actstore.engine.edit.evaluate import BASELINES, EvaluationOptions, evaluate_edit
    from actstore.store.edits import read_edit

    if table is not None and table.suffix not in (".parquet", ".jsonl"):
        raise InvalidInputError(f"A table is written as .parquet or .jsonl, found {table.name}. Mend --table.")
    opened = Store(store)
    edit = read_edit(opened.folder, name)
    own = edit.record.settings.get("capture")
    named = capture if capture is not None else [own] if own is not None and cases is None else []
    options = EvaluationOptions(
        captures=tuple(_named(text) for text in named),
        cases=tuple(read_cases(cases)) if cases is not None else (),
        perplexity=perplexity,
        baselines=BASELINES if baseline is None else tuple(b for b in dict.fromkeys(baseline) if b != "none"),
        seeds=seeds,
        generate=generate,
        max_new_tokens=max_new_tokens,
        max_windows=max_windows,
    )
    for held, _ in options.captures:
        opened.capture(held)
    reader = load_reader(
        opened.capture(own or (named[0].partition("=")[0] if named else None)), model, device, trust_remote_code
    )
    with terminal.counting_bar("passes", enabled=not quiet) as advance:
        found = evaluate_edit(reader, opened, edit, options, advance)
    if table is not None:
        _write(table, found.rows)
    if as_json:
        print_json(_described(name, found))
        return
    for title, columns, rows in tables(found):
        terminal.out.print(terminal.table(title, columns, rows))
        terminal.out.print()
    terminal.out.print(NOTE, style="dim", soft_wrap=True)


def _named(text: str) -> tuple[str, str | None]:
    name, _, kind = text.partition("=")
    return name, kind or None


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def _described(name: str, found: Evaluation) -> dict[str, Any]:
    first = found.methods["edit"][0]
    described: dict[str, Any] = _without_nan(
        {
            "edit": name,
            **first,
            "baselines": {method: draws for method, draws in found.methods.items() if method != "edit"},
            "predicted": found.predicted,
        }
    )
    return described


def _without_nan(value: Any) -> Any:
    """The value with null in place of NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def tables(found: Evaluation) -> list[tuple[str, list[Any], list[tuple[str, ...]]]]:
    """Title, columns and rows: the scores of every method, and what was predicted of logits beside what happened."""
    kinds = [kind for kind in KINDS if kind in found.methods["edit"][0]["by_kind"]]
    columns: list[Any] = ["method"]
    for kind in kinds:
        for measure in KINDS[kind]:
            heading = f"{kind} {MEASURES[measure]}".strip()
            columns.append(
                (f"{heading}{' (' + format(found.methods['edit'][0]['by_kind'][kind]['cases'], ',') + ')'}", "right")
            )
        if "generated" in found.methods["edit"][0]["by_kind"][kind]:
            columns.append((f"{kind} generated", "right"))
    columns.append(("P of the word", "right"))
    if "perplexity" in found.methods["edit"][0]:
        columns.append(("perplexity", "right"))
    rows = []
    for method, draws in found.methods.items():
        cells = []
        for kind in kinds:
            measures = [*KINDS[kind], *(["generated"] if "generated" in draws[0]["by_kind"][kind] else [])]
            cells += [_percent([draw["by_kind"][kind][measure] for draw in draws]) for measure in measures]
        cells.append(_probability(draws))
        if "perplexity" in draws[0]:
            cells.append(_percent([draw["perplexity"]["change"] for draw in draws], "+") + " %")
        rows.append((NAMES.get(method, method), *cells))
    made: list[tuple[str, list[Any], list[tuple[str, ...]]]] = [("", columns, rows)]
    if found.predicted is not None:
        titles = {"targets": "where the old word was predicted", "controls": "elsewhere"}
        made.append(
            (
                "Change of the new word's logit less the old one's, predicted from the store and measured",
                [
                    "positions",
                    *((c, "right") for c in ("number", "predicted", "measured", "mean difference", "correlation")),
                ],
                [
                    (
                        titles[kind],
                        f"{row['positions']:,}",
                        *(f"{row[c]:.3f}" for c in ("predicted", "measured", "mean_difference")),
                        f"{row['correlation']:.4f}",
                    )
                    for kind, row in ((kind, found.predicted[kind]) for kind in titles)
                ],
            )
        )
    return made


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

"""`attribute`: the model answers a questions file; every neuron's attributions to each right answer go into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.progress import ProgressColumn
from rich.text import Text

from actstore.commands.capture.options import AllowMixed  # noqa: TC001  (Typer reads them)
from actstore.commands.choices import AttributedScopeName, AttributedSiteName, TooLongName  # noqa: TC001  (Typer reads them)
from actstore.commands.executors import GpusPerWorker, On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    SEED_HELP,
    CaptureToMake,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    Layers,
    ModelName,
    NewStore,
    Quiet,
    Resume,
    Rows,
    Sync,
    TokenizerName,
    TrustRemoteCode,
    Weights,
    as_rows,
    given,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json, print_rows
from actstore.display.wide_tables import folded_lists

if TYPE_CHECKING:
    from rich.progress import Task

    from actstore.engine.attribution.attribute import AttributeReport
    from actstore.store.capture.questions.attributions import Attributions


Steps = Annotated[int | None, typer.Option(help="Number of steps from 0 to the activations. [default: 16]")]
MaxQueries = Annotated[int | None, typer.Option(help="Maximum number of queries to read.")]


# Most options are the settings, or the options of the run, of the same name: `given` takes them from the context.
def attribute(
    ctx: typer.Context,
    model: ModelName,
    questions: Annotated[
        str, typer.Argument(metavar="QUESTIONS", help="Prepared JSON, or rows of question, options and answer (JSONL).")
    ],
    store: NewStore,
    name: CaptureToMake = "questions",
    resume: Resume = False,
    k: Annotated[int, typer.Option("--k", "-k", min=0, help="Maximum number of neurons per query.")] = 20,
    steps: Steps = None,
    site: Annotated[
        AttributedSiteName | None,
        typer.Option(help="Whose activations: MLP neurons, or projections of attention. [default: mlp.post]"),
    ] = None,
    scope: Annotated[
        AttributedScopeName | None,
        typer.Option(help="Scale them where the answer is predicted, or all those of a prompt. [default: position]"),
    ] = None,
    layers: Layers = None,
    gradients: Annotated[
        bool | None,
        typer.Option(help="Compute integrated gradients, or store activations and answers only. [default: gradients]"),
    ] = None,
    templates: Annotated[
        int | None,
        typer.Option(help="Number of prompts per query. [default: 3, of prepared prompts all]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help=SEED_HELP)] = None,
    max_queries: MaxQueries = None,
    label_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="COLUMN",
            help="Column kept as a label; repeat for more. [default: relation_name, or columns whose values repeat]",
        ),
    ] = None,
    too_long: Annotated[
        TooLongName | None,
        typer.Option(
            help="Prompts longer than the context: cut off their beginning, skip the query or refuse the file. "
            "[default: cut]",
        ),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="Maximum number of rows per pass, which bounds the memory. [default: 256]")
    ] = None,
    tokenizer: TokenizerName = None,
    workers: Workers = None,
    on: On = "local",
    gpus_per_worker: GpusPerWorker = None,
    allow_mixed: AllowMixed = False,
    weights: Weights = True,
    ignore_disk: IgnoreDisk = False,
    sync: Sync = True,
    rows: Rows = 20,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Let MODEL answer multiple-choice QUESTIONS, and store every neuron's attribution to the right letter's probability.

    A masked encoder is asked for what stands at a mask: of a text (`cloze` with `options`), or of a protein (`sequence` with
    `position`).

    The attributions are a capture: info, top, verify, sql, export and naica read it.

    Example: `actstore attribute gpt2 questions.json gpt2.actstore --label relation_name`
    """
    from actstore.engine.attribution.attribute import AttributeReport
    from actstore.engine.attribution.attribute import attribute as run
    from actstore.engine.attribution.question_plan import AttributeSettings
    from actstore.engine.capture.run import RunOptions

    report = AttributeReport()
    with AttributeBar(enabled=not quiet) as bar:
        attributions = run(
            model, questions, store, name=name, options=RunOptions(**given(ctx, RunOptions)), progress=bar,
            report=report, **given(ctx, AttributeSettings) | {"layers": parse_layers(layers)},
        )  # fmt: skip
    _warn(attributions, report)
    if as_json:
        print_json(describe(attributions, k))
    else:
        _print(attributions, k, rows)


def register(app: typer.Typer) -> None:
    """Add the command to the main application."""
    app.command()(attribute)


class AttributeBar(terminal.CaptureBar):
    """The progress bar of a capture, counting prompts."""

    doing, unit = "attributing", "prompts"

    def __init__(self, *, enabled: bool) -> None:
        super().__init__(enabled=enabled)
        columns = self._progress.columns
        self._progress.columns = (*columns[:4], _PromptRate(), *columns[5:])

    def planned(self, n_documents: int, n_tokens: int) -> None:
        """Count up."""
        self._count_planned("planning", n_tokens)


class _PromptRate(ProgressColumn):
    """Prompts per second, and the expected number of bytes."""

    def render(self, task: Task) -> Text:
        nbytes = task.fields.get("nbytes", 0)
        size = f", about {terminal.format_bytes(nbytes)}" if nbytes else ""
        return Text(f"{task.completed:,.0f} prompts, {task.speed or 0:,.1f}/s{size}", style="dim", no_wrap=True)


def _warn(attributions: Attributions, report: AttributeReport) -> None:
    """Warnings and notes about the stored attributions, on standard error."""
    context = attributions.capture.record.plan.settings["context"]
    n_cut = int(np.count_nonzero(attributions.prompts["n_cut"].to_numpy()))
    warnings, notes = [], []
    if n_cut:
        warnings.append(
            f"{n_cut:,} of {attributions.prompts.num_rows:,} prompts are longer than the model's context of {context} tokens: "
            "their beginning was cut off (column n_cut). --too-long skip leaves such queries out."
        )
    if report.n_skipped:
        notes.append(
            f"{report.n_skipped:,} queries were left out: a prompt of theirs is longer than the model's {context} tokens."
        )
    if report.n_merged:
        notes.append(
            f"In {report.n_merged:,} prompts the tokenizer merges the letter with what precedes it: they are read up to there."
        )
    if n_non_finite := attributions.capture.statistics().n_non_finite:
        warnings.append(f"{n_non_finite:,} activations or attributions are NaN or infinite; they are stored unchanged.")
    terminal.warn(warnings)
    terminal.say(*notes)


def describe(attributions: Attributions, k: int) -> dict[str, Any]:
    """The JSON document: `queries`, each with its prompts and the k neurons with the largest summed scores."""
    kind = attributions.kinds[0]
    columns = attributions.capture.record.plan.label_columns
    queries = attributions.queries.to_pylist()
    prompts = attributions.prompts
    rows = []
    for numbers, scores in attributions.query_scores(kind):
        for number, score in zip(numbers.tolist(), scores, strict=True):
            query = queries[number]
            of_query = prompts.slice(query["first_prompt"], query["n_prompts"]).to_pydict()
            best = _largest(score, k)
            rows.append(
                {
                    "query": query["query"],
                    "labels": {column: query[column] for column in columns},
                    "correct": query["correct"],
                    "n_correct": query["n_correct"],
                    "prompts": of_query["text"],
                    "targets": of_query["target"],
                    "answers": of_query["answer"],
                    "predicted": of_query["predicted"],
                    "probabilities": of_query["probability"],
                    "neurons": as_rows(score[best], attributions.neuron_names(best)),
                }
            )
    return {
        "store": attributions.store.folder.location,
        "capture": attributions.capture.record.name,
        "attribution": kind,
        "n_queries": len(rows),
        "n_correct": sum(query["correct"] for query in queries),
        "queries": rows,
    }


def _largest(scores: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """The positions of the k largest scores, descending; ties go to the earlier neuron, NaN comes last."""
    order = np.argsort(-scores, kind="stable")
    return order[:k]


def _print(attributions: Attributions, k: int, n_rows: int) -> None:
    """Print how well the model answers, and the first queries."""
    queries, prompts = attributions.queries, attributions.prompts
    n_right, n_prompts = int(np.count_nonzero(prompts["correct"])), prompts.num_rows
    n_queries_right = int(np.count_nonzero(queries["correct"]))
    terminal.out.print(
        f"{attributions.store.folder.location}, capture {attributions.capture.record.name!r}: {queries.num_rows:,} queries "
        f"in {n_prompts:,} prompts, {attributions.n_neurons:,} neurons",
        style="bold",
    )
    terminal.out.print(
        f"Answered right: {n_right:,} of {n_prompts:,} prompts, {n_queries_right:,} of {queries.num_rows:,} queries (in more "
        "than half of their prompts). An answer is right where its letter is the most probable of the letters. "
        f"Scores: {', '.join(attributions.kinds)}."
    )
    labels = attributions.capture.record.plan.label_columns
    rows = []
    for numbers, scores in attributions.query_scores(attributions.kinds[0]):
        for number, score in zip(numbers.tolist(), scores, strict=True):
            query = queries.slice(number, 1).to_pylist()[0]
            best = _largest(score, min(k, 4))
            neurons = [
                f"{name} {value:.3g}"
                for name, value in zip(attributions.neuron_names(best), score[best].tolist(), strict=True)
            ]
            rows.append(
                [
                    query["query"],
                    *(query[column] for column in labels),
                    terminal.verdict(query["correct"]),
                    query["probability"],
                    ", ".join(neurons),
                ]
            )
        if len(rows) >= (n_rows or queries.num_rows):
            break
    columns = ["query", *labels, "answer", ("P", "right"), f"largest {attributions.kinds[0]}"]
    print_rows(columns, folded_lists(columns, rows[: n_rows or None]), queries.num_rows, "queries")

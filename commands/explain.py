"""`explain`: neurons in words, asked of a language model's server, and scores of how much the words explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands import completion
from actstore.commands.choices import OthersName  # noqa: TC001  (Typer reads it)
from actstore.commands.options import (
    CaptureName,
    Json,
    MaxNewTokens,
    Quiet,
    Seed,
    Site,
    StorePath,
    given,
    layers_option,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.engine.explain.settings import KEY_VARIABLE, SCORES
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.api.results import Answer
    from actstore.engine.explain.run import DryRun, ExplainReport

PROMPTS = "Prompts and questions"
SERVER = "Server"
MEASURES = ("detection", "fuzzing", "graph_detection", "graph_fuzzing", "named")
"""Columns of scores, in the order in which they are shown."""
SHOWN_ROWS = 50


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(explain)


def complete_scores(incomplete: str) -> list[str]:
    """What a shell offers for the last of several scores with commas between them."""
    before, comma, begun = incomplete.rpartition(",")
    return [f"{before}{comma}{score}" for score in SCORES if score.startswith(begun)]


# Most options are settings of the same name: `given` takes them from the context.
def explain(
    ctx: typer.Context,
    store: StorePath,
    neurons: Annotated[
        str | None,
        typer.Argument(
            metavar="NEURONS",
            help="Neurons, such as L3.N17,L4.N2; in place of them, --layers names all of a layer.",
            autocompletion=completion.neurons,
        ),
    ] = None,
    layers: Annotated[str | None, layers_option(instead_of="NEURONS")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address of a server with OpenAI's chat completions, such as http://localhost:8000/v1.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    explainer_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model that explains, as the server calls it. [default: that of the explanations there are]",
            rich_help_panel=SERVER,
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORES",
            help="Scores of the explanations, such as detection,fuzzing,graph; graph needs no server. [default: none]",
            autocompletion=complete_scores,
        ),
    ] = None,
    scorer_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model that answers detection and fuzzing. [default: that which explains]",
            rich_help_panel=SERVER,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of neurons of which something is missing. [default: all]"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show prompts and count their tokens; nothing is sent, nothing is written."),
    ] = False,
    name: Annotated[
        str,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the explanations; a store holds many, each with settings of its own.",
            autocompletion=completion.explanations,
        ),
    ] = "explanations",
    exemplars: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of excerpts that the explainer is shown. [default: 20]", rich_help_panel=PROMPTS
        ),
    ] = None,
    tests: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of held-out excerpts with firing, and of excerpts without. [default: 20]",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    quantiles: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of parts of the firing excerpts, by activation, that give as many each. [default: 10]",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens per excerpt. [default: 32]", rich_help_panel=PROMPTS)
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="A neuron fires where its activation is at least this share of its maximum. [default: 0.5]",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    others: Annotated[
        OthersName,
        typer.Option(
            help="Excerpts without firing: random ones, or where the nearest neurons by coactivation fire.",
            rich_help_panel=PROMPTS,
        ),
    ] = "random",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of excerpts per request. [default: 5]", rich_help_panel=PROMPTS),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sample at this temperature. [default: 0]", rich_help_panel=PROMPTS)
    ] = None,
    max_new_tokens: MaxNewTokens = 1000,
    seed: Seed = 0,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help=f"Environment variable with the server's key; empty for none. [default: {KEY_VARIABLE}]",
            rich_help_panel=SERVER,
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of requests at once. [default: 4]", rich_help_panel=SERVER)
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--server-timeout",
            min=0.001,
            metavar="SECONDS",
            help="Time to wait for a server that sends nothing. [default: 120]",
            rich_help_panel=SERVER,
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Maximum number of repetitions of a request that may yet succeed. [default: 5]",
            rich_help_panel=SERVER,
        ),
    ] = None,
    site: Site = "mlp.post",
    capture: CaptureName = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say in words what NEURONS look for, as a language model says it that is shown where they fire; and score the words.

    What is there already is not asked for again: after an interruption the same command goes on. *Detection* asks in which
    held-out excerpts the neuron fires, *fuzzing* whether the right tokens are marked; both are balanced accuracies, 0.5 where
    one guesses. *Graph* puts the same questions to the neuron's graph, and gives the share of firings on tokens that the
    explanation names. All are in the tables explanations and explanation_questions of `actstore sql`.

    Example: `actstore explain gpt2.actstore L3.N17 --endpoint http://localhost:8000/v1 --explainer-model qwen`
    """
    from actstore.api.explain import answer_explain
    from actstore.engine.explain.run import ExplainTask
    from actstore.engine.explain.settings import ExplainSettings, ServerSettings

    settings = ExplainSettings(**given(ctx, ExplainSettings))
    server = ServerSettings(**given(ctx, ServerSettings))
    scores = tuple(one.strip() for one in score.split(",")) if score else ()
    task = ExplainTask(name, site, explainer_model or "", scores, limit, settings, server)
    with terminal.counting_bar("neurons", enabled=not quiet) as advance:
        answer = answer_explain(
            Store(store), capture, neurons, parse_layers(layers), task, dry_run=dry_run, progress=advance
        )
    terminal.warn(answer.warnings)
    if dry_run:
        _show_dry_run(answer, as_json=as_json)  # type: ignore[arg-type]
    else:
        _show(store, answer, as_json=as_json)  # type: ignore[arg-type]


def _show(store: str, answer: Answer[ExplainReport], *, as_json: bool) -> None:
    report, rows = answer.details, answer.table.to_pylist()
    if as_json:
        shown = ("explained", "scored", "malformed", "skipped")
        print_json(
            {"name": report.name, "explanations": [_described(row) for row in rows]}
            | {key: getattr(report, key) for key in shown}
            | {"requests": report.n_requests, "left": report.n_left, "warnings": list(answer.warnings)}
        )
        return
    for row in rows[:SHOWN_ROWS]:
        terminal.out.print(f"{row['name']}: {row['explanation']}", soft_wrap=True, markup=False)
        if scores := ", ".join(_measured(row, one) for one in MEASURES if row[one] is not None):
            terminal.out.print(f"    {scores}", style="dim", soft_wrap=True, markup=False)
    if len(rows) > SHOWN_ROWS:
        terminal.out.print(f"… {len(rows) - SHOWN_ROWS:,} more in the table explanations.")
    left = f" Beyond --limit: {terminal.plural(report.n_left, 'neuron')}." if report.n_left else ""
    terminal.out.print(
        f"{store}: explanations {report.name!r}, {terminal.plural(len(report.explained), 'neuron')} explained now, "
        f"{terminal.plural(len(report.scored), 'score')} made, {terminal.plural(report.n_requests, 'request')}.{left}",
        soft_wrap=True,
        markup=False,
    )


def _measured(row: dict[str, Any], measure: str) -> str:
    """A score with its limits: "detection 0.9 (0.75 to 0.97), 2 of 40 answers malformed"."""
    text = (
        f"{measure.replace('_', ' ')} {row[measure]:.2f} ({row[f'{measure}_low']:.2f} to {row[f'{measure}_high']:.2f})"
    )
    malformed = row.get(f"{measure}_malformed")
    return f"{text}, {malformed} of {row[f'{measure}_n']} answers malformed" if malformed else text


def _described(row: dict[str, Any]) -> dict[str, Any]:
    """An explanation in the JSON: its prompt is in the store."""
    return {key: value for key, value in row.items() if key != "prompt"}


def _show_dry_run(answer: Answer[DryRun], *, as_json: bool) -> None:
    plan, rows = answer.details, answer.table.to_pylist()
    total = {"requests": len(rows), "tokens": sum(plan.n_tokens), "counted_by": plan.counted_by, "left": plan.n_left}
    if as_json:
        print_json(
            {"name": plan.name, "prompts": rows, "skipped": plan.skipped, **total, "warnings": list(answer.warnings)}
        )
        return
    purposes = dict.fromkeys(row["purpose"] for row in rows)
    for purpose in purposes:
        first = next(row for row in rows if row["purpose"] == purpose)
        terminal.out.print(f"{first['name']}, {purpose}", style="bold")
        terminal.out.print(f"{first['system']}\n\n{first['user']}\n", soft_wrap=True, markup=False)
    tokens = {purpose: [row["n_tokens"] for row in rows if row["purpose"] == purpose] for purpose in purposes}
    cells = [[purpose, len(counts), sum(counts)] for purpose, counts in tokens.items()]
    terminal.out.print(terminal.table(None, ["prompts", ("requests", "right"), ("tokens", "right")], cells))
    left = f" Beyond --limit: {terminal.plural(plan.n_left, 'neuron')}." if plan.n_left else ""
    terminal.out.print(
        f"{terminal.plural(len(rows), 'request')}, {terminal.plural(sum(plan.n_tokens), 'token')} of prompts, counted by "
        f"{plan.counted_by}; shown is the first prompt of each kind, --json has all. Nothing was sent.{left}",
        soft_wrap=True,
        markup=False,
    )

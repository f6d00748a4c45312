"""`knowledge`: the few neurons that most prompts of a stored query share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import Attribution, Json, QuestionsName, Quiet, Rows, StorePath  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json, print_rows
from actstore.display.wide_tables import folded_lists
from actstore.store.capture.questions.attributions import open_attributions
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.engine.naica.knowledge import Refinement
    from actstore.store.capture.questions.attributions import Attributions

SHOWN_NEURONS = 8


def knowledge(
    store: StorePath,
    attribution: Attribution = "ig",
    keep: Annotated[float, typer.Option(help="Minimum score of a neuron, as a share of the prompt's largest.")] = 0.2,
    share: Annotated[
        float, typer.Option(help="Minimum share of the prompts in which a neuron reaches that score, at first.")
    ] = 0.7,
    at_least: Annotated[int, typer.Option(help="Minimum number of neurons; with fewer, --share is lowered.")] = 2,
    at_most: Annotated[int, typer.Option(help="Maximum number of neurons; with more, --share is raised.")] = 5,
    capture: QuestionsName = None,
    rows: Rows = 20,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Knowledge neurons (Dai et al. 2022): the neurons that most prompts of a query share. Needs no model.

    Example: `actstore knowledge gpt2.actstore --at-most 10`
    """
    from actstore.engine.naica.knowledge import Refinement
    from actstore.engine.naica.stored_knowledge import size_warning

    refinement = Refinement(keep=keep, share=share, at_least=at_least, at_most=at_most)
    attributions = open_attributions(Store(store), capture)
    with terminal.spinner("comparing prompts", enabled=not quiet):
        rows_of_queries = list(_rows(attributions, attribution, refinement))
    warning = size_warning([len(row["neurons"]) for row in rows_of_queries], attributions, refinement)
    warnings = [warning] if warning else []
    terminal.warn(warnings)
    if as_json:
        print_json({"attribution": attribution, "queries": rows_of_queries, "warnings": warnings})
        return
    shown = [
        (row["query"], terminal.verdict(row["correct"]), row["share"], _shortened(row["neurons"]))
        for row in rows_of_queries[: rows or None]
    ]
    columns = ["query", "answer", ("share of prompts", "right"), "knowledge neurons"]
    print_rows(columns, folded_lists(columns, shown), len(rows_of_queries), "queries")


def _shortened(names: list[str]) -> str:
    n_more = len(names) - SHOWN_NEURONS
    return ", ".join(names[:SHOWN_NEURONS]) + (f" and {n_more} more" if n_more > 0 else "")


def register(app: typer.Typer) -> None:
    """Add the command to the main application."""
    app.command()(knowledge)


def _rows(attributions: Attributions, kind: str, refinement: Refinement) -> Iterator[dict[str, Any]]:
    from actstore.engine.naica.stored_knowledge import each_knowledge_neurons

    queries = attributions.queries.select(["query", "correct"]).to_pylist()
    for row, of_query in each_knowledge_neurons(attributions, refinement, kind):
        yield {
            **queries[row],
            "neurons": attributions.neuron_names(of_query.neurons),
            "n_prompts": of_query.n_prompts.tolist(),
            "share": of_query.share,
        }

"""What a shell offers for names in the store of the command line: captures, labels, sites, graphs, edits, neurons, ….

Only small records are read. Where there is no such store, or it cannot be read, nothing is offered: completion never fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer  # noqa: TC002  (Typer reads the annotations)

from actstore.engine.models.names import SITES
from actstore.store.capture.captures import Captures
from actstore.store.edits import edit_names
from actstore.store.errors import ActstoreError
from actstore.store.explanations.record import explanation_names
from actstore.store.graphs.record import graph_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def _names_in_store(find: Callable[[Captures], Iterable[str]], argument: str = "store") -> Callable[..., list[str]]:
    """The names that `find` reads in the store named by an argument."""

    def complete_names(ctx: typer.Context, incomplete: str) -> list[str]:
        return [name for name in _read(ctx, find, argument) if name.startswith(incomplete)]

    return complete_names


def _read(ctx: typer.Context, find: Callable[[Captures], Iterable[str]], argument: str) -> list[str]:
    location = ctx.params.get(argument)
    if location is None:  # an option that waits for its value ends the reading of the line: arguments are left as words
        names = [one.name for one in ctx.command.params if one.param_type_name == "argument"]
        location = dict(zip(names, ctx.args, strict=False)).get(argument)
    if location is None:
        return []
    try:
        return list(find(Captures(location)))
    except (ActstoreError, OSError):
        return []


def _labels(store: Captures) -> Iterable[str]:
    plans = (store.peek(name).record.plan for name in store.captures)
    return dict.fromkeys(column for plan in plans for column in plan.label_columns)


def _sites(store: Captures) -> Iterable[str]:
    captured = {site for name in store.captures for site in store.peek(name).record.sites}
    return [site for site in SITES if site in captured]


captures = _names_in_store(lambda store: store.captures)
captures_to_copy = _names_in_store(lambda store: store.captures, "src")
other_captures = _names_in_store(lambda store: store.captures, "other")
labels = _names_in_store(_labels)
graphs = _names_in_store(lambda store: graph_names(store.folder))
edits = _names_in_store(lambda store: edit_names(store.folder))
explanations = _names_in_store(lambda store: explanation_names(store.folder))


def sites(ctx: typer.Context, incomplete: str) -> list[str]:
    """The sites of the store's captures; without a store, all that there are."""
    return [site for site in _read(ctx, _sites, "store") or SITES if site.startswith(incomplete)]


def neurons(ctx: typer.Context, incomplete: str) -> list[str]:
    """The layers of the store as beginnings of names, such as L3.N, in capital letters or small ones as they were begun.

    Of several names with commas between them, the last.
    """
    before, comma, begun = incomplete.rpartition(",")
    names = _read(ctx, lambda store: [f"L{layer}.N" for layer in range(len(store.model.layers))], "store")
    matching = [name for name in names if name.startswith(begun.upper())]
    return [f"{before}{comma}{begun}{name[len(begun) :]}" for name in matching]

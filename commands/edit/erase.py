"""`edit erase`: suppress what a relation is known by; and what `edit evaluate` shows of such an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.edit.reports import describe_edit, sentence
from actstore.commands.options import By, Force, Json, Quiet, StorePath  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.edits import check_name, edit_names, write_edit
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from actstore.engine.edit.erasure import ErasureEvaluation

ERASED = (
    "Percent of prompts whose right answer is the most probable token, and the perplexity of right answers, exp of the mean of "
    "−log P; random: as many random neurons of the same layers (± standard deviation over draws)."
)


def register(group: typer.Typer) -> None:
    """Add the subcommand to `edit`."""
    group.command()(erase)


def erase(
    store: StorePath,
    by: By,
    value: Annotated[str, typer.Option(metavar="VALUE", help="The value of the label whose facts are erased.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of neurons: those that most facts share.")] = 20,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Capture of questions with attributions. [default: the only one with attributions]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the new edit; a store holds many. [default: the value-erase]"
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make an edit that erases a relation (Dai et al. 2022): the knowledge neurons that most of its facts share write nothing.

    Needs stored attributions, and no model. `edit evaluate` shows what it does to the relation and to all others.

    Example: `actstore edit erase facts.actstore --by relation_name --value geography`
    """
    from actstore.engine.edit.erasure import erase as make

    opened = Store(store)
    edit_name = name or f"{value}-erase".replace("/", "-")
    check_name(edit_name)
    if edit_name in edit_names(opened.folder) and not force:
        raise InvalidInputError(
            f"{store} already has an edit {edit_name!r}. Name another with --name, or replace it with --force."
        )
    with terminal.spinner("comparing prompts", enabled=not quiet):
        edit = make(opened, edit_name, by, value, k=k, questions=questions)
    folder = Folder(store, read_only=False)
    record = write_edit(folder, edit, replace=force)
    if as_json:
        print_json(describe_edit(record))
    else:
        terminal.out.print(sentence(folder, record), soft_wrap=True, markup=False)


def describe_erasure(name: str, evaluation: ErasureEvaluation) -> dict[str, Any]:
    """The result as a JSON document."""
    return {
        "edit": name,
        **evaluation.summary()[0],
        "baselines": {"random": evaluation.summary("random")},
        "activations": evaluation.activations,
        "triggers": evaluation.triggers,
        "rows": evaluation.rows,
    }


def print_erasure(evaluation: ErasureEvaluation) -> None:
    """Print what an edit erases: one row per measure of the relation and of all others, and what activates the neurons."""
    rows = []
    own, draws = evaluation.summary()[0], evaluation.summary("random")
    for part, title in (("erased", "erased facts"), ("others", "all others")):
        if not own[part]["prompts"]:
            continue
        for measure, scale in (("accuracy", 100.0), ("perplexity", 1.0)):
            cells = [scale * own[part][f"{measure}_before"], scale * own[part][measure]]
            spread = _spread([scale * draw[part][measure] for draw in draws])
            rows.append((f"{title} ({own[part]['prompts']:,}): {measure}", *(f"{cell:.2f}" for cell in cells), spread))
    columns = ["measure (prompts)", ("before", "right"), ("the edit", "right"), ("random", "right")]
    terminal.out.print(terminal.table(None, columns, rows))
    terminal.out.print()
    shown = [
        (trigger["value"], f"{trigger['activation']:.4f}", terminal.visible(trigger["text"])[:60])
        for trigger in evaluation.triggers
    ]
    title = (
        f"Mean activation of the neurons: {evaluation.activations['own']:.4f} at prompts of the erased facts, "
        f"{evaluation.activations['other']:.4f} at others; most and least at"
    )
    terminal.out.print(terminal.table(title, ["value", ("activation", "right"), "prompt"], shown))
    terminal.out.print()
    terminal.out.print(ERASED, style="dim", soft_wrap=True)


def _spread(values: list[float]) -> str:
    import numpy as np

    if not values:
        return "–"
    return f"{float(np.mean(values)):.2f}" + (f" ± {float(np.std(values, ddof=1)):.2f}" if len(values) > 1 else "")

"""What `selectivity show` and `selectivity evaluate` have in common: how neurons are selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actstore.api.selectivity import open_tuned
from actstore.commands.choices import FiringSiteName, ModalityName, SelectivityMethodName
from actstore.display import terminal
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.selectivity.selectivity import Selectivity, SelectivitySettings
    from actstore.store.reader import Capture

FiringSite = Annotated[
    FiringSiteName | None,
    typer.Option("--site", help="Site whose values say whether a neuron fires. [default: the gate where there is one]"),
]
Modality = Annotated[
    ModalityName | None,
    typer.Option(help="Count only tokens of this modality. [default: all but special tokens]"),
]
Share = Annotated[float, typer.Option(help="Number of neurons to select, as a share of all.")]
Quantile = Annotated[
    float,
    typer.Option(
        help="A neuron belongs to the labels for which its probability of firing exceeds this quantile of all."
    ),
]
Method = Annotated[
    SelectivityMethodName, typer.Option(help="How neurons are selected; all but lape are baselines of its paper.")
]
Tuned = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LABEL=STORE",
        help="A store of the model tuned on the text of one label; one for each.",
        rich_help_panel="Method pv",
    ),
]


def measure(
    capture: Capture,
    settings: SelectivitySettings,
    tuned: Sequence[str] | None,
    quiet: bool,
    workers: int | None = None,
    on: str = "local",
) -> Selectivity:
    """The selective neurons, with the warnings on standard error."""
    from actstore.engine.selectivity.selectivity import find_selectivity
    from actstore.engine.workers.scan import executor_of

    pairs = [entry.partition("=") for entry in tuned or ()]
    if wrong := [label for label, sign, location in pairs if not (label and sign and location)]:
        raise InvalidInputError(f"--tuned names a label and a store, such as fr=fr.actstore, found {wrong[0]!r}.")
    stores = open_tuned({label: location for label, _, location in pairs}, settings.method)
    with terminal.spinner("selecting neurons", enabled=not quiet):
        result = find_selectivity(capture, settings, executor_of(workers, on), stores)
    terminal.warn(result.warnings)
    return result

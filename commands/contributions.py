"""`contributions`: which neurons write a token, at one position or over a capture, without the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from actstore.commands import completion
from actstore.commands.executors import On, ScanDevice, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import CaptureName, Json, K, PaperForm, Quiet, StorePath, as_rows
from actstore.display import terminal
from actstore.display.reports import print_json, token_list
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.contributions.rank import Answer, ContributionQuery
    from actstore.engine.contributions.ranking import Ranked
    from actstore.engine.contributions.targets import Target


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(contributions)


def contributions(
    store: StorePath,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text of one token, with its space: ' Paris'; repeat for more."),
    ] = None,
    target_id: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="The same by token id; repeat for more.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="DOC:POS", help="One position of a document, whose prediction is explained.")
    ] = None,
    next_tokens: Annotated[
        bool, typer.Option("--next-tokens", help="The target of each position is its own next token.")
    ] = False,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="All positions of text, not only those that the target follows.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="A ranking for each value of this label.", autocompletion=completion.labels),
    ] = None,
    capture: CaptureName = None,
    paper_form: PaperForm = False,
    logits: Annotated[
        bool, typer.Option("--logits", help="Scores in units of the logit; needs a capture with --site resid.post too.")
    ] = False,
    k: K = 20,
    fill_top_tokens: Annotated[
        bool,
        typer.Option(
            "--fill-top-tokens",
            help="Compute the top tokens of all neurons, where the capture left them out, and store them.",
        ),
    ] = False,
    device: ScanDevice = "auto",
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Which neurons write a token: each neuron's direct contribution to the token's logit, ranked over all layers.

    Over a capture, a score is the mean over the positions that the target follows, which are those that predicted it. With
    --at and no target, the target is the token that follows the position. Layers are divided among --workers.

    Example: `actstore contributions gpt2.actstore --target " Paris" -k 10`
    """
    from actstore.engine.contributions.rank import ContributionQuery, rank_contributions  # here, because it loads torch
    from actstore.engine.devices.device import find_device
    from actstore.engine.workers.scan import executor_of

    opened = Store(store)
    if fill_top_tokens:
        _fill(store, quiet)
        if not (target or target_id or at or next_tokens):
            return
    targets = [*(target or ()), *(target_id or ())]
    if next_tokens and (targets or at):
        raise InvalidInputError(
            f"--next-tokens takes each position's own next token as its target: leave {'--target' if targets else '--at'} out."
        )
    if not (targets or next_tokens or at):
        raise InvalidInputError(
            "Name a target with --target, a position with --at, or take each position's own next token with --next-tokens."
        )
    query = ContributionQuery(k, capture, at, by, everywhere, not paper_form, logits)
    with terminal.spinner("adding up contributions", enabled=not quiet):
        executor, target_device = executor_of(workers, on), find_device(device, on)
        answer = rank_contributions(opened, targets, query, executor, target_device)
        warnings = overflow_sentences(opened.capture(query.capture), ["mlp.post"])
    terminal.warn([*answer.warnings, *warnings])
    if as_json:
        print_json(_describe(opened, answer, query))
    else:
        _print(opened, answer, query)


def _fill(store: str, quiet: bool) -> None:
    from actstore.store.model.top_tokens import fill_top_tokens
    from actstore.store.storage.folder import Folder

    with terminal.counting_bar("layers", enabled=not quiet) as advance:
        n_neurons = fill_top_tokens(Folder(store, read_only=False), advance)
    terminal.say(f"The top and bottom tokens of {n_neurons:,} neurons are in the table `model` of {store}.")


def _describe(store: Store, answer: Answer, query: ContributionQuery) -> dict[str, Any]:
    """One target: `target`, `neurons`, with `labels` by label; several: `targets`, the same for each."""
    from actstore.engine.contributions.next_tokens import activations_at

    every: list[dict[str, Any]] = []
    for target, labels in _by_target(answer):
        value: dict[str, Any] = {"target": target.text if target else None, "token": target.token if target else None}
        if query.by is None:
            rows = _rows(labels[None])
            if answer.where is not None:
                neurons = _neurons(labels[None])
                values = activations_at(store.capture(query.capture), answer.where, neurons).tolist()
                rows = [row | {"activation": value} for row, value in zip(rows, values, strict=True)]
            value |= {"neurons": rows, "tokens": labels[None].n_tokens}
        else:
            value["labels"] = {str(label): _rows(ranked) for label, ranked in labels.items()}
            value["tokens"] = {str(label): ranked.n_tokens for label, ranked in labels.items()}
        every.append(value)
    described: dict[str, Any] = every[0] if len(every) == 1 else {"targets": every}
    described["capture"] = store.capture(query.capture).record.name
    if answer.where is not None:
        described["at"] = {name: getattr(answer.where, name) for name in ("document", "position", "window")}
    return described


def _rows(ranked: Ranked) -> list[dict[str, Any]]:
    totals = ranked.totals.tolist()
    return [row | {"total": total} for row, total in zip(as_rows(ranked.scores, ranked.names()), totals, strict=True)]


def _neurons(ranked: Ranked) -> list[tuple[int, int]]:
    return list(zip(ranked.layers.tolist(), ranked.neurons.tolist(), strict=True))


def _by_target(answer: Answer) -> list[tuple[Target | None, dict[str | None, Ranked]]]:
    """The rankings of each target by label, targets and labels in their order."""
    rankings: list[tuple[Target | None, dict[str | None, Ranked]]] = []
    for (target, label), ranked in zip(answer.rows, answer.ranking.rows(), strict=True):
        if not rankings or label in rankings[-1][1]:
            rankings.append((target, {}))
        rankings[-1][1][label] = ranked
    return rankings


def _print(store: Store, answer: Answer, query: ContributionQuery) -> None:
    from actstore.engine.contributions.next_tokens import activations_at
    from actstore.store.model.top_tokens import texts_of

    for number, (target, labels) in enumerate(_by_target(answer)):
        for label, ranked in labels.items():
            if number or label != next(iter(labels)):
                terminal.out.print()
            heading = Text(_heading(store, answer, query, target, label, ranked), style="bold")
            terminal.out.print(heading, soft_wrap=True)
            neurons = _neurons(ranked)
            texts = texts_of(store.folder, neurons, query.gain, 5)
            if answer.where is None:
                columns = ["neuron", ("score", "right"), "writes when above zero", "writes when below"]
                rows: list[list[Any]] = [
                    [name, score, *(token_list(side, 45) for side in own)]
                    for name, score, own in zip(ranked.names(), ranked.scores.tolist(), texts, strict=True)
                ]
            else:
                columns = ["neuron", ("score", "right"), ("activation", "right"), "writes"]
                activations = activations_at(store.capture(query.capture), answer.where, neurons)
                rows = [
                    [name, score, float(value), token_list(own.written(value) or ["–"], 80)]
                    for name, score, value, own in zip(
                        ranked.names(), ranked.scores.tolist(), activations, texts, strict=True
                    )
                ]
            terminal.out.print(terminal.table(None, columns, rows))


def _heading(
    store: Store, answer: Answer, query: ContributionQuery, target: Target | None, label: str | None, ranked: Ranked
) -> str:
    what = f"{target.text!r} ({target.token})" if target else "each position's next token"
    if answer.where is not None:
        where = f"at position {answer.where.position} of document {answer.where.document}"
        return f"{what} {where}: {_context(store, answer, query)}"
    tokens = terminal.plural(ranked.n_tokens, "position")
    over = f"mean over {tokens}" if query.everywhere or target is None else f"mean over the {tokens} it follows"
    return f"{what}, {over}" + (f", {query.by}={label}" if label is not None else "")


def _context(store: Store, answer: Answer, query: ContributionQuery, n: int = 12) -> str:
    """The end of the text that the model had read at the position."""
    assert answer.where is not None
    plan = store.capture(query.capture).block_plan(answer.where.block)
    (index,) = (plan.windows["window"] == answer.where.window).nonzero()[0].tolist()
    start = int(plan.windows["input_start"][index] - plan.windows["input_start"][0])
    stop = start + answer.where.position + 1
    return terminal.visible("…" + store.text(plan.inputs[max(start, stop - n) : stop]) + "▌")

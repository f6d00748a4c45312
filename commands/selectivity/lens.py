"""`selectivity lens`, `lens-tokens`: the entropy of the next token at every layer, and the likeliest tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import CaptureName, Device, Json, Quiet, Rows, StorePath  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.selectivity.lens_tokens import LensTokens


def register(group: typer.Typer) -> None:
    """Add the subcommand to `selectivity`."""
    group.command()(lens)
    group.command(name="lens-tokens")(lens_tokens)


def lens(
    store: StorePath,
    capture: CaptureName = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens read per modality. [default: all]")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The logit lens: the entropy of the next token at every layer of STORE, for text and for image tokens.

    Needs a capture of resid.post.

    Example: `actstore selectivity lens gpt2.actstore --max-tokens 10000`
    """
    from actstore.engine.selectivity.logit_lens import look_through

    opened = Store(store).capture(capture)
    with terminal.counting_bar("tokens", enabled=not quiet) as report:
        result = look_through(opened, max_tokens=max_tokens, device=device, on_tokens=report)
    terminal.warn(overflow_sentences(opened, ["resid.post"]))
    if as_json:
        layers = [
            {"layer": layer, "entropies": dict(zip(result.modalities, row, strict=True))}
            for layer, row in zip(result.layers, result.entropies.tolist(), strict=True)
        ]
        tokens = dict(zip(result.modalities, result.n_tokens.tolist(), strict=True))
        print_json({"capture": opened.record.name, "tokens": tokens, "layers": layers})
        return
    terminal.out.print("Entropy of the next token as each layer's residual stream predicts it, in nats", style="bold")
    rows = [(f"L{layer}", *row) for layer, row in zip(result.layers, result.entropies.tolist(), strict=True)]
    terminal.out.print(terminal.table(None, ["after layer", *((kind, "right") for kind in result.modalities)], rows))


def lens_tokens(
    store: StorePath,
    at: Annotated[
        str | None, typer.Option(metavar="DOC:POS", help="One position of a document, whose prediction is explained.")
    ] = None,
    document: Annotated[
        int | None, typer.Option(min=0, metavar="DOC", help="All stored positions of this document.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of tokens per layer and position.")] = 5,
    capture: CaptureName = None,
    rows: Rows = 20,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The logit lens: the tokens that every layer's residual stream stands for, at a position of STORE or along a document.

    Along a document each layer's likeliest token is shown; --json has all. Needs a capture of resid.post.

    Example: `actstore selectivity lens-tokens gpt2.actstore --at 0:5`
    """
    from actstore.engine.selectivity.lens_tokens import read_lens

    opened = Store(store)
    source = opened.capture(capture)
    with terminal.spinner("reading the stream", enabled=not quiet):
        found = read_lens(source, at=at, document=document, k=k, device=device)
    terminal.warn(overflow_sentences(source, ["resid.post"]))
    if as_json:
        print_json({"capture": source.record.name, "rows": found.table(opened).to_pylist()})
    elif at is not None:
        _print_place(opened, found)
    else:
        _print_document(opened, found, rows)


def _print_place(store: Store, found: LensTokens) -> None:
    """A row per layer: its likeliest tokens with their probabilities, and the probability of the token that comes."""
    following = int(found.following[0])
    read = terminal.visible(store.token_text(int(found.read[0])))
    heading = f"After {read!r} at position {found.positions[0]} of document {found.document}"
    come = "" if following < 0 else f"; what comes is {terminal.visible(store.token_text(following))!r}"
    terminal.out.print(heading + come, style="bold", markup=False, soft_wrap=True)
    columns: list[Any] = ["after layer", ("entropy", "right"), "likeliest tokens"]
    columns += [("P(what comes)", "right")] if following >= 0 else []
    cells: list[list[Any]] = []
    for row, layer in enumerate(found.layers):
        likeliest = "  ".join(
            f"{terminal.visible(store.token_text(token))} {terminal.percent(probability)}"
            for token, probability in zip(
                found.tokens[row, 0].tolist(), found.probabilities[row, 0].tolist(), strict=True
            )
        )
        of_next = [terminal.percent(float(found.of_following[row, 0]))] if following >= 0 else []
        cells.append([f"L{layer}", float(found.entropies[row, 0]), likeliest, *of_next])
    terminal.out.print(terminal.table(None, columns, cells))


def _print_document(store: Store, found: LensTokens, rows: int) -> None:
    """A row per position: the token there, and each layer's likeliest next one."""
    n = len(found.positions)
    shown = range(n if rows == 0 else min(rows, n))
    cells = [
        [
            str(found.positions[i]),
            terminal.visible(store.token_text(int(found.read[i]))),
            *(terminal.visible(store.token_text(int(token))) for token in found.tokens[:, i, 0]),
        ]
        for i in shown
    ]
    columns: list[Any] = [("position", "right"), "token", *(f"L{layer}" for layer in found.layers)]
    terminal.out.print(fitted_table(None, columns, cells, n_keys=2))
    if len(shown) < n:
        terminal.out.print(f"… and {n - len(shown):,} more positions: --rows 0 shows all.", style="dim")

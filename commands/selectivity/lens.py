"""`selectivity lens`: how undecided every layer is about the next token. Knows nothing about how it is computed."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.commands.options import CaptureName, Device, Json, Quiet, StorePath  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.reader import Store


def register(group: typer.Typer) -> None:
    """Add the subcommand to `selectivity`."""
    group.command()(lens)


def lens(
    store: StorePath,
    capture: CaptureName = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens looked at of each modality. [default: all]")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The logit lens: how undecided every layer of STORE is about the next token, text and image tokens apart.

    Needs a capture of resid.post.

    Example: `actstore selectivity lens gpt2.actstore --max-tokens 10000`
    """
    from actstore.engine.selectivity.logit_lens import look_through

    held = Store(store).capture(capture)
    with terminal.counting_bar("tokens", enabled=not quiet) as report:
        found = look_through(held, max_tokens=max_tokens, device=device, on_tokens=report)
    terminal.warn(overflow_sentences(held, ["resid.post"]))
    if as_json:
        layers = [
            {"layer": layer, "entropies": dict(zip(found.modalities, row, strict=True))}
            for layer, row in zip(found.layers, found.entropies.tolist(), strict=True)
        ]
        tokens = dict(zip(found.modalities, found.n_tokens.tolist(), strict=True))
        print_json({"capture": held.record.name, "tokens": tokens, "layers": layers})
        return
    terminal.out.print("Entropy of the next token that each layer's residual stream stands for, in nats", style="bold")
    rows = [(f"L{layer}", *row) for layer, row in zip(found.layers, found.entropies.tolist(), strict=True)]
    terminal.out.print(terminal.table(None, ["after layer", *((kind, "right") for kind in found.modalities)], rows))

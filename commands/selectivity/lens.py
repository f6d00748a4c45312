"""`selectivity lens`: the entropy of the next token at every layer."""

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

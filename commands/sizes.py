"""`actstore sizes`: what captures of a model would take, by its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actstore.commands.capture.options import (  # noqa: TC001  (Typer reads them)
    BlockTokens,
    Bundle,
    CapturedLayers,
    Context,
    Exemplars,
    GateSign,
    Keep,
    Memory,
    Part,
    Sites,
)
from actstore.commands.choices import PrecisionName  # noqa: TC001  (Typer reads it)
from actstore.commands.options import (
    Dtype,
    Json,
    ModelName,
    Quiet,
    TrustRemoteCode,
    parse_bytes,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sizes)


def sizes(
    model: ModelName,
    tokens: Annotated[
        str, typer.Option(metavar="N", help="Number of tokens to be captured, which may be written 1e9.")
    ],
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option(help="How activations are encoded; repeat for more. [default: each]"),
    ] = None,
    sites: Sites = None,
    layers: CapturedLayers = None,
    part: Part = None,
    keep: Keep = None,
    gate_sign: GateSign = None,
    exemplars: Exemplars = None,
    context: Context = None,
    block_tokens: BlockTokens = None,
    bundle: Bundle = None,
    dtype: Dtype = "auto",
    memory: Memory = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What a capture of --tokens tokens of MODEL would take: bytes, files, requests, memory. No weights, no corpus.

    Sums over the configuration, with every window full, by the functions with which captures are planned;
    `actstore capture --dry-run` reads the corpus and measures the model.

    Example: `actstore sizes meta-llama/Llama-3.1-8B --tokens 1e9`
    """
    with terminal.spinner(f"inspecting {model}", enabled=not quiet):
        from actstore.engine.capture.scale import sizes as run  # takes longer to load than most models to inspect

        settings: dict[str, Any] = {  # the option's type has checked each word
            "precision": precision, "sites": sites, "layers": parse_layers(layers), "part": part, "keep": keep,
            "gate_sign": gate_sign, "exemplars": exemplars, "context": context, "block_tokens": block_tokens, "bundle": bundle,
            "dtype": dtype, "memory": None if memory is None else parse_bytes(memory),
        }  # fmt: skip
        table = run(model, parse_count(tokens), trust_remote_code=trust_remote_code, **settings)
    rows = table.to_pylist()
    if as_json:
        print_json({"model": model, "precisions": rows})
        return
    columns = [
        "precision",
        "block",
        "blocks",
        "size",
        "statistics",
        "files",
        "objects",
        "to write",
        "to read",
        "memory",
    ]
    terminal.out.print(
        terminal.table(None, [columns[0], *((name, "right") for name in columns[1:])], [_row(row) for row in rows])
    )
    terminal.out.print(
        "size: compressed, with the statistics that each block has of its own; files: one for each array of a block; "
        "objects: as it would be stored, bundled above 100,000 files; to write, to read: requests of an object store for all "
        "blocks, and for one neuron; memory: buffers of a worker, beside the model.",
        style="dim",
    )


def parse_count(text: str) -> int:
    """The whole number in a text such as 250000, 250,000 or 1e9."""
    plain = text.replace(",", "").replace("_", "")
    try:
        number = int(plain) if plain.isascii() and plain.isdigit() else float(plain)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise InvalidInputError(f"A number of tokens is a whole number such as 250000 or 1e9, found {text!r}.")


def _row(row: Mapping[str, Any]) -> list[object]:
    size = terminal.format_bytes
    return [
        row["precision"], row["block_slots"], row["n_blocks"], size(row["nbytes"]), size(row["statistics_nbytes"]),
        row["n_files"], row["n_objects"], row["write_requests"], row["read_requests"] or None, size(row["buffers_nbytes"]),
    ]  # fmt: skip

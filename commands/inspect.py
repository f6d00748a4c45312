"""`actstore inspect`: what a capture of a model would hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.commands.options import Json, ModelName, Quiet, TrustRemoteCode  # noqa: TC001  (Typer reads them)
from actstore.display import terminal
from actstore.display.reports import describe_model, print_json

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(inspect)


def inspect(
    model: ModelName, trust_remote_code: TrustRemoteCode = False, quiet: Quiet = False, as_json: Json = False
) -> None:
    """What a capture of MODEL would hold: layers, neurons, module paths, sites, bytes per token. No weights are loaded.

    Example: `actstore inspect gpt2`
    """
    with terminal.spinner(f"inspecting {model}", enabled=not quiet):
        from actstore.engine.models.load import inspect_model  # takes longer to load than most models to inspect

        spec = inspect_model(model, trust_remote_code=trust_remote_code)
    value = describe_model(spec)
    if as_json:
        print_json(value)
        return
    terminal.out.print(f"{spec.name}: {spec.model_type}, {spec.kind}, width {spec.d_model}, {spec.dtype}", style="bold")
    rows = [(f"L{s.layer}", s.neurons, "gated" if s.gated else "plain", s.stack, s.module) for s in spec.layers]
    terminal.out.print(terminal.table(None, ["layer", ("neurons", "right"), "MLP", "stack", "output projection"], rows))
    nbytes = terminal.format_bytes(value["bytes_per_token"]["mlp.post"])
    terminal.out.print(f"{value['neurons']:,} neurons; {nbytes} per token at mlp.post, uncompressed.")
    terminal.out.print(f"Sites: {', '.join(spec.sites)}")

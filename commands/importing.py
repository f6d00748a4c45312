"""`actstore import`: activations that another tool computed, as a capture."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.commands.choices import ImportFormat, PrecisionName  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    CaptureToMake,
    Json,
    NewStore,
    Order,
    Quiet,
    TokenizerName,
    TrustRemoteCode,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_activations)


def import_activations(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What another tool left: a file, a folder.")],
    store: NewStore,
    layout: Annotated[
        ImportFormat | None, typer.Option("--format", help="Layout of SOURCE. [default: told by what is there]")
    ] = None,
    name: CaptureToMake = "corpus",
    hooks: Annotated[
        list[str] | None,
        typer.Option("--hook", metavar="HOOK", help="Only this hook; may be repeated. [default: those with a site]"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Only these layers, such as 0,3-5. Of hidden states, the numbers of eagle_aux_hidden_state_layer_ids.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model that computed them, for its weights and tokenizer."),
    ] = None,
    tokenizer: TokenizerName = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="How activations are encoded. [default: exact]")
    ] = None,
    order: Order = None,
    trust_remote_code: TrustRemoteCode = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a capture that was imported before.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Import activations that another tool computed into STORE: of TransformerLens, SAELens, vLLM or speculators.

    Without --model, a new store has no weights, and says so where they are needed.

    Example: `actstore import hidden_states/ qwen.actstore --layers 2,18,33 --model Qwen/Qwen3-8B`
    """
    from actstore.engine.building.importing import import_activations as run

    with terminal.spinner("importing", enabled=not quiet):
        capture = run(
            source, store, format=layout, name=name, hooks=hooks or (), layers=parse_layers(layers), model=model,
            tokenizer=tokenizer, replace=replace, precision=precision, order=order, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    plan, sites = capture.record.plan, {site: sorted(capture.record.layers(site)) for site in capture.record.sites}
    if as_json:
        about = {
            "store": store,
            "capture": name,
            "tokens": plan.n_tokens,
            "documents": plan.n_documents,
            "sites": sites,
        }
        print_json(about)
        return
    what = ", ".join(f"{site} of {terminal.plural(len(layers), 'layer')}" for site, layers in sites.items())
    terminal.out.print(
        f"{store}: capture {name!r}, {terminal.plural(plan.n_tokens, 'token')} of "
        f"{terminal.plural(plan.n_documents, 'sequence')}: {what}.",
        soft_wrap=True,
        markup=False,
    )

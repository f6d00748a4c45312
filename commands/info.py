"""`actstore info` and `actstore verify`: what a store holds, and whether it is what its records say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (  # noqa: TC001  (Typer reads them)
    Device,
    Json,
    ModelPlace,
    Quiet,
    StorePath,
    TrustRemoteCode,
)
from actstore.display import terminal
from actstore.display.reports import describe_store, print_json, print_store
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.reader import Capture
    from actstore.store.verify import Damage


SEE = "`actstore stats --sort overflow` shows where"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(info)
    app.command()(verify)


def info(store: StorePath, quiet: Quiet = False, as_json: Json = False) -> None:
    """What STORE holds: the model, its layers, every capture and how far it is filled.

    Example: `actstore info gpt2.actstore`
    """
    with terminal.spinner("adding up sizes", enabled=not quiet):
        opened = Store(store)
        described = describe_store(opened)
        finished = [held for held in map(opened.capture, opened.captures) if held.is_finished]
        warnings = [sentence for held in finished for sentence in overflow_sentences(held, consequence=SEE)]
    if as_json:
        print_json(described)
    else:
        print_store(described)
        terminal.warn(warnings)


def verify(
    store: StorePath,
    capture: Annotated[
        str | None, typer.Option("--capture", metavar="NAME", help="Only this capture. [default: all]")
    ] = None,
    refill: Annotated[int, typer.Option(min=0, help="Recompute so many blocks with the model and compare.")] = 0,
    model: ModelPlace = None,
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where captured images are now. [default: where they were]")
    ] = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Is STORE what its records say? Checks every checksum, also of graphs and edits; with --refill values against the model.

    Without --capture, the store's own tables, tokenizer and weights are checked too. Exit status 1 where something is damaged.

    Example: `actstore verify gpt2.actstore --refill 2`
    """
    from actstore.store.verify import verify_graphs, verify_root

    opened = Store(store)
    captures = [opened.capture(name) for name in ([capture] if capture else opened.captures)]
    damage: list[Damage] = []
    if not capture:
        with terminal.spinner("checking the store's own files", enabled=not quiet):
            damage += verify_root(opened.folder)
    damage += _check(captures, quiet)
    refilled: list[dict[str, Any]] = []
    if refill:
        from actstore.engine.verify.refill import refill_blocks

        with terminal.spinner("recomputing blocks", enabled=not quiet):
            for held in captures:
                broken = {d.block for d in damage if d.capture == held.record.name}
                found, differing = refill_blocks(
                    held, refill, model=model, images=images, device=device, trust_remote_code=trust_remote_code,
                    without=broken,
                )  # fmt: skip
                refilled += found
                damage += differing
    with terminal.spinner("checking graphs", enabled=not quiet):
        graphs, damaged_graphs = verify_graphs(opened.folder, capture)
    damage += damaged_graphs
    whole = [held for held in captures if held.record.name not in {d.capture for d in damage}]
    terminal.warn(sentence for held in whole for sentence in overflow_sentences(held, consequence=SEE))
    if as_json:
        print_json(_describe(damage, graphs, refilled, captures))
    else:
        _print(damage, graphs, refilled, captures)
    if damage:
        raise typer.Exit(1)


def _check(captures: Sequence[Capture], quiet: bool) -> list[Damage]:
    """What is damaged in any capture, block after block."""
    from actstore.store.verify import verify_capture

    damage: list[Damage] = []
    n_blocks, done = sum(len(held.blocks) for held in captures), 0
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:

        def count(_: int) -> None:
            nonlocal done
            done += 1
            advance(done, n_blocks)

        for held in captures:
            damage += verify_capture(held, count)
    return damage


def _unfinished(captures: Sequence[Capture]) -> list[Capture]:
    return [held for held in captures if len(held.blocks) < held.record.plan.n_blocks]


def _describe(
    damage: Sequence[Damage], graphs: Sequence[str], refilled: Sequence[dict[str, Any]], captures: Sequence[Capture]
) -> dict[str, Any]:
    fields = ("capture", "layer", "block", "site", "key", "what", "graphs")
    return {
        "ok": not damage,
        "unfinished": [
            {"capture": held.record.name, "blocks": len(held.blocks), "planned": held.record.plan.n_blocks}
            for held in _unfinished(captures)
        ],
        "damaged": [{field: getattr(d, field) for field in fields} for d in damage],
        "graphs": graphs,
        "refilled": refilled,
    }


def _print(
    damage: Sequence[Damage], graphs: Sequence[str], refilled: Sequence[dict[str, Any]], captures: Sequence[Capture]
) -> None:
    for item in damage:
        terminal.out.print(f"damaged: {item}", style="red", soft_wrap=True, markup=False)
    for row in refilled:
        terminal.out.print(
            f"capture {row['capture']!r}, block {row['block']}: recomputed, "
            f"largest difference {row['largest_difference']:.3g}"
        )
    n_blocks = sum(len(held.blocks) for held in captures)
    checked = f"{terminal.plural(n_blocks, 'block')} of {terminal.plural(len(captures), 'capture')}"
    for held in _unfinished(captures):
        terminal.out.print(
            f"capture {held.record.name!r}: unfinished, {len(held.blocks):,} of {held.record.plan.n_blocks:,} blocks "
            "are there, --resume goes on",
            soft_wrap=True,
            markup=False,
        )
    if graphs:
        checked += f", {terminal.plural(len(graphs), 'set')} of graphs"
    well = terminal.plural(len(damage), "damaged part") if damage else "all well"
    terminal.out.print(f"{checked}: {well}.")

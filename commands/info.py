"""`actstore info` and `actstore verify`: the content of a store, and whether it agrees with its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands import completion
from actstore.commands.executors import On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (  # noqa: TC001  (Typer reads them)
    Device,
    Json,
    ModelOption,
    Quiet,
    StorePath,
    TrustRemoteCode,
)
from actstore.display import terminal
from actstore.display.reports import describe_store, print_json, print_store
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.capture.statistics.standing import standing
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.damage import Damage
    from actstore.store.reader import Capture


SEE = "`actstore stats --sort overflow` shows where"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(info)
    app.command()(verify)


def info(store: StorePath, quiet: Quiet = False, as_json: Json = False) -> None:
    """The content of STORE: the model, its layers, every capture and how much of it is written.

    Example: `actstore info gpt2.actstore`
    """
    with terminal.spinner("adding up sizes", enabled=not quiet):
        opened = Store(store)
        described = describe_store(opened)
        finished = [one for one in opened.read_captures()[0].values() if one.is_finished]
        warnings = [sentence for one in finished for sentence in overflow_sentences(one, consequence=SEE)]
    if as_json:
        print_json(described)
    else:
        print_store(described)
        terminal.warn(warnings)


def verify(
    store: StorePath,
    capture: Annotated[
        str | None,
        typer.Option(
            "--capture", metavar="NAME", help="Only this capture. [default: all]", autocompletion=completion.captures
        ),
    ] = None,
    refill: Annotated[int, typer.Option(min=0, help="Number of blocks to recompute with the model and compare.")] = 0,
    model: ModelOption = None,
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the captured images, where they have moved.")
    ] = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check every checksum of STORE, those of graphs and edits too; with --refill, also values against the model.

    Without --capture, the store's own tables, tokenizer and weights are checked too. Captures of earlier versions have no
    checksums of single rows and are called unchecked; where verify finds them right, readers need not check them again.
    Blocks are divided among --workers; the model runs in one process. Exit status 1 where something is damaged.

    Example: `actstore verify gpt2.actstore --refill 2`
    """
    from actstore.store.verify import open_captures, reading_once, verify_graphs, verify_root

    opened = Store(reading_once(store))
    captures, damage = open_captures(opened, capture)
    if not capture:
        with terminal.spinner("checking the store's own files", enabled=not quiet):
            damage += verify_root(opened.folder)
    damage += _check(captures, workers, on, quiet)
    refilled: list[dict[str, Any]] = []
    if refill:
        from actstore.engine.verify.refill import refill_captures

        with terminal.spinner("recomputing blocks", enabled=not quiet):
            refilled, differences = refill_captures(
                captures, refill, damage, named=bool(capture), model=model, images=images, device=device,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
        damage += differences
    with terminal.spinner("checking graphs", enabled=not quiet):
        graphs, damaged_graphs = verify_graphs(opened.folder, capture)
    damage += damaged_graphs
    undamaged = [one for one in captures if one.record.name not in {d.capture for d in damage}]
    terminal.warn(sentence for one in undamaged for sentence in overflow_sentences(one, consequence=SEE))
    if as_json:
        print_json(_describe(damage, graphs, refilled, captures))
    else:
        _print(damage, graphs, refilled, captures)
    if damage:
        raise typer.Exit(1)


def _check(captures: Sequence[Capture], workers: int | None, on: str, quiet: bool) -> list[Damage]:
    """The damage of all captures, block after block."""
    from actstore.engine.workers.scan import Scan, executor_of
    from actstore.store.verify import record_verified, verify_captures

    scan = Scan(executor_of(workers, on))
    damage: list[Damage] = []
    n_blocks, n_checked = sum(len(one.blocks) for one in captures), 0
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:

        def count(_: int) -> None:
            nonlocal n_checked
            n_checked += 1
            advance(n_checked, n_blocks)

        for one, found in zip(captures, verify_captures(captures, count, scan), strict=True):
            damage += found
            record_verified(one, found)
    return damage


def _unfinished(captures: Sequence[Capture]) -> list[Capture]:
    return [one for one in captures if standing(one).is_unfinished]


def _describe(
    damage: Sequence[Damage], graphs: Sequence[str], refilled: Sequence[dict[str, Any]], captures: Sequence[Capture]
) -> dict[str, Any]:
    fields = ("capture", "layer", "block", "site", "key", "what", "graphs")
    return {
        "ok": not damage,
        "unfinished": [
            {"capture": one.record.name, "blocks": len(one.blocks), "planned": one.record.plan.n_blocks}
            for one in _unfinished(captures)
        ],
        "unchecked": [one.record.name for one in captures if not one.record.is_checked],
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
    n_blocks = sum(len(one.blocks) for one in captures)
    checked = f"{terminal.plural(n_blocks, 'block')} of {terminal.plural(len(captures), 'capture')}"
    for one in _unfinished(captures):
        terminal.out.print(
            f"capture {one.record.name!r}: unfinished, {len(one.blocks):,} of {one.record.plan.n_blocks:,} blocks are written; "
            + ("`actstore finish` ends it" if one.is_complete else "`actstore fill`, or --resume, continues"),
            soft_wrap=True,
            markup=False,
        )
    for name in (one.record.name for one in captures if not one.record.is_checked):
        terminal.out.print(
            f"capture {name!r}: unchecked, of an earlier version: single rows have no checksums, whole files are compared",
            soft_wrap=True,
            markup=False,
        )
    if graphs:
        checked += f", {terminal.plural(len(graphs), 'set')} of graphs"
    verdict = terminal.plural(len(damage), "damaged part") if damage else "all well"
    terminal.out.print(f"{checked}: {verdict}.")
    if damage:
        terminal.out.print("`actstore repair` makes again what can be made, and names the rest.")

"""`actstore fill` and `actstore finish`: what workers do with a capture that `actstore plan` has planned, and how it ends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.commands.capture.options import AllowMixed, Threads  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    CaptureName,
    Device,
    Json,
    ModelOption,
    Quiet,
    StorePath,
    Sync,
    TrustRemoteCode,
    given,
)
from actstore.display import terminal
from actstore.display.reports import describe_store, print_json, print_store
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.store.reader import Capture


def fill(
    ctx: typer.Context,
    store: StorePath,
    capture: CaptureName = None,
    model: ModelOption = None,
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="RANK/WORLD",
            help="Which worker this is of how many, from 0, such as 3/8: where it begins. [default: anywhere]",
        ),
    ] = None,
    lease_s: Annotated[
        float, typer.Option("--lease", help="Seconds without a sign of life after which others take its blocks over.")
    ] = 60.0,
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the captured images, where they have moved.")
    ] = None,
    allow_mixed: AllowMixed = False,
    threads: Threads = None,
    device: Device = "auto",
    sync: Sync = True,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fill a planned capture of STORE, beside any number of other workers, until all of its blocks are there.

    Needs the store and the model, neither corpus nor tokenizer. Workers may be started, stopped and killed at any time: the
    others, or the next, go on.

    Example: `actstore fill gpt2.actstore --worker $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`
    """
    from actstore.engine.filling.api import FillOptions
    from actstore.engine.filling.api import fill as run

    rank, n_workers = parse_worker(worker)
    with terminal.CaptureBar(enabled=not quiet) as bar:
        blocks = run(
            store, model, capture=capture, worker=rank, n_workers=n_workers, options=FillOptions(**given(ctx, FillOptions)),
            progress=bar,
        )  # fmt: skip
    filled = Store(store).peek(capture)
    record = filled.record
    if as_json:
        print_json(
            {
                "capture": record.name,
                "n_blocks": record.plan.n_blocks,
                "n_committed": len(filled.blocks),
                "filled": blocks,
            }
        )
        return
    terminal.out.print(
        f"capture {record.name!r}: {terminal.plural(len(blocks), 'block')} filled by this worker, {len(filled.blocks):,} of "
        f"{record.plan.n_blocks:,} there; " + ("finished" if filled.is_finished else "`actstore finish` ends it"),
        soft_wrap=True,
        markup=False,
    )


def finish(store: StorePath, capture: CaptureName = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Add up the statistics of a filled capture of STORE, and write what stands for all of its blocks.

    Names the blocks that are missing, if any are, and ends with status 1. Nothing is done where the capture is finished.

    Example: `actstore finish gpt2.actstore`
    """
    from actstore.engine.filling.api import finish as run

    with terminal.spinner("adding up", enabled=not quiet):
        finished = run(store, capture)
    print_finished(finished, as_json=as_json)


def parse_worker(text: str | None) -> tuple[int | None, int | None]:
    """Rank and number of workers in a text such as 3/8."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None:
        raise InvalidInputError(f"A worker is its number from 0 and the number of all, such as 3/8, found {text!r}.")
    return int(match[1]), int(match[2])


def print_planned(capture: Capture, *, as_json: bool) -> None:
    """What was planned, and what comes next."""
    plan = capture.record.plan
    if as_json:
        names = ("n_documents", "n_windows", "n_tokens", "n_blocks", "block_slots")
        print_json({"capture": capture.record.name} | {name: getattr(plan, name) for name in names})
        return
    plural = terminal.plural
    terminal.out.print(
        f"capture {capture.record.name!r}: {plural(plan.n_tokens, 'token')} of {plural(plan.n_documents, 'document')} planned "
        f"in {plural(plan.n_blocks, 'block')} of {plan.block_slots:,} slots; `actstore fill` fills them",
        soft_wrap=True,
        markup=False,
    )


def print_finished(capture: Capture, *, as_json: bool) -> None:
    """The store of a finished capture."""
    described = describe_store(Store(capture.folder))
    if as_json:
        print_json(described)
    else:
        print_store(described)

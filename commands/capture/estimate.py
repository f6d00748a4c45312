"""What `actstore capture --dry-run` says. Knows nothing about how it was found out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.display import terminal
from actstore.display.progress_log import duration
from actstore.display.reports import print_json

if TYPE_CHECKING:
    from actstore.engine.capture.estimate import CaptureEstimate


def print_estimate(found: CaptureEstimate, *, as_json: bool) -> None:
    """The estimate as one JSON document, or as a few lines."""
    if not found.fits:
        size = terminal.format_bytes
        terminal.warn(
            [
                f"The capture needs about {size(found.nbytes)}, and the disk of {found.store} has "
                f"{size(found.free_nbytes or 0)} free: `actstore capture` will refuse it without --ignore-disk."
            ]
        )
    if as_json:
        print_json(found.as_json())
        return
    terminal.out.print(
        f"{found.model} over {found.corpus} into {found.store}, capture {found.name!r}: a dry run, nothing is written.",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    terminal.out.print(terminal.table(None, ["", ""], _rows(found)))


def _rows(found: CaptureEstimate) -> list[tuple[str, str]]:
    size, plural = terminal.format_bytes, terminal.plural
    weights = f", {size(found.weights_nbytes)} of it for weights" if found.weights_nbytes else ""
    free = f"; {size(found.free_nbytes)} are free" if found.free_nbytes is not None else ""
    return [
        ("corpus", f"{plural(found.n_documents, 'document')}, {plural(found.n_tokens, 'token')} to store"),
        (
            "plan",
            f"{plural(found.n_windows, 'window')} in {plural(found.n_blocks, 'block')} of {found.block_slots:,} slots",
        ),
        ("sites", f"{', '.join(found.sites)} at precision {found.precision}"),
        ("disk", f"about {size(found.nbytes)}{weights}{free}"),
        ("memory", f"{size(found.model_nbytes)} for the model, {size(found.buffers_nbytes)} for block buffers"),
        (
            "time",
            f"about {duration(found.total_s)} on {found.device} in {found.dtype}: planning {duration(found.planning_s)}, "
            f"loading {duration(found.loading_s)}, capturing {duration(found.capturing_s)}",
        ),
        ("measured", f"one batch of {found.batch_tokens:,} tokens in {found.batch_s:.3g} s"),
    ]

"""What `actstore capture --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.display import terminal
from actstore.display.progress_log import duration
from actstore.display.reports import print_json

if TYPE_CHECKING:
    from actstore.engine.capture.estimate import CaptureEstimate


def print_estimate(estimate: CaptureEstimate, *, as_json: bool) -> None:
    """The estimate as one JSON document, or as a few lines."""
    if not estimate.fits:
        size = terminal.format_bytes
        terminal.warn(
            [
                f"The capture needs about {size(estimate.nbytes)}, and the disk of {estimate.store} has "
                f"{size(estimate.free_nbytes or 0)} free: `actstore capture` will refuse it without --ignore-disk."
            ]
        )
    if as_json:
        print_json(estimate.as_json())
        return
    terminal.out.print(
        f"{estimate.model} over {estimate.corpus} into {estimate.store}, capture {estimate.name!r}: a dry run, nothing is "
        "written.",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    terminal.out.print(terminal.table(None, ["", ""], _rows(estimate)))


def _rows(estimate: CaptureEstimate) -> list[tuple[str, str]]:
    size, plural = terminal.format_bytes, terminal.plural
    weights = f", {size(estimate.weights_nbytes)} of it for weights" if estimate.weights_nbytes else ""
    free = f"; {size(estimate.free_nbytes)} are free" if estimate.free_nbytes is not None else ""
    return [
        ("corpus", f"{plural(estimate.n_documents, 'document')}, {plural(estimate.n_tokens, 'token')} to store"),
        (
            "plan",
            f"{plural(estimate.n_windows, 'window')} in {plural(estimate.n_blocks, 'block')} of {estimate.block_slots:,} slots",
        ),
        ("sites", f"{', '.join(estimate.sites)} at precision {estimate.precision}"),
        ("disk", f"about {size(estimate.nbytes)}{weights}{free}"),
        ("files", f"about {estimate.n_objects:,}" + (", bundled: two per block" if estimate.bundled else "")),
        ("memory", f"{size(estimate.model_nbytes)} for the model, {size(estimate.buffers_nbytes)} for block buffers"),
        (
            "time",
            f"about {duration(estimate.total_s)} on {estimate.device} in {estimate.dtype}: planning "
            f"{duration(estimate.planning_s)}, loading {duration(estimate.loading_s)}, capturing "
            f"{duration(estimate.capturing_s)}",
        ),
        ("measured", f"one batch of {estimate.batch_tokens:,} tokens in {estimate.batch_s:.3g} s"),
    ]

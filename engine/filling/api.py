"""`actstore.fill` and `actstore.finish`: a capture that was planned, filled by any number of workers, and finished by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.steps.finish import finish_capture
from actstore.engine.capture.steps.worker import FillOptions, Worker
from actstore.engine.devices.device import check_device
from actstore.engine.filling.kinds import block_filler
from actstore.engine.models.fingerprint import location_of
from actstore.engine.models.sources import ModelSource
from actstore.store.arguments import argument
from actstore.store.calls import checked
from actstore.store.capture.commits import missing_blocks
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.store.reader import Capture

__all__ = ["FillOptions", "fill", "finish"]


@checked
def fill(
    store: str | Path,
    model: ModelInput | None = None,
    *,
    capture: str | None = None,
    worker: int | None = None,
    n_workers: int | None = None,
    options: FillOptions | None = None,
    progress: CaptureProgress | None = None,
) -> tuple[int, ...]:
    """Fill a planned capture beside other workers, until all of its blocks are committed; those that this one committed.

    Needs neither the corpus nor the tokenizer. `model` is where the store's model is now, if not where it was captured from, or
    the model in memory; its fingerprint must be that of the store. `capture` is the only one, or `corpus`, unless named.
    `worker`, from 0, of `n_workers` begins with every n-th block, and goes on with whatever nobody else computes; without them
    it begins anywhere. Workers may come and go at any time. `options` say how it is done.

    Errors: `NotFoundError` where nothing is planned; `InvalidInputError` for another model, and for a machine or versions that
    may compute in other bits than workers before; `ReadOnlyError` where another process plans, repairs or finishes the capture;
    `CaptureError` where it stopped half-way: what was committed stays, and the next call goes on.

    >>> actstore.plan("gpt2", "corpus.jsonl", "gpt2.actstore")
    >>> actstore.fill("gpt2.actstore", worker=0, n_workers=8)     # on each of eight machines
    >>> actstore.finish("gpt2.actstore")
    """
    options = argument("options", options, FillOptions | None) or FillOptions()
    progress = argument("progress", progress, CaptureProgress | None) or CaptureProgress()
    worker, n_workers = _share(worker, n_workers)
    if not options.lease_s > 0:
        raise InvalidInputError(f"A lease is longer than 0 seconds, found {options.lease_s}. Check `lease_s`.")
    check_device(options.device)
    folder = Folder(store, read_only=False, sync=options.sync, storage_options=options.storage_options)
    found = _planned(folder, capture)
    if not missing_blocks(found.folder, found.record):
        return ()
    source = ModelSource.of(location_of(found.store.model) if model is None else model)
    one = Worker(found.folder, found.record, source, options, worker, n_workers)
    trusted = options.trust_remote_code
    return one.fill(lambda: block_filler(found.record, lambda: _processor(source, trusted), options.images), progress)


@checked
def finish(store: str | Path, capture: str | None = None, *, storage_options: dict[str, Any] | None = None) -> Capture:
    """Add up what the blocks of a filled capture have of their own, and finish it; the finished capture, for reading.

    `storage_options` open a store at a URL beyond what the environment says. Nothing is done where it is finished.
    `CaptureError` naming the blocks that are missing, `NotFoundError` where nothing is
    planned, `ReadOnlyError` where workers still fill the capture, or another process owns it.

    >>> actstore.finish("gpt2.actstore")
    """
    found = _planned(Folder(store, read_only=False, storage_options=storage_options), capture)
    with own(found.folder, found.record.name):
        finish_capture(found.folder, found.record)
    return Store(found.folder).capture(found.record.name)


def _planned(folder: Folder, name: str | None) -> Capture:
    try:
        return Store(folder).peek(name)
    except NotFoundError as error:
        raise NotFoundError(f"{error} Plan a capture first, with `actstore.plan(…)`.") from None


def _share(worker: int | None, n_workers: int | None) -> tuple[int | None, int]:
    """The worker's number and that of all; `InvalidInputError` for one without the other, or one that there is not."""
    worker, n_workers = argument("worker", worker, int | None), argument("n_workers", n_workers, int | None)
    if (worker is None) != (n_workers is None):
        raise InvalidInputError("A worker has a number and a total. Pass both `worker` and `n_workers`, or neither.")
    if worker is None or n_workers is None:
        return None, 1
    if not 0 <= worker < n_workers:
        raise InvalidInputError(
            f"Workers are numbered from 0, each below their number: found worker {worker} of {n_workers}. Check `worker`."
        )
    return worker, n_workers


def _processor(source: ModelSource, trust_remote_code: bool) -> VisionProcessor:
    from actstore.engine.models.vision.inputs import VisionProcessor  # only here: it loads the image library

    return VisionProcessor.load(source.name, trust_remote_code=trust_remote_code)

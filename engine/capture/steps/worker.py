"""One worker of a capture that is planned: it needs the store and the model, and divides the blocks with others by claims."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.steps.filler import Filler, blocks_so_far
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.sources import ModelSource
from actstore.kernels.torch_threads import torch_threads
from actstore.store.arguments import Typed
from actstore.store.calls import checks
from actstore.store.capture.record import read_capture
from actstore.store.capture.workers.claims import LEASE_S, BlockClaims
from actstore.store.errors import ActstoreError, CaptureError, NotFoundError, StorageError
from actstore.store.storage.lock import share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


@checks
@dataclass(frozen=True)
class FillOptions(Typed):
    """How a worker fills a capture. What it fills, and how, the capture's record says."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes the first GPU where there is one."""
    threads: int | None = None
    """Encoder threads; all the processors where the model runs on them too, half of them where it runs on a GPU."""
    sync: bool = True
    """Whether a block counts only once the disk has it."""
    lease_s: float = LEASE_S
    """Seconds without a sign of life after which others take over what this worker claims."""
    images: str | None = None
    """Folder of the captured images, where they have moved."""
    allow_mixed: bool = False
    """Fill although this machine, or its versions, may compute in other bits than the others; the capture records it."""
    trust_remote_code: bool = False
    storage_options: dict[str, Any] | None = field(default=None, repr=False, hash=False)
    """What opens the store at a URL beyond what the environment says; not stored."""


_GOES_ON: Final = "What was committed stays; `actstore.fill(…)` goes on with the rest."


@dataclass(frozen=True)
class Worker:
    """One of `n_workers` on a capture; a `number` of None begins anywhere."""

    folder: Folder
    record: CaptureRecord
    source: ModelSource
    options: FillOptions
    number: int | None = None
    n_workers: int = 1

    def fill(self, load_filling: Callable[[], FillBlocks], progress: CaptureProgress) -> tuple[int, ...]:
        """Fill what others do not, until every block is committed; the blocks that this one committed.

        `load_filling` gives what fills blocks of this kind of capture. Raises as `actstore.fill`.
        """
        folder, record, options = self.folder, self.record, self.options
        committed: list[int] = []
        try:
            with self.source.ready_to_run(), share(folder, record.name):
                trusted = options.trust_remote_code
                model = self.source.load(dtype=record.dtype, device=options.device, trust_remote_code=trusted)
                check_model(folder, record.model_fingerprint, fingerprint_of(model), model.spec.name)
                filler = Filler(
                    folder, record, model, load_filling(), progress, options.threads, allow_mixed=options.allow_mixed
                )
                claims = BlockClaims(
                    folder, record, worker=self.number, n_workers=self.n_workers, lease_s=options.lease_s
                )
                with claims, self._naming(claims):
                    filler.fill_claimed(claims, committed.append)
        except KeyboardInterrupt:
            raise CaptureError(
                f"Interrupted: {blocks_so_far(folder, record)}. `actstore.fill(…)` goes on with the rest."
            ) from None
        except StorageError as error:
            if error.may_pass:
                error.args = (f"{error} {_GOES_ON}",)
            raise
        return tuple(committed)

    @contextmanager
    def _naming(self, claims: BlockClaims) -> Iterator[None]:
        """What fails in one of several processes is told with the worker and its blocks."""
        try:
            yield
        except CaptureError:
            raise  # of the writer, which names the block
        except Exception as error:
            if self.number is None or not claims.held:
                raise
            what = str(error) if isinstance(error, ActstoreError) else f"{type(error).__name__}: {error}"
            if isinstance(error, StorageError) and error.may_pass:
                what = f"{what} {_GOES_ON}"
            raise CaptureError(
                f"Worker {self.number} of {self.n_workers} failed in block {', '.join(map(str, claims.held))} of capture "
                f"{self.record.name!r}: {what}"
            ) from error


@dataclass(frozen=True)
class WorkerTask:
    """What an executor runs: called with a worker's number, in a process of its own, it is that worker."""

    folder: Folder
    capture: str
    model: str
    fill_blocks: FillBlocks
    options: FillOptions
    n_workers: int
    torch_threads: int
    """Of each worker, where they share the processors of a machine."""

    def __call__(self, number: int) -> tuple[int, ...]:
        """The blocks that this worker committed."""
        record = read_capture(self.folder, self.capture)
        if record is None:
            raise NotFoundError(f"{self.folder} has no capture {self.capture!r} any more.")
        options, n_gpus = self.options, torch.cuda.device_count()
        if options.device == "auto" and n_gpus > 1:
            options = replace(options, device=f"cuda:{number % n_gpus}")
        worker = Worker(self.folder, record, ModelSource(self.model), options, number, self.n_workers)
        with torch_threads(self.torch_threads):
            return worker.fill(lambda: self.fill_blocks, CaptureProgress())

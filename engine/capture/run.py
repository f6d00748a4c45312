"""What every run that fills a capture shares: options, checks of the target, lock, disk, root, statistics, resuming.

A run plans or checks its plan, loads the model, fills the blocks that are missing and finishes the statistics; its subclasses
say what is planned and how a block is filled (`corpus_run`, `images.run`, `attribution.attribute`, `graphs.probes.run`).
"""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedTokenizerBase  # noqa: TC002

from actstore.engine.capture.root import write_store_root
from actstore.engine.capture.settings import OF_STORAGE
from actstore.engine.capture.sizes import check_memory, estimate_nbytes, n_buffers_on, with_storage
from actstore.engine.capture.steps.filler import Filler, blocks_so_far
from actstore.engine.capture.steps.finish import finish_capture
from actstore.engine.capture.steps.worker import FillOptions
from actstore.engine.capture.steps.workers import fill_by_workers
from actstore.engine.capture.target import remove_unplanned
from actstore.engine.models.fingerprint import check_model, check_root, fingerprint_of
from actstore.engine.models.names import DTYPES
from actstore.engine.workers.choose import check_executor, executor_for
from actstore.store.arguments import Typed, argument
from actstore.store.calls import checks
from actstore.store.capture.commits import missing_blocks
from actstore.store.capture.identity import check_belongs
from actstore.store.capture.statistics.capture_statistics import is_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.tokens.order import other_order
from actstore.store.capture.writer import create_capture
from actstore.store.errors import CaptureError, FormatError, InvalidInputError, NotFoundError, StorageError
from actstore.store.model import root
from actstore.store.model.remains import remove_beginning
from actstore.store.reader import read_capture
from actstore.store.storage.lock import own, own_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.models.load import LoadedModel, ModelSpec
    from actstore.engine.models.sources import ModelSource
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


@checks
@dataclass(frozen=True)
class RunOptions(Typed):
    """How a capture is carried out; nothing here changes what ends up in it, but `dtype` and `tokenizer`."""

    resume: bool = False
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    """Name, path or loaded tokenizer; the model's own by default."""
    memory: int | None = None
    """Bytes that block buffers may take: blocks are planned to fit. Three times the MLPs' weights, 1 to 32 GiB, unless said."""
    threads: int | None = None
    """Encoder threads; all the processors where the model runs on them too, half of them where it runs on a GPU."""
    weights: bool = True
    """Whether write vectors and unembedding are copied into the store."""
    ignore_disk: bool = False
    """Start although the estimate says that the disk is too small."""
    sync: bool = True
    """Whether a block counts only once the disk has it; without, a power cut may damage what was written in the last minute."""
    trust_remote_code: bool = False
    workers: int | None = None
    """Processes that fill the capture, each with a model of its own; they share the processors, and take the GPUs in turn. One
    by default; on Ray one per GPU, or per machine where there is none."""
    on: str = "local"
    """Where they run: `local`; `ray`, the cluster of this machine or of RAY_ADDRESS; or the one at `ray://HOST:PORT`."""
    gpus_per_worker: float | None = None
    """GPUs that Ray gives each worker, one by default where there are some; parts of one are shared."""
    allow_mixed: bool = False
    """Go on with a capture although this machine, or its versions, may compute in other bits; the capture records it."""
    strict: bool = False
    """Stop at the first image that cannot be used, instead of skipping it."""
    storage_options: dict[str, Any] | None = field(default=None, repr=False, hash=False)
    """What opens the store at a URL beyond what the environment says: address, credentials, timeouts. They are not stored."""


def check_options(name: str, options: RunOptions) -> None:
    """Raise `InvalidInputError` for a capture's name that cannot be one, and for a dtype that is none."""
    argument("name", name, str)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "zarr.json":
        raise InvalidInputError(f"A capture's name is letters, digits, '.', '_' and '-', found {name!r}. Check `name`.")
    if options.dtype not in DTYPES:
        raise InvalidInputError(f"`dtype` is one of {', '.join(DTYPES)}: found {options.dtype!r}.")
    check_executor(options.on, options.workers, options.gpus_per_worker)


@dataclass
class Run(ABC):
    """One capture to be made: `plan`, then `fill` for all of its blocks, then `finish`, each under `owned`.

    `carry_out` is the three in one process. A process may also take one step, or fill some of the blocks, and leave the rest to
    others: what a step needs of an earlier one, it reads from the store.
    """

    command: ClassVar[str]
    """The command line's name of it."""

    folder: Folder
    name: str
    spec: ModelSpec
    corpus: str
    options: RunOptions
    progress: CaptureProgress
    source: ModelSource = field(kw_only=True)
    _loaded: LoadedModel | None = field(default=None, init=False)
    """The model, once this process has loaded it for the capture."""
    _fills: bool = field(default=False, init=False)
    """Whether this process is to fill what it plans, and needs the memory for it."""
    _running: RunningStatistics | None = field(default=None, init=False)
    """What blocks are added to as they are committed, where this process is to fill all that are missing."""

    def carry_out(self, requested: Mapping[str, object]) -> None:
        """Make the capture: all steps, over all blocks that are missing, which workers fill where the options ask for some."""
        if self.options.on != "local" or (self.options.workers or 1) > 1:
            self._carry_out_by_workers(requested)
            return
        self._fills = True
        with self.owned():
            record = self.plan(requested)
            missing = missing_blocks(self.folder, record)
            if missing or not is_finished(self.folder, record):
                self._running = RunningStatistics(self.folder, record)
            if missing:
                self.fill(missing)
            self.finish()

    def _carry_out_by_workers(self, requested: Mapping[str, object]) -> None:
        options = self.options
        if self.source.model is not None:
            raise InvalidInputError(
                "Several `workers` load the model each. Pass its name or folder, not a model in memory."
            )
        gpus = 0.0 if options.device == "cpu" and options.on != "local" else options.gpus_per_worker
        executor = executor_for(options.on, options.workers, gpus)
        with self.owned():
            record = self.plan(requested)
        self._let_go()  # the workers need the memory
        of_worker = FillOptions(
            device=options.device,
            threads=options.threads,
            sync=options.sync,
            allow_mixed=options.allow_mixed,
            trust_remote_code=options.trust_remote_code,
        )
        path = Path(self.source.name)
        model = str(path.absolute()) if path.is_dir() else self.source.name  # workers have folders of their own
        fill_by_workers(executor, self.folder, record, model, self.fill_blocks(), of_worker, self.progress)
        with self.owned():
            self.finish()

    def _let_go(self) -> None:
        """Drop the model that this process has loaded."""
        self._loaded = None

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the capture for writing; `ReadOnlyError` where another process does.

        What stops a step from outside is a `CaptureError` that says how to go on, and what was committed stays. A capture whose
        plan was not completed is removed.
        """
        with own(self.folder, self.name):
            try:
                with self.source.ready_to_run():
                    yield
            except BaseException as error:
                record, is_kept = self._left_by_failure()
                if isinstance(error, KeyboardInterrupt):
                    raise CaptureError(self._interrupted(record, is_kept=is_kept)) from None
                if record is not None and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise CaptureError(self._stopped(record, f"The disk of {self.folder} is full")) from None
                if isinstance(error, StorageError) and error.may_pass:
                    error.args = (f"{error} What was committed stays; the same call with `resume=True` goes on.",)
                raise

    def _left_by_failure(self) -> tuple[CaptureRecord | None, bool]:
        """The capture's record, and whether anything of the capture is kept, after removing one that was not planned."""
        try:
            record = read_capture(self.folder, self.name)
            return record, record is not None or remove_unplanned(self.folder, self.name)
        except (FormatError, StorageError):
            return None, True  # what is damaged, or lost, is not ours to remove; what cannot be reached, stays

    def plan(self, requested: Mapping[str, object]) -> CaptureRecord:
        """Write the plan, the store's root and the capture's record, or check those that are there: the record.

        `InvalidInputError` where the capture is there and is not to be resumed, or was begun with anything else.
        """
        record = read_capture(self.folder, self.name)
        if record is not None:
            if not self.options.resume:
                raise InvalidInputError(
                    f"{self.folder} already has a capture {self.name!r}. Continue it with `resume=True`."
                )
            check_belongs(self.folder, record, root.read_root_record(self.folder))
            self._check_command(record)
            self._check_storage(record, requested)
            others = {name: value for name, value in requested.items() if name not in OF_STORAGE}
            self._loaded = self._check_same(record, others)
            return record
        record, self._loaded, tokenizer = self._begin(requested)
        record = with_storage(record, requested)
        self._check_disk(record)
        if self._fills:
            check_memory(record, n_buffers_on(self._loaded.device))
        self._write_root(self._loaded, record, tokenizer)
        return create_capture(self.folder, record)

    def missing_blocks(self) -> list[int]:
        """The blocks of the plan that are not committed, ascending."""
        return missing_blocks(self.folder, self._record())

    def fill(self, blocks: Sequence[int], on_commit: Callable[[int], None] = lambda block: None) -> None:
        """Run the model over some of the planned blocks, in the order given, and commit each, of which `on_commit` is told.

        Blocks that are committed already are passed over. `InvalidInputError` for a block that is not planned, and where this
        process computes in other bits than those that computed blocks before.
        """
        record = self._record()
        n_blocks, missing = record.plan.n_blocks, set(missing_blocks(self.folder, record))
        if outside := [block for block in blocks if not 0 <= block < n_blocks]:
            raise InvalidInputError(f"Capture {self.name!r} has blocks 0 to {n_blocks - 1}, found block {outside[0]}.")
        unfilled = [block for block in dict.fromkeys(blocks) if block in missing]
        if not unfilled:
            return
        if self._loaded is None:
            self._loaded = self._load_again(record)
        threads, allow_mixed = self.options.threads, self.options.allow_mixed
        filler = Filler(
            self.folder, record, self._loaded, self.fill_blocks(), self.progress, threads, allow_mixed=allow_mixed
        )
        filler.fill(unfilled, on_commit, self._running)

    def finish(self) -> None:
        """Add up the statistics of all blocks and write what stands for all of them, the table of neurons and the index last.

        `CaptureError` where a block is missing; nothing is done where the capture is finished and has its index.
        """
        finish_capture(self.folder, self._record(), self._running)

    def _record(self) -> CaptureRecord:
        record = read_capture(self.folder, self.name)
        if record is None:
            raise NotFoundError(f"{self.folder} has no capture {self.name!r}. Plan it first.")
        return record

    @abstractmethod
    def _begin(self, requested: Mapping[str, object]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        """Write the plan and load the model: the record of the capture to be made."""

    @abstractmethod
    def _check_same(self, record: CaptureRecord, requested: Mapping[str, object]) -> LoadedModel:
        """The model, after refusing to resume with anything that differs from what was begun, naming it."""

    @abstractmethod
    def fill_blocks(self) -> FillBlocks:
        """What fills the blocks of this kind of capture."""

    def _check_command(self, record: CaptureRecord) -> None:
        begun_by = record.settings.get("command", "capture")
        if begun_by != self.command:
            raise InvalidInputError(
                f"Capture {self.name!r} of {self.folder} was begun by {_call(begun_by)}, not {_call(self.command)}. "
                "Resume it with that, or give this capture another `name`."
            )

    def _check_storage(self, record: CaptureRecord, requested: Mapping[str, object]) -> None:
        there = {"bundle": record.bundled, "compression": record.compression or "that of an earlier version"}
        for name, value in there.items():
            if requested.get(name) not in (None, value):
                self._refuse([f"{name} is {value} there and {requested[name]} now"])
        self._refuse([*filter(None, [other_order(requested.get("order"), record.order, record.sites)])])

    def _load(self, dtype: str) -> LoadedModel:
        device, trust = self.options.device, self.options.trust_remote_code
        return self.source.load(dtype=dtype, device=device, trust_remote_code=trust)

    def _load_tokenizer(self) -> TextTokenizer:
        """The tokenizer of the options, else the model's own; `InvalidInputError` where there is none."""
        return self.source.load_tokenizer(self.options.tokenizer, trust_remote_code=self.options.trust_remote_code)

    def _load_again(self, record: CaptureRecord) -> LoadedModel:
        """The model with which a capture was begun; `InvalidInputError` for another."""
        model = self._load(self.options.dtype if self.options.dtype != "auto" else record.dtype)
        check_model(self.folder, record.model_fingerprint, fingerprint_of(model), self.spec.name)
        return model

    def _check_disk(self, record: CaptureRecord) -> None:
        needed = estimate_nbytes(record)
        self.progress.started(record.plan.n_tokens, 0, needed)
        free = self.folder.free_nbytes()
        if free is not None and needed > free and not self.options.ignore_disk:
            raise InvalidInputError(
                f"The capture needs about {needed / 1e9:.2f} GB, and the disk of {self.folder} has {free / 1e9:.2f} GB free. "
                "Make room, lower `precision` or `max_tokens`, or capture all the same with `ignore_disk=True`."
            )

    def _write_root(self, model: LoadedModel, record: CaptureRecord, tokenizer: TextTokenizer | None) -> None:
        """Write the root where there is none yet; `InvalidInputError` where another process has made it of another model."""
        with own_root(self.folder):
            is_first = not root.is_store(self.folder)
            if is_first:
                remove_beginning(self.folder)
            else:
                check_root(self.folder, record.model_fingerprint, self.spec.name)
            if tokenizer is not None:
                root.write_tokenizer(self.folder, tokenizer.to_json(), tokenizer.vocabulary(), tokenizer.fingerprint)
            if is_first:
                write_store_root(self.folder, model, record.model_fingerprint, weights=self.options.weights)

    def _refuse(self, differences: list[str]) -> None:
        """Raise where something differs from what the capture was begun with."""
        if differences:
            raise InvalidInputError(
                f"Capture {self.name!r} of {self.folder} cannot be resumed: {'; '.join(differences)}. "
                "Resume with what it was begun with, or begin another capture under another `name`."
            )

    def _interrupted(self, record: CaptureRecord | None, *, is_kept: bool) -> str:
        if record is not None:
            return self._stopped(record, "Interrupted")
        before = f"Interrupted before the plan of capture {self.name!r} was complete"
        if not is_kept:
            return f"{before}: nothing of it is kept. Run it again."
        kept = f"What the model has answered so far is kept in {self.folder}"
        return f"{before}. {kept}: run the same command with `resume=True` to go on."

    def _stopped(self, record: CaptureRecord, reason: str) -> str:
        so_far = blocks_so_far(self.folder, record)
        return f"{reason}: {so_far}. Run the same command with `resume=True` to fill the rest."


def _call(command: str) -> str:
    """The call that makes captures as the command of a record does."""
    return f"`{'store.graphs.probe' if command == 'graph probe' else f'actstore.{command}'}(…)`"

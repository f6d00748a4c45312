"""What every run that fills a capture shares: options, checks of the target, lock, disk, root, statistics, resuming.

A run plans or checks its plan, loads the model, fills the blocks that are missing and finishes the statistics; what is
planned and how a block is filled is its subclass' business (`capture_run`, `attribution.attribute`).
"""

from __future__ import annotations

import errno
import os
import re
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  (RunOptions are checked by their annotations)
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedTokenizerBase  # noqa: TC002

from actstore.engine.capture.root import write_store_root
from actstore.engine.capture.sizes import estimate_nbytes
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.names import DTYPES
from actstore.store import layout
from actstore.store.arguments import Typed, argument
from actstore.store.capture.commits import committed_blocks
from actstore.store.capture.neuron_table import write_finished
from actstore.store.capture.statistics import RunningStatistics, is_finished
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.errors import CaptureError, InvalidInputError
from actstore.store.model import root
from actstore.store.reader import read_capture
from actstore.store.storage.lock import is_unlocked, own

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel, ModelSpec
    from actstore.engine.models.sources import ModelSource
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.capture.statistics import CaptureStatistics
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


@dataclass(frozen=True)
class RunOptions(Typed):
    """How a capture is carried out; nothing here changes what ends up in it, but `dtype` and `tokenizer`."""

    resume: bool = False
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    """Name, path or loaded tokenizer; the model's own by default."""
    memory: int | None = None
    """Bytes for block buffers; a quarter of what is free, at most 4 GiB."""
    threads: int | None = None
    """Encoder threads; all the processors where the model runs on them too, half of them where it runs on a GPU."""
    weights: bool = True
    """Whether write vectors and unembedding are copied into the store."""
    ignore_disk: bool = False
    """Start although the estimate says that the disk is too small."""
    trust_remote_code: bool = False
    strict: bool = False
    """Stop at the first image that cannot be used, instead of passing over it."""


def check_options(name: str, options: RunOptions) -> None:
    """Raise `InvalidInputError` for a capture's name that cannot be one, and for a dtype that is none."""
    argument("name", name, str)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "zarr.json":
        raise InvalidInputError(f"A capture's name is letters, digits, '.', '_' and '-', found {name!r}. Mend --name.")
    if options.dtype not in DTYPES:
        raise InvalidInputError(f"--dtype is one of {', '.join(DTYPES)}: found {options.dtype!r}.")


def check_target(folder: Folder, name: str, spec: ModelSpec, resume: bool) -> None:
    """Raise `InvalidInputError` where the folder holds another model, the capture already, or something else."""
    if root.is_store(folder):
        known = root.read_root(folder)
        if (known.model_type, known.d_model, len(known.layers)) != (spec.model_type, spec.d_model, len(spec.layers)):
            raise InvalidInputError(
                f"{folder} holds {known.name} ({known.model_type}, {len(known.layers)} layers of width {known.d_model}), not "
                f"{spec.name} ({spec.model_type}, {len(spec.layers)} of {spec.d_model}). One store has one model: name another."
            )
        if not resume and read_capture(folder, name) is not None:
            raise InvalidInputError(
                f"{folder} already has a capture {name!r}. Continue it with --resume, or name the new one with --name."
            )
    elif folder.local_path() is not None:
        # What a first capture leaves that was killed before the store's root was written is ours to write over.
        begun = any(folder.exists(f"captures/{other}/{layout.LOCK_NAME}") for other in folder.names("captures"))
        ours = {"captures", "tokenizer", "weights", "neurons.parquet", "zarr.json"} if begun else set()
        strangers = sorted({entry.removesuffix(".partial") for entry in folder.names("")} - ours)
        if strangers:
            raise InvalidInputError(
                f"{folder} is a folder with other content ({strangers[0]}, …). Name a new path for the store."
            )


@contextmanager
def removed_on_failure(folder: Folder, name: str) -> Iterator[None]:
    """Take away a capture that failed before its plan was recorded, and the store with it if it was to be its first.

    What a model has answered meanwhile is kept: it took a forward pass a token.
    """
    try:
        yield
    except BaseException as error:
        if folder.names(layout.generated_prefix(name)) and read_capture(folder, name) is None:
            if isinstance(error, KeyboardInterrupt):
                raise CaptureError(
                    f"Interrupted before the plan of capture {name!r} was complete. What the model has answered so far is kept "
                    f"in {folder}: run the same command with --resume to go on."
                ) from None
            raise
        if folder.local_path() is not None and read_capture(folder, name) is None and is_unlocked(folder, name):
            with suppress(OSError):
                folder.delete(layout.capture_key(name))
                if not root.is_store(folder) and not set(folder.names("captures")) - {"zarr.json"}:
                    folder.delete("")
        if isinstance(error, KeyboardInterrupt):
            raise CaptureError(
                f"Interrupted before the plan of capture {name!r} was complete: nothing of it is kept. Run it again."
            ) from None
        raise


@dataclass
class Run(ABC):
    """One call of a command that fills a capture, with everything its steps share."""

    command: ClassVar[str]
    """The command line's name of it."""

    folder: Folder
    name: str
    spec: ModelSpec
    corpus: str
    options: RunOptions
    progress: CaptureProgress
    source: ModelSource = field(kw_only=True)

    def carry_out(self, requested: Mapping[str, Any]) -> None:
        """Plan or check the plan, load the model, fill what is missing, finish the statistics; owns the capture meanwhile.

        What stops it from outside is a `CaptureError`, and what was committed before stays.
        """
        with removed_on_failure(self.folder, self.name), own(self.folder, self.name), self.source.as_it_is():
            record = read_capture(self.folder, self.name)
            if record is not None and not self.options.resume:
                raise InvalidInputError(
                    f"{self.folder} already has a capture {self.name!r}. Continue it with --resume."
                )
            if record is None:
                record, model, tokenizer = self._begin(requested)
                self._check_disk(record)
                self._write_root(model, record, tokenizer)
                create_capture(self.folder, record)
            else:
                self._check_command(record)
                model = self._check_same(record, requested)
            with self._resumable(record):
                self._fill(record, model)
                running = RunningStatistics(self.folder, record)
                running.advance()
                if not is_finished(self.folder, record):
                    self._finish(record, running.total)

    @abstractmethod
    def _begin(self, requested: Mapping[str, Any]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        """Write the plan and load the model: the record of the capture to be made."""

    @abstractmethod
    def _check_same(self, record: CaptureRecord, requested: Mapping[str, Any]) -> LoadedModel:
        """The model, after refusing to resume with anything that differs from what was begun, naming it."""

    @abstractmethod
    def _fill_blocks(self, record: CaptureRecord, model: LoadedModel, writer: CaptureWriter, blocks: list[int]) -> None:
        """Fill and submit the blocks."""

    def _finish(self, record: CaptureRecord, total: CaptureStatistics) -> None:
        """Write what stands for all blocks, which are committed; the table of neurons last."""
        write_finished(self.folder, record, total)

    def _check_command(self, record: CaptureRecord) -> None:
        begun_by = record.settings.get("command", "capture")
        if begun_by != self.command:
            raise InvalidInputError(
                f"Capture {self.name!r} of {self.folder} was begun by `actstore {begun_by}`, not `actstore {self.command}`. "
                "Resume it with that, or name another capture with --name."
            )

    def _load(self, dtype: str) -> LoadedModel:
        return self.source.load(
            dtype=dtype, device=self.options.device, trust_remote_code=self.options.trust_remote_code
        )

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
                "Make room, lower --precision or --max-tokens, or insist with --ignore-disk."
            )

    def _write_root(self, model: LoadedModel, record: CaptureRecord, tokenizer: TextTokenizer | None) -> None:
        if tokenizer is not None:
            root.write_tokenizer(self.folder, tokenizer.to_json(), tokenizer.vocabulary(), tokenizer.fingerprint)
        if not root.is_store(self.folder):
            write_store_root(self.folder, model, record.model_fingerprint, weights=self.options.weights)

    def _refuse(self, differences: list[str]) -> None:
        """Raise where something differs from what the capture was begun with."""
        if differences:
            raise InvalidInputError(
                f"Capture {self.name!r} of {self.folder} cannot be resumed: {'; '.join(differences)}. "
                "Resume with what it was begun with, or begin another capture with --name."
            )

    def _fill(self, record: CaptureRecord, model: LoadedModel) -> None:
        done = set(committed_blocks(self.folder, self.name))
        missing = [block for block in range(record.plan.n_blocks) if block not in done]
        if not missing:
            return
        tokens_done = record.plan.n_tokens * len(done) // record.plan.n_blocks
        self.progress.started(record.plan.n_tokens, tokens_done, estimate_nbytes(record))
        running = RunningStatistics(self.folder, record)
        overlap = model.device.type != "cpu"
        with CaptureWriter(self.folder, record, n_threads=self.n_encoders(overlap), overlap=overlap) as writer:
            writer.on_commit = lambda block: running.advance(checkpoint=True) if block % 64 == 63 else None
            self._fill_blocks(record, model, writer, missing)

    def n_encoders(self, overlap: bool) -> int:
        """Threads that encode blocks.

        Every core where a block is encoded while nothing else runs; half of them where the loop that feeds a GPU does.
        """
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
        return self.options.threads or max(1, min(16, n_cores // 2 if overlap else n_cores))

    @contextmanager
    def _resumable(self, record: CaptureRecord) -> Iterator[None]:
        """Turn what stops a run from outside into a `CaptureError` that says how far it came and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            reason = "Interrupted"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = f"The disk of {self.folder} is full"
        else:
            return
        n_committed = len(committed_blocks(self.folder, self.name))
        raise CaptureError(
            f"{reason}: {n_committed} of {record.plan.n_blocks} blocks of capture {self.name!r} are in {self.folder}. "
            "Run the same command with --resume to fill the rest."
        )

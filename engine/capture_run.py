"""One capture from beginning to end: checks, plan, disk, model, blocks, statistics; and the same again, resumed.

What can be found wrong is found before the model's weights are loaded. Knows nothing about how a block is filled
(`capture`) or how documents become windows (`plan`).
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from actstore.engine.capture import fill_blocks
from actstore.engine.corpus import CorpusDigest, CorpusOptions, CorpusReport, read_corpus
from actstore.engine.identity import check_model, fingerprint_of, write_store_root
from actstore.engine.models import DTYPES, LoadedModel, ModelSpec, inspect_model, load_model
from actstore.engine.plan import PlanSettings, block_size, write_plan
from actstore.engine.progress import CaptureProgress
from actstore.engine.settings import CaptureSettings
from actstore.engine.sizes import bytes_per_slot, estimate_nbytes
from actstore.engine.tokens import TextTokenizer
from actstore.store import layout, root
from actstore.store.commits import committed_blocks
from actstore.store.errors import CaptureError, InvalidInputError
from actstore.store.folder import Folder
from actstore.store.lock import own
from actstore.store.reader import Store, read_capture
from actstore.store.records import CaptureRecord, PlanRecord
from actstore.store.statistics import RunningStatistics, is_finished, write_finished
from actstore.store.writer import CaptureWriter, create_capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from actstore.store.reader import Capture

BLOCK_SLOTS = 16_384
DEFAULT_MEMORY = 4 << 30


@dataclass(frozen=True)
class RunOptions:
    """How a capture is carried out; nothing here changes what ends up in it, but `dtype` and `tokenizer`."""

    resume: bool = False
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | None = None
    """Name or path; the model's own by default."""
    memory: int | None = None
    """Bytes for block buffers; a quarter of what is free, at most 4 GiB."""
    threads: int | None = None
    """Encoder threads; all the processors where the model runs on them too, half of them where it runs on a GPU."""
    weights: bool = True
    """Whether write vectors and unembedding are copied into the store."""
    ignore_disk: bool = False
    """Start although the estimate says that the disk is too small."""
    trust_remote_code: bool = False


def capture(
    model: str,
    corpus: str | Path,
    store: str | Path,
    *,
    name: str = "corpus",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: CorpusReport | None = None,
    **settings: Any,
) -> Capture:
    """Capture `corpus` through `model` into `store` under `name`; the finished capture, open for reading.

    `settings` are the fields of `CaptureSettings`. With `options.resume`, an interrupted capture is continued; settings
    left out are then as they were. Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before anything is written;
    `ReadOnlyError` where another writer owns the capture; `CaptureError` where the run stopped half-way and can be resumed.

    >>> actstore.capture("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half")
    """
    options, progress = options or RunOptions(), progress or CaptureProgress()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "zarr.json":
        raise InvalidInputError(f"A capture's name is letters, digits, '.', '_' and '-', found {name!r}. Mend --name.")
    if options.dtype not in DTYPES:
        raise InvalidInputError(f"--dtype is one of {', '.join(DTYPES)}: found {options.dtype!r}.")
    spec = inspect_model(model, trust_remote_code=options.trust_remote_code)
    if spec.kind == "vision":
        raise InvalidInputError(
            f"{model} reads images, and {corpus} is a corpus of text. Name a model that reads text."
        )
    folder = Folder(store, read_only=False)
    _check_target(folder, name, spec, options.resume)
    run = _Run(folder, name, spec, str(corpus), options, progress, report or CorpusReport())
    with _removed_on_failure(folder, name), own(folder, name):
        run.carry_out({k: v for k, v in settings.items() if v is not None})
    return Store(folder).capture(name)


def _check_target(folder: Folder, name: str, spec: ModelSpec, resume: bool) -> None:
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
    elif folder.path is not None and folder.path.is_dir():
        # What a first capture leaves that was killed before the store's root was written is ours to write over.
        begun = any(folder.path.glob(f"captures/*/{layout.LOCK_NAME}"))
        ours = {"captures", "tokenizer", "weights", "neurons.parquet", "zarr.json"} if begun else set()
        strangers = sorted({entry.name.removesuffix(".partial") for entry in folder.path.iterdir()} - ours)
        if strangers:
            raise InvalidInputError(
                f"{folder} is a folder with other content ({strangers[0]}, …). Name a new path for the store."
            )


@contextmanager
def _removed_on_failure(folder: Folder, name: str) -> Iterator[None]:
    """Take away a capture that failed before its plan was recorded, and the store with it if it was to be its first."""
    try:
        yield
    except BaseException as error:
        if folder.path is not None and read_capture(folder, name) is None and _nobody_else_writes(folder, name):
            shutil.rmtree(folder.path / layout.capture_key(name), ignore_errors=True)
            others = any(entry.is_dir() for entry in folder.path.glob("captures/*"))
            if not root.is_store(folder) and not others:
                shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise CaptureError(
                f"Interrupted before the plan of capture {name!r} was complete: nothing of it is kept. Run it again."
            ) from None
        raise


def _nobody_else_writes(folder: Folder, name: str) -> bool:
    from actstore.store.errors import ReadOnlyError

    try:
        with own(folder, name):
            return True
    except ReadOnlyError:
        return False


@dataclass
class _Run:
    """One call of `capture`, with everything its steps share."""

    folder: Folder
    name: str
    spec: ModelSpec
    corpus: str
    options: RunOptions
    progress: CaptureProgress
    report: CorpusReport

    def carry_out(self, requested: Mapping[str, Any]) -> None:
        """Plan or check the plan, load the model, fill what is missing, finish the statistics."""
        record = read_capture(self.folder, self.name)
        if record is not None and not self.options.resume:
            raise InvalidInputError(f"{self.folder} already has a capture {self.name!r}. Continue it with --resume.")
        if record is None:
            record, model, settings = self._begin(requested)
            self._check_disk(record)
            self._write_root(model, record, settings)
            create_capture(self.folder, record)
        else:
            model = self._check_same(record, requested)
        with self._resumable(record):
            self._fill(record, model)
            running = RunningStatistics(self.folder, record)
            running.advance()
            if not is_finished(self.folder, record):
                write_finished(self.folder, record, running.total)

    def _begin(self, requested: Mapping[str, Any]) -> tuple[CaptureRecord, LoadedModel, CaptureSettings]:
        settings = CaptureSettings.resolve(requested, self.spec)
        widths = settings.widths(self.spec)
        plan = self._write_plan(settings, widths)
        model = self._load(self.options.dtype)
        dtype = str(model.dtype).removeprefix("torch.")
        gated = {s.layer for s in self.spec.layers if s.gated}
        record = CaptureRecord(
            name=self.name,
            created=root.now(),
            written_by=root.written_by(),
            model_fingerprint=fingerprint_of(model),
            dtype=dtype,
            precision=settings.precision,
            sites={site: {str(k): v for k, v in layers.items()} for site, layers in widths.items()},
            gate_sign=tuple(layer for layer in widths["mlp.post"] if layer in gated) if settings.gate_sign else (),
            keep=settings.keep if settings.precision == "sparse" else None,
            n_exemplars=settings.exemplars,
            settings=settings.to_json(),
            plan=plan,
        )
        if root.is_store(self.folder):
            check_model(self.folder, root.read_root(self.folder).fingerprint, record.model_fingerprint, self.spec.name)
        return record, model, settings

    def _write_plan(self, settings: CaptureSettings, widths: dict[str, dict[int, int]]) -> PlanRecord:
        tokenizer = self._tokenizer(settings)
        n_gate = sum(widths.get("mlp.post", {}).values()) if settings.gate_sign else 0
        dtype = self.options.dtype if self.options.dtype != "auto" else self.spec.dtype
        slot_nbytes = bytes_per_slot(widths, settings.precision, dtype, n_gate)
        memory = self.options.memory or min(DEFAULT_MEMORY, psutil.virtual_memory().available // 4)
        # Two sets of buffers where a GPU fills them, one elsewhere, and what encoding adds.
        affordable = int(memory / (2.5 * slot_nbytes)) if slot_nbytes else BLOCK_SLOTS
        assert settings.context is not None
        plan_settings = PlanSettings(
            context=settings.context,
            overlap=settings.overlap,
            begin=settings.begin,
            positions=settings.positions,
            batch_tokens=settings.batch_tokens,
            block_slots=block_size(
                settings.context, min(BLOCK_SLOTS, affordable), stored_everywhere=settings.positions == "all"
            ),
            max_tokens=settings.max_tokens,
        )
        return write_plan(
            read_corpus(self.corpus, _corpus_options(settings), self.report),
            self.folder,
            self.name,
            settings=plan_settings,
            corpus=self.corpus,
            label_columns=settings.label_columns,
            tokenizer=tokenizer,
            n_vocabulary=self.spec.n_vocabulary,
            on_progress=self.progress.planned,
        )

    def _tokenizer(self, settings: CaptureSettings) -> TextTokenizer | None:
        try:
            return TextTokenizer.load(
                self.options.tokenizer or self.spec.name, trust_remote_code=self.options.trust_remote_code
            )
        except InvalidInputError:
            # A corpus of ids needs none; whether this is one shows when its first document is read.
            if self.options.tokenizer is not None or not self._is_tokenised(settings):
                raise
            return None

    def _is_tokenised(self, settings: CaptureSettings) -> bool:
        first = next(iter(read_corpus(self.corpus, _corpus_options(settings))), None) if self.corpus != "-" else None
        return first is not None and first.ids is not None

    def _load(self, dtype: str) -> LoadedModel:
        return load_model(
            self.spec.name,
            dtype=dtype,
            device=self.options.device,
            trust_remote_code=self.options.trust_remote_code,
        )

    def _check_disk(self, record: CaptureRecord) -> None:
        needed = estimate_nbytes(record)
        self.progress.started(record.plan.n_tokens, 0, needed)
        if self.folder.path is None or self.options.ignore_disk:
            return
        free = shutil.disk_usage(self.folder.path).free
        if needed > free:
            raise InvalidInputError(
                f"The capture needs about {needed / 1e9:.2f} GB, and the disk of {self.folder} has {free / 1e9:.2f} GB free. "
                "Make room, lower --precision or --max-tokens, or insist with --ignore-disk."
            )

    def _write_root(self, model: LoadedModel, record: CaptureRecord, settings: CaptureSettings) -> None:
        tokenizer = self._tokenizer(settings)
        if tokenizer is not None:
            root.write_tokenizer(self.folder, tokenizer.to_json(), tokenizer.vocabulary(), tokenizer.fingerprint)
        if not root.is_store(self.folder):
            write_store_root(self.folder, model, record.model_fingerprint, weights=self.options.weights)

    def _check_same(self, record: CaptureRecord, requested: Mapping[str, Any]) -> LoadedModel:
        """Refuse to resume with anything that differs from what was begun, naming it."""
        recorded = CaptureSettings.from_json(record.settings)
        differences = recorded.differences(requested)
        if not differences:
            tokenizer = self._tokenizer(recorded)
            if (tokenizer.fingerprint if tokenizer else "") != record.plan.tokenizer_fingerprint:
                differences.append("the tokenizer is another")
            if self._corpus_fingerprint(recorded, record.plan) != record.plan.corpus_fingerprint:
                differences.append(f"the corpus {self.corpus} is not what was planned from {record.plan.corpus}")
        if differences:
            raise InvalidInputError(
                f"Capture {self.name!r} of {self.folder} cannot be resumed: {'; '.join(differences)}. "
                "Resume with what it was begun with, or begin another capture with --name."
            )
        model = self._load(self.options.dtype if self.options.dtype != "auto" else record.dtype)
        check_model(self.folder, record.model_fingerprint, fingerprint_of(model), self.spec.name)
        return model

    def _corpus_fingerprint(self, settings: CaptureSettings, plan: PlanRecord) -> str:
        digest = CorpusDigest()
        documents = read_corpus(self.corpus, _corpus_options(settings), self.report)
        for document in itertools.islice(documents, plan.n_documents):
            digest.update(document)
        longer = settings.max_tokens is None and next(documents, None) is not None
        return "" if longer else digest.hexdigest()

    def _fill(self, record: CaptureRecord, model: LoadedModel) -> None:
        done = set(committed_blocks(self.folder, self.name))
        missing = [block for block in range(record.plan.n_blocks) if block not in done]
        if not missing:
            return
        tokens_done = record.plan.n_tokens * len(done) // record.plan.n_blocks
        self.progress.started(record.plan.n_tokens, tokens_done, estimate_nbytes(record))
        running = RunningStatistics(self.folder, record)
        overlap = model.device.type != "cpu"
        with CaptureWriter(self.folder, record, n_threads=self._n_encoders(overlap), overlap=overlap) as writer:
            writer.on_commit = lambda block: running.advance(checkpoint=True) if block % 64 == 63 else None
            fill_blocks(self.folder, record, model, writer, missing, self.progress)

    def _n_encoders(self, overlap: bool) -> int:
        """Every core where a block is encoded while nothing else runs; half of them where the loop that feeds a GPU does."""
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


def _corpus_options(settings: CaptureSettings) -> CorpusOptions:
    return CorpusOptions(
        text_column=settings.text_column,
        ids_column=settings.ids_column,
        label_columns=settings.label_columns,
        prefer_ids=settings.prefer_ids,
        errors=settings.errors,
        pattern=settings.pattern,
        max_documents=settings.max_documents,
        stdin_format=settings.stdin_format,
    )

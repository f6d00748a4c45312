"""Probes as captures of their store: token ids that somebody chose, planned, run through the store's model, kept.

Knows nothing about which ids are worth asking for (`sampling`, `probe_plan`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.plan import PlanSettings, TextPlanner, block_size
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import Run, RunOptions, check_options, check_target
from actstore.engine.capture.settings import CaptureSettings
from actstore.engine.graphs.probes.plan import Arranged
from actstore.engine.graphs.probes.prefixes import PrefixFiller, fill_by_prefix
from actstore.engine.graphs.probes.sampling import Sampled, Sampler, SampleSettings, prompts_of, take_tokens
from actstore.engine.inputs.documents import Document
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.sources import ModelSource
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.tokenizer.special_tokens import configured_special_ids
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.arguments import Typed
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.errors import CaptureError, InvalidInputError
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.layout import SPECIAL, TEXT
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.capture.writer import CaptureWriter
    from actstore.store.reader import Capture

BLOCK_SLOTS: Final = 16_384
BATCH_TOKENS: Final = 4096
SAMPLED: Final = "probes-sampled"


@dataclass(frozen=True)
class ProbeKept(Typed):
    """What a capture of probes keeps."""

    site: str = "mlp.post"
    precision: str = "half"


def sample_probes(
    model: str,
    store: str | Path,
    *,
    name: str = SAMPLED,
    capture: str | None = None,
    settings: SampleSettings | None = None,
    kept: ProbeKept | None = None,
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
) -> Capture:
    """Draw windows from `model` and capture them into its store under `name`; the finished capture, open for reading.

    `capture` is the one whose windows' beginnings they begin with. An interrupted run goes on with `options.resume`; windows
    drawn before the plan was complete are kept beside the capture until it is, and used again by a run with the same settings.
    Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before anything is written; `CaptureError` where it stopped
    half-way.

    >>> sample_probes("gpt2", "gpt2.actstore", settings=SampleSettings(n_tokens=600_000))
    """
    settings, progress = settings or SampleSettings(), progress or CaptureProgress()
    corpus = Store(store).capture(capture)
    prompts = prompts_of(corpus, settings.prompt)
    what = {
        "kind": "sampled", "capture": corpus.record.name, "plan": corpus.record.plan.fingerprint,
        **dataclasses.asdict(settings),
    }  # fmt: skip
    folder = Folder(store, read_only=False)

    def windows(loaded: LoadedModel, tokenizer: TextTokenizer | None) -> Iterable[Document]:
        ends = (
            tokenizer.special_ids if tokenizer else configured_special_ids(*_configs(loaded), roles=("eos_token_id",))
        )
        sampler = Sampler(loaded, prompts, ends, settings)
        drafts = _Drafts(folder, name, what | {"batch_size": sampler.batch_size, "model": fingerprint_of(loaded)})
        n_tokens = 0
        for number, ids in enumerate(take_tokens(sampler.batches(drafts.load, drafts.save), settings.n_tokens)):
            n_tokens += len(ids)
            progress.planned(number + 1, n_tokens)
            yield Document(source=f"sample {number}", ids=ids.astype(np.int64))

    finished = capture_probes(
        model, folder, ProbeRequest(name, what, settings.window, windows, kept or ProbeKept()), options, progress
    )
    _Drafts.remove(folder, name)
    return finished


@dataclass(frozen=True)
class ProbeRequest:
    """One capture of probes."""

    name: str
    what: dict[str, Any]
    """What decides the windows: a resumed run must repeat it."""
    context: int
    """The longest window."""
    windows: Arranged | Callable[[LoadedModel, TextTokenizer | None], Iterable[Document]] | None
    """The windows in their order; or as documents of ids, made once the model is there. None where they are planned."""
    kept: ProbeKept = ProbeKept()
    block_slots: int = BLOCK_SLOTS
    on_plan: Callable[[], None] = lambda: None
    """Called before a plan is written, when nothing has been found wrong."""


def capture_probes(
    model: str,
    folder: Folder,
    request: ProbeRequest,
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    models: dict[str, LoadedModel] | None = None,
) -> Capture:
    """Run the windows of `request` through `model`, which must be the one of the store at `folder`, and keep them there.

    `models`, by dtype, holds what earlier calls have loaded.
    """
    options, progress = options or RunOptions(), progress or CaptureProgress()
    check_options(request.name, options)
    source = ModelSource(model)
    spec = source.inspect(dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if not root.is_store(folder):
        raise InvalidInputError(f"{folder} is no store yet, and probes ask about one. Make it with actstore capture.")
    check_target(folder, request.name, spec, options.resume)
    run = _ProbeRun(
        folder, request.name, spec, f"probes of {folder}", options, progress, request, {} if models is None else models,
        source=source,
    )  # fmt: skip
    run.carry_out(request.what)
    return Store(folder).capture(request.name)


@dataclass
class _ProbeRun(Run):
    """One call of `capture_probes`."""

    command: ClassVar[str] = "graph probe"

    request: ProbeRequest
    models: dict[str, LoadedModel]

    def _load(self, dtype: str) -> LoadedModel:
        if dtype not in self.models:
            self.models[dtype] = super()._load(dtype)
        return self.models[dtype]

    def _begin(self, requested: Mapping[str, Any]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        kept, known = self.request.kept, root.read_root(self.folder)
        chosen = {"sites": (kept.site,), "precision": kept.precision, "gate_sign": False, "exemplars": 0}
        settings = CaptureSettings.resolve(chosen | {"context": self.request.context}, self.spec)
        tokenizer = self._tokenizer()
        model = self._load(self.options.dtype if self.options.dtype != "auto" else known.dtype)
        check_model(self.folder, known.fingerprint, fingerprint_of(model), self.spec.name)
        plan = self._write_plan(model, tokenizer)
        record = CaptureRecord(
            name=self.name,
            created=root.now(),
            written_by=root.written_by(),
            model_fingerprint=known.fingerprint,
            dtype=str(model.dtype).removeprefix("torch."),
            precision=settings.precision,
            sites={site: {str(k): v for k, v in layers.items()} for site, layers in settings.widths(self.spec).items()},
            gate_sign=(),
            keep=settings.keep if PRECISIONS[settings.precision].uses_keep else None,
            n_exemplars=0,
            settings={**settings.to_json(), "command": self.command, "probes": dict(requested)},
            plan=plan,
            statistics=tuple(STATISTICS),
        )
        return record, model, tokenizer

    def _write_plan(self, model: LoadedModel, tokenizer: TextTokenizer | None) -> PlanRecord:
        request, context = self.request, self.request.context
        # Arranged windows may be shorter than any multiple of the longest.
        slots = (
            request.block_slots if isinstance(request.windows, Arranged) else block_size(context, request.block_slots)
        )
        settings = PlanSettings(context, batch_tokens=BATCH_TOKENS, block_slots=slots)
        request.on_plan()
        special_ids = tokenizer.special_ids if tokenizer else configured_special_ids(*_configs(model))
        if isinstance(request.windows, Arranged):
            fingerprint = tokenizer.fingerprint if tokenizer else ""
            return write_arranged(
                request.windows, self.folder, self.name, settings, self.corpus, fingerprint, special_ids
            )
        assert request.windows is not None
        try:
            planner = TextPlanner(settings, self.corpus, tokenizer, self.spec.n_vocabulary, special_ids=special_ids)
            return planner.write(request.windows(model, tokenizer), self.folder, self.name)
        except KeyboardInterrupt:
            raise CaptureError(
                f"Interrupted before the plan of capture {self.name!r} was complete. Run the same command again; what was "
                "drawn so far is used."
            ) from None

    def _tokenizer(self) -> TextTokenizer | None:
        """The model's tokenizer, which must be the store's; none where the store has captures of ids only."""
        known = root.read_vocabulary(self.folder)
        if known is None and self.options.tokenizer is None:
            return None
        tokenizer = self._load_tokenizer()
        # What the pieces mean may have been written by an earlier version, which read some of them otherwise.
        same = ["token", "piece"]
        if known is not None and not known.select(same).equals(tokenizer.vocabulary().select(same)):
            raise InvalidInputError(
                f"The tokenizer of {self.options.tokenizer or self.spec.name} has another vocabulary than the one in "
                f"{self.folder}. Name the one that the store was captured with, by --tokenizer."
            )
        return tokenizer

    def _check_same(self, record: CaptureRecord, requested: Mapping[str, Any]) -> LoadedModel:
        begun = record.settings["probes"]
        keys = dict.fromkeys([*begun, *requested])
        self._refuse(
            [
                f"{k} is {begun.get(k)} there and {requested.get(k)} now"
                for k in keys
                if begun.get(k) != requested.get(k)
            ]
            + [f"the precision is {record.precision} there"] * (record.precision != self.request.kept.precision)
        )
        return self._load_again(record)

    def _fill_blocks(self, record: CaptureRecord, model: LoadedModel, writer: CaptureWriter, blocks: list[int]) -> None:
        # Whether windows begin alike is a matter of how they were planned, also where they are resumed.
        asked = record.settings["probes"]["kind"] != "sampled"
        fill = fill_by_prefix if asked and PrefixFiller.fits(model, record) else fill_blocks
        fill(self.folder, record, model, writer, blocks, self.progress)


def write_arranged(
    arranged: Arranged,
    folder: Folder,
    name: str,
    settings: PlanSettings,
    corpus: str,
    tokenizer_fingerprint: str,
    special_ids: frozenset[int],
) -> PlanRecord:
    """Write the plan of windows that are in their order already, as one document; its record.

    Batches are windows of one length, and of a block; `special_ids` are no text.
    """
    specials = np.array(sorted(special_ids), np.int32)
    modality = np.where(np.isin(arranged.ids, specials), SPECIAL, TEXT).astype(np.uint8)
    positions = np.arange(settings.context, dtype=np.int32)
    ends = np.cumsum(arranged.lengths)
    per_batch = np.maximum(1, settings.batch_tokens // arranged.lengths)
    as_json = dataclasses.asdict(settings)
    writer = PlanWriter(folder, name, settings.block_slots, as_json)
    digest = hashlib.sha256(np.ascontiguousarray(arranged.ids).tobytes()).hexdigest()
    try:
        document = writer.add_document({"source": name, "sha256": digest, "n_tokens": len(arranged.ids)})

        def window(number: int) -> PlannedWindow:
            length = int(arranged.lengths[number])
            where = slice(int(ends[number]) - length, int(ends[number]))
            return PlannedWindow(document, arranged.ids[where], positions[:length], modality[where], ())

        of_block = np.flatnonzero(np.diff(arranged.blocks, prepend=-1, append=-1)).tolist()
        for start, stop in itertools.pairwise(of_block):
            changes = np.flatnonzero(np.diff(arranged.lengths[start:stop], prepend=-1, append=-1)) + start
            batches = [
                [window(number) for number in range(first, min(first + int(per_batch[a]), b))]
                for a, b in itertools.pairwise(changes.tolist())
                for first in range(a, b, int(per_batch[a]))
            ]
            writer.add_block(batches)
        fingerprint = writer.close(())
    except BaseException:
        writer.abandon()
        raise
    return PlanRecord(
        fingerprint, corpus, digest, tokenizer_fingerprint, as_json, (), (), writer.n_documents,
        writer.n_windows, writer.n_tokens, settings.block_slots, writer.n_blocks,
    )  # fmt: skip


class _Drafts:
    """Batches of sampled windows on disk, until the plan that holds them is complete; of one set of settings at a time."""

    def __init__(self, folder: Folder, name: str, what: dict[str, Any]) -> None:
        self._folder, self._key = folder, f"probes/{name}"
        settings = f"{self._key}/settings.json"
        if not folder.exists(settings) or folder.read_json(settings) != what:
            folder.delete(self._key)
            folder.write_json(settings, what)

    def load(self, number: int) -> Sampled | None:
        """A batch that was saved; None where it was not, or not whole."""
        if not self._folder.exists(key := f"{self._key}/{number}.npz"):
            return None
        try:
            with np.load(io.BytesIO(self._folder.read(key)), allow_pickle=False) as found:
                return Sampled(found["ids"], found["lengths"])
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, number: int, batch: Sampled) -> None:
        """Keep a batch."""
        buffer = io.BytesIO()
        np.savez(buffer, ids=batch.ids, lengths=batch.lengths)
        self._folder.write(f"{self._key}/{number}.npz", buffer.getvalue())

    @staticmethod
    def remove(folder: Folder, name: str) -> None:
        """Take away the batches of a capture that is finished."""
        folder.delete(f"probes/{name}")


def _configs(model: LoadedModel) -> tuple[Any, Any]:
    return model.model.config, getattr(model.model, "generation_config", None)

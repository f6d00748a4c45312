"""`actstore.estimate`: the size of a capture and its time, from the whole corpus tokenised and one batch measured.

Nothing is written. The batch goes through everything that a capture does, in memory: forward pass, packing, encoding,
compression.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from actstore.engine.capture.api import CaptureRequest, given_settings, open_run
from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.buffers import buffer_nbytes
from actstore.engine.capture.corpus_run import CorpusRun
from actstore.engine.capture.plan_count import PlanCount
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.sizes import estimate_nbytes, estimate_objects, with_storage
from actstore.engine.capture.steps.filler import n_encoders
from actstore.store.calls import checked
from actstore.store.capture.plan import PlanWriter
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.errors import InvalidInputError
from actstore.store.layout import SLOT_MULTIPLE
from actstore.store.model import root
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import check_unowned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from actstore.engine.capture.run import RunOptions
    from actstore.engine.capture.settings import Begin, Part, Summed
    from actstore.engine.inputs.corpus import CorpusReport
    from actstore.engine.inputs.memory_corpus import Corpus
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.plan import PlannedWindow
    from actstore.store.files.records import CaptureRecord


@dataclass(frozen=True)
class CaptureEstimate:
    """What a capture would hold and take."""

    model: str
    corpus: str
    store: str
    name: str
    n_documents: int
    n_tokens: int
    """Stored tokens, special ones included."""
    n_windows: int
    n_blocks: int
    block_slots: int
    sites: tuple[str, ...]
    precision: str
    dtype: str
    device: str
    bundled: bool
    """Whether all files of a block would lie in one object."""
    n_objects: int
    """Files of the capture, or objects: see `engine.capture.sizes.estimate_objects`."""
    capture_nbytes: int
    """On disk, an estimate: see `engine.capture.sizes.estimate_nbytes`."""
    weights_nbytes: int
    """Write vectors and unembedding, where the store is new and they are copied."""
    free_nbytes: int | None
    """Of the store's disk; None where the store is no local folder."""
    model_nbytes: int
    """Memory of the model's weights."""
    buffers_nbytes: int
    """Memory of the buffers in which a block is collected."""
    planning_s: float
    """Seconds it took to read and tokenise the corpus, which a capture does again."""
    loading_s: float
    """Seconds it took to load the model and compute its fingerprint."""
    capturing_s: float
    """Seconds that all tokens take at the speed of the measured batch."""
    batch_tokens: int
    """Tokens of the measured batch that the model read."""
    batch_s: float

    @property
    def nbytes(self) -> int:
        """Bytes on disk in all."""
        return self.capture_nbytes + self.weights_nbytes

    @property
    def total_s(self) -> float:
        """Seconds in all. What is done once with the weights of a new store (copies, top tokens) is not among them."""
        return self.planning_s + self.loading_s + self.capturing_s

    @property
    def fits(self) -> bool:
        """Whether the disk has room for the capture, as far as is known."""
        return self.free_nbytes is None or self.nbytes <= self.free_nbytes

    def as_json(self) -> dict[str, Any]:
        """Every field, and the sums."""
        return asdict(self) | {"nbytes": self.nbytes, "total_s": self.total_s, "fits": self.fits}


@checked
def estimate(
    model: ModelInput,
    corpus: Corpus,
    store: str | Path,
    *,
    name: str = "corpus",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: CorpusReport | None = None,
    sites: Sequence[str] | None = None,
    part: Part | None = None,
    layers: int | Sequence[int] | None = None,
    precision: str | None = None,
    keep: float | None = None,
    gate_sign: bool | None = None,
    exemplars: int | None = None,
    context: int | None = None,
    overlap: int | None = None,
    begin: Begin | None = None,
    positions: str | int | Sequence[int] | None = None,
    batch_tokens: int | None = None,
    block_tokens: int | None = None,
    bundle: bool | None = None,
    compression: str | None = None,
    order: str | None = None,
    contributions: Summed | None = None,
    by: str | None = None,
    max_tokens: int | None = None,
    max_documents: int | None = None,
    text_column: str | None = None,
    ids_column: str | None = None,
    prefer_ids: bool | None = None,
    label_columns: Sequence[str] | None = None,
    errors: Literal["strict", "replace"] | None = None,
    pattern: str | None = None,
    stdin_format: Literal["text", "jsonl"] | None = None,
    generate: bool | None = None,
    answers: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    chat: bool | None = None,
    prompt: str | None = None,
    prefix: str | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
    caption_column: str | None = None,
) -> CaptureEstimate:
    """What `capture` with the same arguments would hold and take; nothing is written, neither in `store` nor beside it.

    The parameters are those of `capture`. The corpus is read and tokenised to its end, or as far as `max_tokens` and
    `max_documents` say, the model is loaded, and one batch is measured. What `capture` refuses before it writes is refused
    alike; images are refused, and so is `resume`.

    >>> actstore.estimate("gpt2", "corpus.jsonl", "gpt2.actstore", precision="half").nbytes
    """
    settings = given_settings(locals())
    request = CaptureRequest(model, corpus, store, name, options, progress, report)
    run, requested = open_run(request, settings, read_only=True)
    if not isinstance(run, CorpusRun):
        raise InvalidInputError(
            f"A dry run is of a corpus of text, and {run.corpus} holds images: how long answers take shows only when they are "
            "generated. Capture a few with `max_documents` to see."
        )
    if run.options.resume:
        raise InvalidInputError(
            "A dry run says what a whole capture takes. Leave `resume` out; `store.info()` says how far a capture is."
        )
    check_unowned(run.folder, name)
    with run.source.ready_to_run():
        return _measured(run, requested)


def _measured(run: CorpusRun, requested: Mapping[str, object]) -> CaptureEstimate:
    began_s = time.monotonic()
    count = PlanCount()
    record, loaded, _ = run.begin(requested, count)
    record = with_storage(record, requested)
    loaded_s = time.monotonic()
    assert count.closed_at_s is not None
    batch = count.typical_batch()
    measure(run, record, loaded, count.smallest_batch())  # compiles what is to be measured
    batch_s = measure(run, record, loaded, batch)
    batch_tokens = sum(len(window.ids) for window in batch)
    n_buffers = 1 if loaded.device.type == "cpu" else 2
    is_new = not root.is_store(run.folder)
    return CaptureEstimate(
        model=run.spec.name,
        corpus=run.corpus,
        store=run.folder.location,
        name=run.name,
        n_documents=record.plan.n_documents,
        n_tokens=record.plan.n_tokens,
        n_windows=record.plan.n_windows,
        n_blocks=record.plan.n_blocks,
        block_slots=record.plan.block_slots,
        sites=tuple(record.sites),
        precision=record.precision,
        dtype=record.dtype,
        device=str(loaded.device),
        bundled=record.bundled,
        n_objects=estimate_objects(record),
        capture_nbytes=estimate_nbytes(record),
        weights_nbytes=_weights_nbytes(loaded) if is_new and run.options.weights else 0,
        free_nbytes=run.folder.free_nbytes(),
        model_nbytes=sum(t.numel() * t.element_size() for t in (*loaded.model.parameters(), *loaded.model.buffers())),
        buffers_nbytes=n_buffers * buffer_nbytes(record),
        planning_s=count.closed_at_s - began_s,
        loading_s=loaded_s - count.closed_at_s,
        capturing_s=batch_s * count.n_inputs / batch_tokens,
        batch_tokens=batch_tokens,
        batch_s=batch_s,
    )


def measure(run: CorpusRun, record: CaptureRecord, model: LoadedModel, batch: list[PlannedWindow]) -> float:
    """The seconds in which a batch becomes a committed block, in memory."""
    slots = -(-sum(len(window.kept) for window in batch) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    with _memory_folder() as folder:
        writer = PlanWriter(folder, record.name, slots, record.plan.settings)
        writer.add_document({"source": "", "sha256": "", "n_tokens": 0})
        writer.add_block([[replace(window, document=0) for window in batch]])
        writer.close(record.plan.labels)
        plan = replace(
            record.plan,
            n_documents=1,
            n_windows=writer.n_windows,
            n_tokens=writer.n_tokens,
            block_slots=slots,
            n_blocks=1,
        )
        one_block = replace(record, plan=plan)
        one_block = create_capture(folder, one_block)
        overlap = model.device.type != "cpu"
        began_s = time.monotonic()
        with CaptureWriter(
            folder, one_block, n_threads=n_encoders(run.options.threads, overlap=overlap), overlap=overlap
        ) as capture_writer:
            fill_blocks(folder, one_block, model, capture_writer, [0], CaptureProgress())
        return time.monotonic() - began_s


@contextmanager
def _memory_folder() -> Iterator[Folder]:
    """A folder in memory, emptied afterwards."""
    folder = Folder(f"memory://actstore-estimate-{uuid.uuid4()}", read_only=False)
    try:
        yield folder
    finally:
        for key, _ in list(folder.sizes()):
            folder.delete(key)


def _weights_nbytes(model: LoadedModel) -> int:
    tensors = [model.write_vectors(layer.layer) for layer in model.spec.layers]
    if (unembedding := model.unembedding()) is not None:
        tensors.append(unembedding)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

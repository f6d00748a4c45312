"""Probes as captures of their store: given windows of token ids, run through the store's model.

`rounds` and `sampled` make the windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.plan import PlanSettings, TextPlanner, block_size
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import Run, RunOptions, check_options
from actstore.engine.capture.settings import CaptureSettings
from actstore.engine.capture.target import check_target
from actstore.engine.graphs.probes.plan import ArrangedWindows
from actstore.engine.graphs.probes.prefixes import PrefixFiller, fill_by_prefix
from actstore.engine.graphs.probes.window_plan import write_arranged
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.sources import ModelSource
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.tokenizer.special_tokens import configs_of, configured_special_ids
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.arguments import Typed
from actstore.store.errors import CaptureError, InvalidInputError
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.model import root
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.inputs.documents import Document
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.capture.writer import CaptureWriter
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder

BLOCK_SLOTS: Final = 16_384
"""Number of tokens per block, by default."""
BATCH_TOKENS: Final = 4096


@dataclass(frozen=True)
class ProbeOutput(Typed):
    """What a capture of probes stores."""

    site: str = "mlp.post"
    precision: str = "half"


@dataclass(frozen=True)
class ProbeRequest:
    """One capture of probes."""

    name: str
    settings: dict[str, Any]
    """The settings that determine the windows, as the record has them; those of a resumed run must be the same."""
    context: int
    """Length of the longest window."""
    windows: ArrangedWindows | Callable[[LoadedModel, TextTokenizer | None], Iterable[Document]] | None
    """The windows in their order, or a function of the loaded model that makes them; None where they are planned already."""
    output: ProbeOutput = ProbeOutput()
    block_slots: int = BLOCK_SLOTS
    on_plan: Callable[[], None] = lambda: None
    """Called before a plan is written, once all checks have passed."""


def capture_probes(
    model: str,
    folder: Folder,
    request: ProbeRequest,
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    models: dict[str, LoadedModel] | None = None,
) -> Capture:
    """The capture of the windows of `request`, run through `model`, which must be the model of the store at `folder`.

    models: dtype → model loaded by an earlier call; a model that is loaded here is added.
    """
    options, progress = options or RunOptions(), progress or CaptureProgress()
    check_options(request.name, options)
    source = ModelSource(model)
    spec = source.inspect(dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if not root.is_store(folder):
        raise InvalidInputError(
            f"Expected a store to probe, found none at {folder}. Make it with `actstore.capture(…)`."
        )
    check_target(folder, request.name, spec, options.resume)
    run = _ProbeRun(
        folder, request.name, spec, f"probes of {folder}", options, progress, request, {} if models is None else models,
        source=source,
    )  # fmt: skip
    run.carry_out(request.settings)
    return Store(folder).capture(request.name)


@dataclass
class _ProbeRun(Run):
    """The run of one call of `capture_probes`."""

    command: ClassVar[str] = "graph probe"

    request: ProbeRequest
    models: dict[str, LoadedModel]

    def _load(self, dtype: str) -> LoadedModel:
        if dtype not in self.models:
            self.models[dtype] = super()._load(dtype)
        return self.models[dtype]

    def _let_go(self) -> None:
        super()._let_go()
        self.models.clear()

    def _begin(self, requested: Mapping[str, Any]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        output, known = self.request.output, root.read_root(self.folder)
        chosen = {"sites": (output.site,), "precision": output.precision, "gate_sign": False, "exemplars": 0}
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
        # Blocks of arranged windows need not be a multiple of the longest window.
        slots = (
            request.block_slots
            if isinstance(request.windows, ArrangedWindows)
            else block_size(context, request.block_slots)
        )
        settings = PlanSettings(context, batch_tokens=BATCH_TOKENS, block_slots=slots)
        request.on_plan()
        special_ids = tokenizer.special_ids if tokenizer else configured_special_ids(*configs_of(model.model))
        if isinstance(request.windows, ArrangedWindows):
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
        """The tokenizer of the model, which must be that of the store; None where the store has captures of token ids only."""
        known = root.read_vocabulary(self.folder)
        if known is None and self.options.tokenizer is None:
            return None
        tokenizer = self._load_tokenizer()
        # The texts of the pieces are not compared: an earlier version decoded some of them differently.
        same = ["token", "piece"]
        if known is not None and not known.select(same).equals(tokenizer.vocabulary().select(same)):
            raise InvalidInputError(
                f"The tokenizer of {self.options.tokenizer or self.spec.name} has another vocabulary than the one in "
                f"{self.folder}. Pass as `tokenizer` the one that the store was captured with."
            )
        return tokenizer

    def _check_same(self, record: CaptureRecord, requested: Mapping[str, Any]) -> LoadedModel:
        stored = record.settings["probes"]
        if "measure_variants" in requested:  # earlier versions never measured variants
            stored = {"measure_variants": False} | stored
        keys = dict.fromkeys([*stored, *requested])
        self._refuse(
            [
                f"{k} is {stored.get(k)} there and {requested.get(k)} now"
                for k in keys
                if stored.get(k) != requested.get(k)
            ]
            + [f"the precision is {record.precision} there"] * (record.precision != self.request.output.precision)
        )
        return self._load_again(record)

    def fill_blocks(self) -> FillBlocks:
        """What fills the blocks of windows."""
        return fill_windows


def fill_windows(
    folder: Folder,
    record: CaptureRecord,
    model: LoadedModel,
    writer: CaptureWriter,
    blocks: Iterable[int],
    progress: CaptureProgress,
) -> None:
    """Run the model over `blocks` of a capture of probes and commit each."""
    # Windows of a round share their first tokens; sampled ones do not. The record says so also where a run is resumed.
    share_prefixes = record.settings["probes"]["kind"] != "sampled"
    fill = fill_by_prefix if share_prefixes and PrefixFiller.fits(model, record) else fill_blocks
    fill(folder, record, model, writer, blocks, progress)

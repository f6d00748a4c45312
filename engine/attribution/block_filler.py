"""Fills the blocks of an attribution capture: one prompt at a time through the model, one block at a time to the packer."""

from __future__ import annotations

import dataclasses
import io
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from actstore.engine.attribution.integrated_gradients import PathSettings, integrated_gradients
from actstore.engine.capture.block_filler import submit_blocks
from actstore.engine.capture.buffers import block_buffers
from actstore.engine.capture.packing import HostPacker
from actstore.engine.models import families
from actstore.engine.models.patching import at_position, head_hook, hooked, patch_points
from actstore.engine.models.sites import HookPoint, reading_sites
from actstore.engine.models.writing.scales import read_scales
from actstore.kernels.pack.api import Columns
from actstore.kernels.torch_threads import torch_threads
from actstore.store.capture.plan import Plan
from actstore.store.capture.questions.answers import ANSWERS
from actstore.store.capture.questions.attribution_kinds import GRADIENT, IG, attributed_site
from actstore.store.errors import ModelError
from actstore.store.layout import block_answers_key, write_scale_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from actstore.engine.attribution.integrated_gradients import Attribution, Scope
    from actstore.engine.capture.buffers import BufferPool, Buffers
    from actstore.engine.capture.packing import FilledBlock
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.writer import CaptureWriter
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

    ByLayer = dict[int, NDArray[np.float32]]

SMALL_PRODUCT: Final = 1 << 18
"""Number of weights of a projection up to which one core is enough."""


class AttributionFiller:
    """Runs the prompts of one block after another; the counterpart of `capture.BlockFiller`."""

    def __init__(
        self, model: LoadedModel, record: CaptureRecord, buffers: BufferPool[Buffers], documents: pa.Table
    ) -> None:
        """Fill the sites of `record`; `documents` has the `target` and the `option_tokens` of each prompt."""
        self._model, self._record = model, record
        self._site = attributed_site(record)
        self._layers = tuple(record.layers(self._site))
        self._path = PathSettings(
            steps=record.settings["steps"],
            layers=self._layers,
            max_rows=record.settings["max_rows"],
            site=self._site,
            scope=record.settings.get("scope", "position"),
        )
        self._targets = documents["target"].to_numpy()
        self._option_tokens = documents["option_tokens"]
        self._packer = HostPacker(record, buffers, ())

    def fill(self, plans: Iterable[BlockPlan], progress: CaptureProgress) -> Iterator[FilledBlock]:
        """The blocks of the plans, filled, as `BlockFiller.fill` gives them."""
        for plan in plans:
            self._packer.begin(plan)
            scales = {
                layer: np.zeros((1, self._record.plan.block_slots), np.float32) for layer in self._record.write_scale
            }
            with one_thread_where_faster(self._model):
                answers = self._run(plan, progress, scales)
            arrays = {write_scale_key(self._record.name, layer): values for layer, values in scales.items()}
            for filled in self._packer.finish():
                key = block_answers_key(self._record.name, plan.block)
                yield dataclasses.replace(
                    filled, arrays={**filled.arrays, **arrays}, files={key: _encoded(plan, answers)}
                )

    def _run(self, plan: BlockPlan, progress: CaptureProgress, scales: ByLayer) -> list[NDArray[np.float32]]:
        """Pack every site of the block's prompts, and fill `scales` [1, slot]; the probabilities of each prompt's options."""
        n_prompts = len(plan.windows["window"])
        values = {
            (site, layer): np.empty((n_prompts, width), np.float32)
            for site in self._record.sites
            for layer, width in self._record.layers(site).items()
        }
        answers = []
        starts = np.cumsum([0, *plan.windows["n_inputs"]])
        for row, document in enumerate(plan.windows["document"].tolist()):
            ids = plan.inputs[starts[row] : starts[row + 1]]
            position = int(plan.position[row])
            by_site, probabilities = self._run_prompt(ids, document, position)
            if scales:
                window = torch.from_numpy(ids.astype(np.int64))[None].to(self._model.device)
                for layer, of_layer in read_scales(self._model, {"input_ids": window}, scales).items():
                    scales[layer][0, row] = of_layer[0, position]
            for site, by_layer in by_site.items():
                for layer, vector in by_layer.items():
                    values[site, layer][row] = vector
            answers.append(probabilities)
            progress.filled(1)
        columns = _columns(plan, self._record)
        self._packer.batch(columns)
        for (site, layer), array in values.items():
            self._packer.pack(layer, site, torch.from_numpy(array), columns)
        return answers

    def _run_prompt(
        self, ids: NDArray[np.int32], document: int, position: int
    ) -> tuple[dict[str, ByLayer], NDArray[np.float32]]:
        """Site → layer → vector [neuron] at the position of one prompt, and the probability of each of its options."""
        tokens = self._option_tokens[document].as_py()
        with _first_logits(self._model, len(ids), position) as logits:
            if IG in self._record.sites:
                attribution = integrated_gradients(
                    self._model, ids.tolist(), int(self._targets[document]), position=position, settings=self._path
                )
                by_site = _kept(self._site, self._path.scope, attribution)
            else:
                by_site = {self._site: activations_at(self._model, ids, position, self._layers, self._site)}
        return by_site, _probabilities(logits, tokens, self._model.spec.name)


def _kept(site: str, scope: Scope, attribution: Attribution) -> dict[str, ByLayer]:
    """Site → layer → vector [neuron] of what is stored of a prompt's attribution."""
    if scope == "position":
        return {site: attribution.activations, IG: attribution.attributions, GRADIENT: attribution.gradients}
    return {
        site: {layer: values.mean(0) for layer, values in attribution.activations.items()},
        IG: {layer: values.sum(0) for layer, values in attribution.attributions.items()},
    }


@contextmanager
def one_thread_where_faster(model: LoadedModel) -> Iterator[None]:
    """While open, small products run on one core: threads would wait for one another longer than they compute.

    The attribution of a prompt is a few hundred products of at most `max_rows` rows. On a busy machine, two threads were 20
    times slower than one on a model of width 128.
    """
    largest = max(layer.neurons * layer.d_model for layer in model.spec.layers)
    is_small = model.device.type == "cpu" and largest <= SMALL_PRODUCT
    with torch_threads(1) if is_small else nullcontext():
        yield


def activations_at(
    model: LoadedModel, ids: NDArray[np.int32], position: int, layers: Sequence[int], site: str
) -> ByLayer:
    """The activations [neuron] of each layer at a position, in float32, from one pass of the whole model."""
    n_positions = len(ids)
    activations: ByLayer = {}

    def keep(layer: int, _site: str, values: Tensor, _rows: Tensor | None) -> None:
        row = at_position(values, 1, position, n_positions, model.spec.model_type)[0]
        activations[layer] = row.float().cpu().numpy()

    points = {
        HookPoint(place.owner, place.side, 0 if place.side == "input" else None, place.run, features=place.features): [
            (place.layer, site)
        ]
        for place in patch_points(model, layers, site)
    }
    window = torch.from_numpy(ids.astype(np.int64))[None].to(model.device)
    arguments = families.arguments_for(model.model, window, None)
    hooks = head_hook(model, position, n_positions)
    with torch.inference_mode(), hooked(model.model, hooks), reading_sites(model.model, points, keep):
        model.model(**arguments)
    return activations


@contextmanager
def _first_logits(model: LoadedModel, n_positions: int, position: int) -> Iterator[list[Tensor]]:
    """While open, collects the logits [vocabulary] at `position` of the first pass over one window of `n_positions`.

    That is the clean pass, which either path of an attribution runs anyway.
    """
    first: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        logits = getattr(output, "logits", None)
        if not first and ids is not None and logits is not None and tuple(ids.shape) == (1, n_positions):
            rows = at_position(logits.detach(), 1, position, n_positions, model.spec.model_type)
            first.append(rows[0].clone())

    handle = model.model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield first
    finally:
        handle.remove()


def _probabilities(logits: list[Tensor], tokens: list[int], name: str) -> NDArray[np.float32]:
    if not logits:
        raise ModelError(f"{name} returns no logits: expected a model with a language-model head. Name another model.")
    wide = logits[0].to(torch.promote_types(logits[0].dtype, torch.float32))
    probabilities: NDArray[np.float32] = (wide[tokens] - wide.logsumexp(-1)).exp().float().cpu().numpy()
    return probabilities


def _columns(plan: BlockPlan, record: CaptureRecord) -> Columns:
    """The prompts of a block as one batch, one row and one slot per prompt."""
    n_prompts = len(plan.windows["window"])
    all_documents = np.full((n_prompts, 1), len(record.plan.labels), np.int32)
    return Columns(
        rows=np.arange(n_prompts),
        slots=np.arange(n_prompts),
        segments=np.arange(n_prompts + 1),
        labels=np.concatenate([plan.labels, all_documents], axis=1),
        counted=np.ones(n_prompts, bool),
        first_token=plan.block * record.plan.block_slots,
    )


def _encoded(plan: BlockPlan, answers: list[NDArray[np.float32]]) -> bytes:
    rows = {"document": plan.windows["document"], "probabilities": [values.tolist() for values in answers]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows, schema=ANSWERS), buffer)
    return buffer.getvalue()


def fill_attributions(
    folder: Folder,
    record: CaptureRecord,
    model: LoadedModel,
    writer: CaptureWriter,
    blocks: Iterable[int],
    progress: CaptureProgress,
) -> None:
    """Run the prompts of `blocks` of an attribution capture and commit each."""
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    buffers = block_buffers(record, writer.n_blocks_in_use)
    filler = AttributionFiller(model, record, buffers, plan.table("documents"))
    submit_blocks(filler.fill(map(plan.block, blocks), progress), writer)

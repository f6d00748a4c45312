"""The strongest check of a store: run the model again over some of its blocks and compare every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.attribution.block_filler import AttributionFiller
from actstore.engine.capture.block_filler import BlockFiller
from actstore.engine.capture.buffers import block_buffers
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.models.fingerprint import check_model, fingerprint_of, location_of
from actstore.engine.models.sources import ModelSource
from actstore.engine.workers.numerics import threads_as_captured
from actstore.store import layout
from actstore.store.capture.overflow import saturate
from actstore.store.capture.questions.answers import has_attributions
from actstore.store.damage import Damage
from actstore.store.errors import FormatError, InvalidInputError, finding
from actstore.store.tokens import check_made_by_model, is_made_by_model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.store.files.chunks import Rows
    from actstore.store.reader import Capture

TOLERANCE = 1e-3
"""Largest difference, relative to the layer's largest value, that another machine's arithmetic may make in float32."""
TOLERANCES = {"float32": TOLERANCE, "float16": 2e-2, "bfloat16": 1e-1}


def refill_blocks(
    capture: Capture,
    n: int,
    *,
    model: ModelInput | None = None,
    images: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    without: Collection[int | None] = (),
) -> tuple[list[dict[str, Any]], list[Damage]]:
    """What recomputing `n` committed blocks, spread over the capture, gives; and a `Damage` for each layer that differs.

    One row per block: capture, block, `largest_difference` relative to the largest stored magnitude of its layer (in steps of
    int8 the rounding is allowed for). Blocks in `without` are skipped. `images` is where the images of a capture are now,
    if not where they were; `model` where its model is, or the model in memory.
    `InvalidInputError` for another model, or for other images than those that were captured.
    """
    record = capture.record
    check_made_by_model(record, "The check")
    if not record.encoding.keeps_values:
        raise InvalidInputError(
            f"Capture {record.name!r} keeps no values (precision none), so there is nothing to compare."
        )
    source = ModelSource.of(location_of(capture.store.model) if model is None else model)
    with source.ready_to_run():
        loaded = source.load(dtype=record.dtype, device=device, trust_remote_code=trust_remote_code)
        check_model(capture.folder, record.model_fingerprint, fingerprint_of(loaded), loaded.spec.name)
        blocks = spread([b for b in capture.blocks if b not in without], n)
        processor = None
        if record.of_images:
            from actstore.engine.models.vision.inputs import VisionProcessor  # only here: it loads the image library

            processor = VisionProcessor.load(loaded.spec.name, trust_remote_code=trust_remote_code)
        with threads_as_captured(capture.folder, record.name, loaded):
            return _compare(capture, blocks, _filler(capture, loaded, processor, images))


def refill_captures(
    captures: Sequence[Capture], n: int, damage: Sequence[Damage], *, named: bool, **how: Any
) -> tuple[list[dict[str, Any]], list[Damage]]:
    """What `refill_blocks` gives for each capture, with the arguments `how`; blocks that `damage` names are skipped.

    Captures that no model made are passed over, unless the user `named` the one that is to be checked.
    """
    rows: list[dict[str, Any]] = []
    differences: list[Damage] = []
    for capture in captures:
        if named or is_made_by_model(capture.record):
            broken = {one.block for one in damage if one.capture == capture.record.name}
            of_capture, differing = refill_blocks(capture, n, without=broken, **how)
            rows += of_capture
            differences += differing
    return rows, differences


def _compare(
    capture: Capture, blocks: list[int], filler: BlockFiller | AttributionFiller
) -> tuple[list[dict[str, Any]], list[Damage]]:
    """What `refill_blocks` gives, for blocks filled again."""
    record = capture.record
    rows: list[dict[str, Any]] = []
    damage: list[Damage] = []
    for filled in filler.fill(map(capture.plan.block, blocks), CaptureProgress()):
        block, computed = filled.block, filled.arrays
        largest = 0.0
        for site in record.sites:
            for layer in record.layers(site):
                try:
                    difference = _difference(capture, computed, site, layer, block)
                except FormatError as error:
                    damage.append(Damage(record.name, block, site, layer, "values", finding(error)))
                    continue
                largest = max(largest, difference)
                if not difference <= TOLERANCES[record.dtype]:
                    what = f"recomputed values differ by {difference:.3g} of the layer's largest"
                    damage.append(Damage(record.name, block, site, layer, "values", what))
        for layer in record.write_scale:
            key = layout.write_scale_key(record.name, layer)
            try:
                difference = _scale_difference(capture, np.asarray(computed[key])[0], layer, block)
            except FormatError as error:
                damage.append(Damage(record.name, block, layout.WRITE_SCALE, layer, "write_scale", finding(error)))
                continue
            largest = max(largest, difference)
            if not difference <= TOLERANCES[record.dtype]:
                what = f"recomputed scales differ by {difference:.3g} of the layer's largest"
                damage.append(Damage(record.name, block, layout.WRITE_SCALE, layer, "write_scale", what))
        filled.release()
        rows.append({"capture": record.name, "block": block, "largest_difference": largest})
    return rows, damage


def _filler(
    capture: Capture,
    model: LoadedModel,
    processor: VisionProcessor | None,
    images: str | None,
) -> BlockFiller | AttributionFiller:
    # On a GPU the next block is computed while a block is compared.
    buffers = block_buffers(capture.record, 2)
    if has_attributions(capture):
        return AttributionFiller(model, capture.record, buffers, capture.documents())
    if processor is not None:
        from actstore.engine.capture.images.run import image_batches  # only here: it loads the image library

        locations = () if images is None else (images,)
        batches = image_batches(capture.record, capture.documents(), processor, locations)
        return BlockFiller(model, capture.record, buffers, batches)
    return BlockFiller(model, capture.record, buffers)


def spread(blocks: list[int], n: int) -> list[int]:
    """At most `n` of the blocks, evenly spread from the first to the last."""
    if n >= len(blocks):
        return blocks
    return [blocks[i] for i in np.linspace(0, len(blocks) - 1, n).round().astype(int).tolist()]


@dataclass(frozen=True)
class _StoredBlock:
    """One block of one layer as the store holds it, for `Precision.comparable`."""

    capture: Capture
    site: str
    layer: int
    block: int
    values: NDArray[np.float32]

    @property
    def n_used(self) -> int:
        return int(self.capture.used_slots[self.block])

    def raw(self) -> NDArray[Any]:
        return self.capture.raw_block(self.layer, self.block, self.site)

    def parameter(self, name: str) -> NDArray[Any]:
        return self.capture.block_parameter(name, self.layer, self.block, self.site)


def _scale_difference(capture: Capture, again: NDArray[np.float32], layer: int, block: int) -> float:
    """Largest |stored - recomputed| scale of a layer, over the largest stored."""
    stored = capture.write_scale(layer, block)
    return float(np.abs(stored - again).max(initial=0) / max(np.abs(stored).max(initial=0), 1e-30))


def _difference(capture: Capture, computed: Mapping[str, Rows], site: str, layer: int, block: int) -> float:
    """Largest |stored - recomputed| over the largest |stored|; infinite where one has a value and the other none."""
    record, encoding = capture.record, capture.record.encoding
    # A value may overflow precision half on one machine and not on another: both count as the largest that it holds.
    values = capture.block_values(layer, block, site, saturated=True)
    stored = _StoredBlock(capture, site, layer, block, values)
    parameters = {
        name: np.asarray(computed[layout.block_parameters_key(record.name, site, layer, name)])[:, 0]
        for name in encoding.decode_parameters
    }
    again = encoding.decode(np.asarray(computed[layout.values_key(record.name, site, layer)]), parameters)
    again = saturate(again, capture.has_overflow(layer, site))
    again = encoding.comparable(again, stored, TOLERANCES[record.dtype])
    if not (np.isnan(values) == np.isnan(again)).all():
        return float("inf")
    with np.errstate(invalid="ignore"):
        same = values == again
        difference = np.where(same | np.isnan(values), 0.0, np.abs(values - again))
    finite = np.abs(values[np.isfinite(values)])
    slack = encoding.comparison_slack(stored)
    return float(max(difference.max(initial=0.0) - slack, 0.0) / max(finite.max(initial=0.0), 1e-30))

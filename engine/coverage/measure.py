"""Measures coverage criteria over the stored samples of a capture, block by block and layer by layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.coverage.coverage import Coverage
from actstore.engine.coverage.criteria import CRITERIA, CoverageSettings
from actstore.engine.coverage.state import Ranges
from actstore.engine.coverage.surprise import classes_of, read_reference
from actstore.engine.devices.device import HOST, Device
from actstore.engine.workers.scan import HERE, Scan, is_here
from actstore.store.capture.positions import blocks_with, check_positions, check_values, windows_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.coverage.state import LayerState
    from actstore.engine.coverage.surprise import Piece, SurpriseReference
    from actstore.engine.workers.executor import Executor
    from actstore.store.reader import Capture

SAMPLES_AT_ONCE: Final = 1024
"""Samples whose values are copied out of a block at a time."""
PARTS_PER_WORKER: Final = 8
"""Parts of a capture per worker: few, as states are as large for some blocks as for all, and enough to end together."""


def reference_ranges(reference: Capture, site: str, widths: dict[int, int]) -> dict[int, Ranges]:
    """Layer → the ranges of its neurons over a reference capture's counted positions, from its statistics alone."""
    all_ranges = {}
    if not reference.blocks:
        raise InvalidInputError(
            f"The reference {reference.record.name!r} has no committed block. Resume it with `resume=True`."
        )
    for layer, width in widths.items():
        statistics = reference.layer_statistics(layer, site)
        if len(statistics.minimum) != width:
            raise InvalidInputError(
                f"Layer {layer} has {width} neurons in the capture and {len(statistics.minimum)} in the reference "
                f"{reference.record.name!r}: expected captures of one model."
            )
        counted = statistics.count > 0
        low, high = (
            np.where(counted, bound, np.nan).astype(np.float32) for bound in (statistics.minimum, statistics.maximum)
        )
        all_ranges[layer] = Ranges(low, high)
    return all_ranges


def measure_coverage(
    capture: Capture,
    settings: CoverageSettings | None = None,
    *,
    reference: Capture | None = None,
    by: str | None = None,
    on_block: Callable[[int, int], None] = lambda done, n_blocks: None,
    executor: Executor = HERE,
    device: Device = HOST,
) -> dict[str, Coverage]:
    """What the samples of a capture cover: with `by`, label value → coverage; else "" → the coverage of all.

    kmnc, nbc and snac compare the samples with the ranges of `reference`, lsc, dsc and mdsc with its samples. One layer of one
    block is in memory at a time. The workers of `executor` take blocks, or for tfc and nlc, which depend on their order,
    layers; `device` looks for the largest neurons of tknc and tknp.

    Raises `InvalidInputError` for a capture without the values, site, positions or label, and where a criterion lacks its
    reference.

    >>> measure_coverage(store.capture("prompts"), CoverageSettings(("nc", "tknc")))[""].results()
    """
    settings = settings or CoverageSettings()
    check_values(capture, settings.site)
    check_positions(capture, settings.positions)
    widths = dict(sorted(capture.record.layers(settings.site).items()))
    ranges: dict[int, Ranges] = {}
    surprise: SurpriseReference | None = None
    if needing := [name for name in settings.criteria if CRITERIA[name].needs_reference]:
        if reference is None:
            raise InvalidInputError(
                f"The criteria {', '.join(needing)} compare values with the ranges of another capture, or with its samples. "
                f"Set `reference`, for "
                "example to a capture of training data."
            )
        if {*needing} - {*settings.surprises}:
            ranges = reference_ranges(reference, settings.site, widths)
        if settings.surprises:
            if reference.record.layers(settings.site) != capture.record.layers(settings.site):
                raise InvalidInputError(
                    f"The reference {reference.record.name!r} has other layers at {settings.site} than "
                    f"{capture.record.name!r}: "
                    "expected captures of one model."
                )
            surprise = read_reference(reference, settings, widths)
    measure = _Measurement(capture, settings, widths, ranges, by, device, surprise)
    if is_here(executor):
        return measure.of_blocks(settings, widths, capture.blocks, on_block)
    return _measure_by_workers(measure, executor, on_block)


@dataclass(frozen=True)
class _Part:
    """What a worker measures: criteria over some blocks, or those that depend on order in one layer over all of them."""

    blocks: tuple[int, ...]
    layer: int | None = None

    def __str__(self) -> str:
        if self.layer is not None:
            return f"layer {self.layer}"
        first, last = self.blocks[0], self.blocks[-1]
        return f"block {first}" if first == last else f"blocks {first} to {last}"


@dataclass(frozen=True)
class _Measurement:
    """What measures a part of a capture, here or in a worker."""

    capture: Capture
    settings: CoverageSettings
    widths: dict[int, int]
    ranges: dict[int, Ranges]
    by: str | None
    device: Device
    surprise: SurpriseReference | None = None

    def of_blocks(
        self,
        settings: CoverageSettings,
        widths: dict[int, int],
        blocks: Sequence[int],
        on_block: Callable[[int, int], None] = lambda done, n_blocks: None,
    ) -> dict[str, Coverage]:
        """The coverage of each population by some criteria, in some layers, over some blocks."""
        surprise = self.surprise if settings.surprises else None
        coverages = {
            name: Coverage(settings, widths, self.ranges, surprise=surprise)
            for name in _populations(self.capture, self.by)
        }
        for done, (block, slots) in enumerate(blocks_with(self.capture, settings.positions, blocks)):
            _add_block(
                self.capture, block, _split_by_label(self.capture, block, slots, self.by), coverages, self.device
            )
            on_block(done + 1, len(blocks))
        return coverages

    def __call__(self, part: _Part) -> dict[str, Coverage]:
        if part.layer is None:
            return self.of_blocks(self.order_free, self.widths, part.blocks)
        kept = dataclasses.replace(self.settings, criteria=self.by_order)
        return self.of_blocks(kept, {part.layer: self.widths[part.layer]}, part.blocks)

    @property
    def by_order(self) -> tuple[str, ...]:
        """Those of the criteria whose states depend on the order of samples."""
        return tuple(name for name in self.settings.criteria if CRITERIA[name].by_order)

    @property
    def order_free(self) -> CoverageSettings:
        """The settings without these; with some criterion, which need not be used."""
        criteria = tuple(name for name in self.settings.criteria if not CRITERIA[name].by_order)
        return dataclasses.replace(self.settings, criteria=criteria or ("nc",))


def _measure_by_workers(
    measure: _Measurement, executor: Executor, on_block: Callable[[int, int], None]
) -> dict[str, Coverage]:
    """As `measure_coverage`: states are merged, which for those that do not depend on order gives what one run does."""
    settings, blocks = measure.settings, list(measure.capture.blocks)
    n_parts = min(len(blocks), PARTS_PER_WORKER * executor.n_workers)
    parts = [_Part(tuple(some.tolist())) for some in np.array_split(np.array(blocks), n_parts)]
    if set(settings.criteria) == {*measure.by_order}:
        parts = []
    parts += [_Part(tuple(blocks), layer) for layer in measure.widths if measure.by_order]
    merged = measure.of_blocks(measure.order_free, measure.widths, [])
    kinds = [CRITERIA[name].measurement for name in measure.by_order]
    kept: dict[str, dict[str, dict[int, LayerState]]] = {name: {kind: {} for kind in kinds} for name in merged}
    n_samples: dict[str, int] = {}
    for done, (part, found) in enumerate(zip(parts, Scan(executor)(measure, parts), strict=True)):
        for name, coverage in found.items():
            if part.layer is None:
                merged[name].merge(coverage)
            else:
                for kind, layers in kept[name].items():
                    layers |= coverage.states[kind]
                n_samples[name] = coverage.n_samples
        on_block((done + 1) * len(blocks) // len(parts), len(blocks))
    return {
        name: Coverage(
            settings,
            measure.widths,
            measure.ranges,
            n_samples.get(name, coverage.n_samples),
            _states(settings, coverage.states | kept[name]),
            coverage.patterns,
            measure.surprise,
            coverage.surprise_of,
            coverage.buckets,
        )
        for name, coverage in merged.items()
    }


def _states(settings: CoverageSettings, together: dict[str, dict[int, LayerState]]) -> dict[str, dict[int, LayerState]]:
    """The states of all criteria, in the order in which one run makes them."""
    names = (CRITERIA[name].measurement for name in settings.criteria if CRITERIA[name].empty is not None)
    return {name: together[name] for name in dict.fromkeys(names)}


def _populations(capture: Capture, by: str | None) -> list[str]:
    if by is None:
        return [""]
    record = capture.record.plan
    if by not in record.label_columns:
        labels = ", ".join(record.label_columns) or "none"
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has no label {by!r}. Its labels are: {labels}. Capture again with "
            f'`label_columns=("{by}",)`.'
        )
    return [value for column, value in record.labels if column == by]


def _split_by_label(
    capture: Capture, block: int, slots: NDArray[np.int64], by: str | None
) -> Iterable[tuple[str, NDArray[np.int64]]]:
    """(population, its slots) of a block."""
    if by is None:
        return [("", slots)]
    plan, record = capture.block_plan(block), capture.record.plan
    label = plan.labels[:, record.label_columns.index(by)][windows_of(plan)[slots]]
    return [(record.labels[i][1], slots[label == i]) for i in np.unique(label).tolist()]


def _add_block(
    capture: Capture,
    block: int,
    slots_by_population: Iterable[tuple[str, NDArray[np.int64]]],
    coverages: dict[str, Coverage],
    device: Device,
) -> None:
    """Add the samples of one block to the coverage of their populations, in pieces of `SAMPLES_AT_ONCE`."""
    pieces = [
        (coverages[name], slots[start : start + SAMPLES_AT_ONCE])
        for name, slots in slots_by_population
        for start in range(0, len(slots), SAMPLES_AT_ONCE)
    ]
    mixed = [np.zeros((len(slots), 2), np.uint64) for _, slots in pieces]
    any_coverage = next(iter(coverages.values()))  # settings, layers and ranges are the same in all
    surprised = [_piece(capture, block, slots, any_coverage) for _, slots in pieces]
    for layer in any_coverage.widths:
        values = capture.block_values(layer, block, any_coverage.settings.site, saturated=True)
        slack = _slack(capture, layer, block, any_coverage)
        for (coverage, slots), so_far, piece in zip(pieces, mixed, surprised, strict=True):
            samples = values[:, slots]
            if not np.isfinite(samples).all():
                samples[~np.isfinite(samples)] = np.nan
            coverage.add(layer, samples, so_far, slack, device, piece)
    for (coverage, _), so_far, piece in zip(pieces, mixed, surprised, strict=True):
        coverage.end_samples(so_far, piece)


def _piece(capture: Capture, block: int, slots: NDArray[np.int64], coverage: Coverage) -> Piece | None:
    """Samples for the criteria of surprise; None where none is measured."""
    if (surprise := coverage.surprise) is None:
        return None
    return surprise.piece(classes_of(capture, block, slots, surprise.classes, coverage.settings))


def _slack(capture: Capture, layer: int, block: int, coverage: Coverage) -> NDArray[np.float32]:
    """The largest difference between a stored value and the true one, which statistics are made of; shape [neuron]."""
    record = capture.record
    if layer in coverage.ranges and record.precision == "int8":
        # Rounding to int8 is off by at most half a step; 0.50001 allows for the rounding of the product itself.
        scale = capture.block_parameter("scale", layer, block, coverage.settings.site)
        return (scale.astype(np.float32) * np.float32(0.50001)).astype(np.float32)
    if layer in coverage.ranges and record.precision == "half" and record.dtype == "float32":
        # float16 rounds by at most 2⁻¹¹ of the value, and by 2⁻²⁵ where the value is subnormal.
        ranges = coverage.ranges[layer]
        return (np.fmax(np.abs(ranges.low), np.abs(ranges.high)) * 2.0**-11 + 2.0**-25).astype(np.float32)
    return np.zeros(coverage.widths[layer], np.float32)

"""A capture's record lists its statistics: what it does not list is absent, which is neither damage nor 0."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest

from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.capture.plan import Plan
from actstore.store.capture.statistics.capture_statistics import (
    UNLISTED,
    UNLISTED_OPTIONAL,
    CaptureStatistics,
)
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.layout import capture_key
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Iterable

LISTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "of the first version": (UNLISTED, False),
    "of one before lists": ((), True),
    "of this version": (tuple(STATISTICS), True),
    "of a later version": ((*STATISTICS, "skewness"), True),
}
"""What a record lists; whether the capture has the statistic `overflow`."""


def plant(monkeypatch: pytest.MonkeyPatch, listed: Iterable[str], **what: Any) -> Capture:
    """A planted capture whose record lists these statistics."""
    record = planted_stores.capture_record
    with monkeypatch.context() as patch:
        patch.setattr(
            planted_stores, "capture_record", lambda *given: replace(record(*given), statistics=tuple(listed))
        )
        if "skewness" in listed:  # as a version writes that knows it
            patch.setattr("actstore.store.capture.writer.check_can_gather", lambda record: None)
            patch.setattr("actstore.store.capture.statistics.capture_statistics.check_can_gather", lambda record: None)
        return planted_stores.planted(**what)[0]


def resume(capture: Capture) -> Capture:
    """The same capture, its missing blocks filled with 0 and finished."""
    folder, record = Folder(capture.folder.location, read_only=False), capture.record
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        for block in set(range(record.plan.n_blocks)) - set(capture.blocks):
            n = len(plan.block(block).position)
            zeros = {layer: np.zeros((width, n), np.float32) for layer, width in enumerate(planted_stores.WIDTHS)}
            arrays, statistics = planted_stores.fill(record, plan, block, zeros)
            writer.submit(block, arrays, statistics, began=0.0)
    running = RunningStatistics(folder, record)
    running.advance()
    write_finished(folder, record, running.total)
    return Store(folder.location).capture()


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("case", LISTS)
def test_a_capture_reads_with_the_statistics_that_it_lists(
    monkeypatch: pytest.MonkeyPatch, case: str, finish: bool
) -> None:
    listed, has_overflow = LISTS[case]
    capture = plant(monkeypatch, listed, finish=finish)
    assert capture.record.statistics == tuple(listed)
    assert verify_capture(capture) == []
    names = [name for name in STATISTICS if name in (listed or UNLISTED + UNLISTED_OPTIONAL)]
    assert list(capture.statistics().names) == list(capture.layer_statistics(1, "mlp.post").arrays()) == names
    assert ("overflow" in capture.neurons().column_names) == has_overflow
    if not has_overflow:
        with pytest.raises(NotFoundError, match="This capture has no statistic 'overflow': it was made by a version"):
            capture.layer_statistics(1, "mlp.post").overflow  # noqa: B018
    whole = plant(monkeypatch, STATISTICS, finish=finish)
    for name, array in capture.layer_statistics(1, "mlp.post").arrays().items():
        np.testing.assert_array_equal(array, whole.layer_statistics(1, "mlp.post").arrays()[name], name)


@pytest.mark.parametrize("case", [case for case in LISTS if case != "of a later version"])
def test_a_capture_is_resumed_with_the_statistics_that_it_lists(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    listed, has_overflow = LISTS[case]
    capture = resume(plant(monkeypatch, listed, blocks=(0, 2), finish=False))
    assert capture.is_finished
    assert verify_capture(capture) == []
    assert ("overflow" in capture.neurons().column_names) == has_overflow
    assert ("overflow" in capture.statistics().names) == has_overflow


def test_blocks_with_more_statistics_than_the_record_lists_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU gathers them in resuming a capture: all that there are."""
    record = plant(monkeypatch, UNLISTED, blocks=(0,), finish=False).record
    total = CaptureStatistics.empty(replace(record, statistics=tuple(STATISTICS)))
    assert "overflow" in total.names
    decoded, _ = CaptureStatistics.decode(total.encode(), record, "here")
    assert set(decoded.names) == set(UNLISTED)


def test_a_capture_with_a_statistic_of_a_later_version_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = plant(monkeypatch, LISTS["of a later version"][0], blocks=(0, 2), finish=False)
    message = (
        "begun by actstore 0, has statistics that this version of actstore cannot gather: skewness. Resume it with"
    )
    with pytest.raises(FormatError, match=message):
        resume(capture)
    folder = Folder(capture.folder.location, read_only=False)
    with pytest.raises(FormatError, match=message):
        write_finished(folder, capture.record, capture.statistics())
    assert not folder.exists(f"{capture_key('corpus')}/statistics/mlp.post/count/zarr.json")


def test_a_listed_statistic_that_a_block_lacks_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = plant(monkeypatch, (), where=f"memory://{uuid.uuid4()}/store", blocks=(0,), finish=False)
    statistics = capture.statistics()
    for of_layer in statistics.sites.values():
        of_layer.drop(["overflow"])
    listed = replace(capture.record, statistics=tuple(STATISTICS))
    with pytest.raises(FormatError, match=r"The statistics S/0 are damaged .*overflow"):
        CaptureStatistics.decode(statistics.encode(), listed, "S/0")
    decoded, _ = CaptureStatistics.decode(statistics.encode(), capture.record, "S/0")
    assert "overflow" not in decoded.names

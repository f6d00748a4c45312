"""Repairing a store: what `verify` finds damaged is made again, and verified again, until nothing is left to do."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from actstore.engine.capture.steps.finish import finish_capture
from actstore.engine.devices.device import check_device
from actstore.engine.repair.blocks import refill
from actstore.engine.repair.finished import add_up, write_checkpoint, write_metadata
from actstore.engine.repair.interrupted import repair_reorder
from actstore.engine.repair.model import RepairModel
from actstore.engine.repair.outcome import Outcome, RepairOptions, RepairReport
from actstore.engine.repair.root_files import is_root_file, rewrite_root_files
from actstore.engine.repair.scratch import clear_leftovers, leftovers
from actstore.store.capture.committed import complete_index
from actstore.store.capture.statistics.capture_statistics import is_finished
from actstore.store.capture.statistics.standing import standing
from actstore.store.errors import ActstoreError, CaptureError
from actstore.store.files.groups import CAPTURES, write_group
from actstore.store.files.names import KINDS, write_names
from actstore.store.layout import committed_key, folded_statistics_key, names_key
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own, own_root
from actstore.store.verify import open_captures, verify_capture, verify_graphs, verify_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from actstore.store.damage import Damage

_ROUNDS: Final = 8
"""What hides behind a damage shows when that is repaired: metadata, blocks, statistics, tables."""

_NEEDS_CORPUS: Final = (
    "it is of the plan, which only the corpus gives: restore it from a copy of the store, or capture the corpus again under "
    "another name"
)
_REASONS: Final = {
    "plan": _NEEDS_CORPUS,
    "patches.parquet": _NEEDS_CORPUS,
    "requests.arrow": "restore it from a copy of the store, or run `store.graphs.probe(…)` again under another name",
    "numerics.json": "it alone says on what the blocks were computed: restore it from a copy of the store, or delete it",
    "zarr.json": "the capture's record cannot be computed: restore it from a copy of the store, or capture the corpus again",
}
"""Key of what cannot be repaired → why, and what to do."""
_ADDED_UP: Final = "added up again from the blocks' own statistics"
_RESULTS: Final = ("statistics", "neurons.parquet", "exemplars.parquet", "prompts.parquet", "queries.parquet")


def repair_store(
    location: str | Folder,
    capture: str | None = None,
    options: RepairOptions | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> RepairReport:
    """Repair a store, or one of its captures; what was repaired, and what is damaged still, each with how or why.

    `progress` is told what is looked at. A repair may be interrupted anywhere: the next one goes on. Raises `InvalidInputError`
    where `options` name a model that is not the store's, `NotFoundError` where there is no such capture, `ReadOnlyError` where
    another process is writing what is damaged, and `CaptureError` where the disk is full.
    """
    options = options or RepairOptions()
    check_device(options.device)
    folder = Folder(location, read_only=False)
    outcomes, finished = repair_reorder(folder, capture), list[str]()
    opened = Store(folder)
    captures, unreadable = open_captures(opened, capture)
    outcomes += [Outcome(one, False, _REASONS["zarr.json"]) for one in unreadable]
    with RepairModel(folder, opened.model, options) as model:
        if capture is None:
            progress("the store's own files")
            outcomes += _repair_root(opened, model)
        for name in (one.record.name for one in captures):
            progress(f"capture {name!r}")
            outcomes += (repair := _CaptureRepair(folder, name, model)).run()
            finished += [name] * repair.has_finished
    progress("graphs")
    for damage in verify_graphs(folder, capture)[1]:
        outcomes.append(Outcome(damage, False, f"build the graphs {damage.graphs!r} again"))
    return RepairReport(
        tuple(one for one in outcomes if one.is_repaired),
        tuple(one for one in outcomes if not one.is_repaired),
        tuple(finished),
    )


def _repair_root(store: Store, model: RepairModel) -> list[Outcome]:
    """Repair what belongs to the store as a whole."""
    damage = verify_root(store.folder)
    of_model = [one for one in damage if is_root_file(one.key)]
    indexes = {names_key(kind): kind for kind in KINDS}
    outcomes = []
    for one in damage:
        if one.key in indexes:
            write_names(store.folder, indexes[one.key])
            outcomes.append(Outcome(one, True, "written again from what the store lists"))
        elif one.key == f"{CAPTURES}/zarr.json":
            write_group(store.folder, CAPTURES)
            outcomes.append(Outcome(one, True, "written again: it says the same in every store"))
        elif one not in of_model:
            outcomes.append(Outcome(one, False, _elsewhere(one)))
    if not of_model:
        return outcomes
    known = (store.model.dtype, store.model.fingerprint)
    with own_root(store.folder):
        repaired = _with_model(model, known, of_model, lambda: rewrite_root_files(store, of_model, model))
    left = {one.key: one for one in verify_root(store.folder)}
    return outcomes + [
        replace(one, is_repaired=False, what="written again from the model, and still not what the store's root says")
        if one.is_repaired and one.damage.key in left
        else one
        for one in repaired
    ]


def _elsewhere(damage: Damage) -> str:
    """What to do about a part of the root that the model does not give."""
    if damage.key.startswith("edits/"):
        name = damage.key.split("/")[1]
        return f"delete the edit {name!r} and make it again, or restore it from a copy"
    if damage.key.startswith("explanations/"):
        return "delete it and explain the neuron again, or restore it from a copy"
    return "restore it from a copy of the store"


def _with_model(
    model: RepairModel, known: tuple[str, str], damage: Iterable[Damage], repair: Callable[[], list[Outcome]]
) -> list[Outcome]:
    """What `repair` gives; where the model, `known` by number type and fingerprint, cannot be had, that, as the reason of all.

    A model that was named must be the right one.
    """
    try:
        model.load(*known)
    except ActstoreError as error:
        if model.options.model is not None:
            raise
        return [Outcome(one, False, f"it needs the model: {error}") for one in damage]
    try:
        return repair()
    except CaptureError:
        raise
    except ActstoreError as error:  # such as images that are not those that were captured
        return [Outcome(one, False, str(error)) for one in damage]


class _CaptureRepair:
    """Repairs one capture, in rounds: each verifies it and repairs what it finds.

    One that lacks nothing but the last step is finished, as where a repair was killed that had to write the sums again.
    """

    def __init__(self, folder: Folder, name: str, model: RepairModel) -> None:
        self.has_finished = False
        self._folder, self._name, self._model = folder, name, model
        self._tried: dict[tuple[int | None, str], Outcome] = {}

    def run(self) -> list[Outcome]:
        """What was done; nothing is written, and the capture not owned, where nothing is damaged."""
        capture = self._open()
        if not self._damage(capture) and not leftovers(self._folder, self._name) and not self._is_filled(capture):
            return []
        with own(self._folder, self._name):
            clear_leftovers(self._folder, self._name)
            for _ in range(_ROUNDS):
                capture = self._open()
                fresh = [one for one in self._damage(capture) if (one.block, one.key) not in self._tried]
                if not fresh:
                    break
                for outcome in self._repair(capture, fresh):
                    self._tried[outcome.damage.block, outcome.damage.key] = outcome
            capture = self._open()
            left = {(one.block, one.key): one for one in self._damage(capture)}
            if not left and self._is_filled(capture):
                finish_capture(self._folder, capture.record)
                self.has_finished = True
        # `verify` names a limited number of missing blocks; the others come up when those are there.
        later = [Outcome(one, False, "run `store.repair()` again") for at, one in left.items() if at not in self._tried]
        return later + [
            replace(one, is_repaired=False, what=f"{one.what}, and still damaged")
            if one.is_repaired and place in left
            else one
            for place, one in self._tried.items()
        ]

    def _open(self) -> Capture:
        return Store(self._folder).peek(self._name)

    def _damage(self, capture: Capture) -> list[Damage]:
        return verify_capture(capture)

    def _is_filled(self, capture: Capture) -> bool:
        """Whether every block of a capture is committed, and it was never finished."""
        found = standing(capture)
        return found.is_filled and found.is_unfinished

    def _repair(self, capture: Capture, damage: list[Damage]) -> list[Outcome]:
        """Repair the first kind of damage that others may hide behind, or follow from."""
        metadata = [one for one in damage if one.block is None and one.key.endswith("/zarr.json")]
        if metadata:
            write_metadata(self._folder, capture.record, {one.key for one in metadata})
            return [Outcome(one, True, "written again as the capture's record says") for one in metadata]
        lost = [one for one in damage if one.block is None and one.key in _REASONS]
        if lost:
            return [Outcome(one, False, _REASONS[one.key]) for one in lost]
        if any(one.block is not None for one in damage):
            return self._repair_blocks(capture, [one for one in damage if one.block is not None])
        checkpoint = [one for one in damage if folded_statistics_key(self._name).endswith(f"/{one.key}")]
        if checkpoint:
            write_checkpoint(self._folder, capture.record, capture.blocks)
            return [Outcome(one, True, _ADDED_UP) for one in checkpoint]
        results = [one for one in damage if one.key in _RESULTS]
        if results and len(capture.blocks) == capture.record.plan.n_blocks:
            add_up(capture)
            return [Outcome(one, True, _ADDED_UP) for one in results]
        index = [one for one in damage if committed_key(self._name).endswith(f"/{one.key}")]
        if index and is_finished(self._folder, capture.record):
            self._folder.delete(committed_key(self._name))
            complete_index(self._folder, capture.record)
            return [Outcome(one, True, "written again from the commit records") for one in index]
        return [Outcome(one, False, "restore it from a copy of the store") for one in damage]

    def _repair_blocks(self, capture: Capture, damage: list[Damage]) -> list[Outcome]:
        """Fill the damaged blocks again."""
        if (None, "plan") in self._tried:
            return [Outcome(one, False, "it can be computed only from the plan, which is damaged") for one in damage]
        by_block: dict[int, list[Damage]] = defaultdict(list)
        for one in damage:
            assert one.block is not None
            by_block[one.block].append(one)
        foreign = [block for block in by_block if block >= capture.record.plan.n_blocks]
        unplanned = [one for block in foreign for one in by_block.pop(block)]
        outcomes = [Outcome(one, False, "no such block is planned: delete the files of it") for one in unplanned]
        if by_block:
            planned = [one for of_block in by_block.values() for one in of_block]
            known = (capture.record.dtype, capture.record.model_fingerprint)
            outcomes += _with_model(self._model, known, planned, lambda: refill(capture, by_block, self._model))
        return outcomes

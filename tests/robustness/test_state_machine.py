"""Plan, fill, kill, resume, verify, read, damage, in any order: a store says what a plain model of it in memory says."""

from __future__ import annotations

import dataclasses
import uuid
from collections import UserDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actstore.store.capture.plan import Plan
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.layout import commit_key, shard_key
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from types import ModuleType

N_BLOCKS = 4
PRECISIONS = ("exact", "half", "int8", "sparse", "none")
BLOCKS = st.lists(st.integers(0, N_BLOCKS - 1), min_size=1, max_size=N_BLOCKS, unique=True)


class Killed(Exception):
    """The end of a writer between two writes."""


class Deadly(UserDict):
    """Statistics whose reader is killed."""

    def __getitem__(self, key: Any) -> Any:
        raise Killed


class Machine(RuleBasedStateMachine):
    """One capture of four blocks, and what must be readable of it.

    The model: which blocks are committed, which files are damaged, and what every block was filled with.
    """

    planting: ModuleType

    @initialize(precision=st.sampled_from(PRECISIONS), seed=st.integers(0, 3))
    def plan(self, precision: str, seed: int) -> None:
        self.location = f"memory://{uuid.uuid4()}/store"
        self.folder = Folder(self.location, read_only=False)
        what = self.planting.Planted(lengths=(30, 34, 64, 20, 30, 50), precision=precision)
        plan, _ = self.planting.plan_windows(self.folder, "corpus", what)
        assert plan.n_blocks == N_BLOCKS
        self.record = self.planting.capture_record("corpus", plan, what)
        root.write_neurons(self.folder, self.planting.model_record(), None)
        root.write_root(self.folder, self.planting.model_record())
        self.record = create_capture(self.folder, self.record)
        self.blocks = Plan(self.folder, "corpus", plan)
        rng = np.random.default_rng(seed)
        self.filled: list[tuple[dict[str, Any], CaptureStatistics]] = []
        for block in range(N_BLOCKS):
            n = len(self.blocks.block(block).position)
            values = {i: rng.standard_normal((width, n), np.float32) for i, width in enumerate(self.planting.WIDTHS)}
            self.filled.append(self.planting.fill(self.record, self.blocks, block, values))
        self.committed: set[int] = set()
        self.damaged: set[str] = set()
        """Keys below the capture, of shards."""

    def write(self, blocks: list[int], killed_after: int | None = None) -> None:
        """Fill blocks; with `killed_after`, the writer dies before it commits the next block after this number of them."""
        with CaptureWriter(self.folder, self.record, n_threads=1, overlap=False) as writer:
            for number, block in enumerate(blocks):
                arrays, statistics = self.filled[block]
                if number == killed_after:
                    statistics = dataclasses.replace(statistics, sites=Deadly(statistics.sites))
                copies = {key: array.copy() for key, array in arrays.items()}
                writer.submit(block, copies, statistics, began=0.0)
                self.committed.add(block)
                self.damaged -= {key for key in self.damaged if key.endswith(f"/c/0/{block}")}

    @rule(blocks=BLOCKS)
    def fill(self, blocks: list[int]) -> None:
        """Blocks in any order, some of them again: filling is idempotent, and repairs."""
        self.write(blocks)

    @rule(blocks=BLOCKS, data=st.data())
    def kill(self, blocks: list[int], data: st.DataObject) -> None:
        """The shards of the block it was at are written, its commit record is not."""
        after = data.draw(st.integers(0, len(blocks) - 1))
        with pytest.raises(Killed):
            self.write(blocks, killed_after=after)
        # Its shards are whole and new, whatever was damaged before.
        self.damaged -= {key for key in self.damaged if key.endswith(f"/c/0/{blocks[after]}")}

    @rule(checkpoint=st.booleans())
    def resume(self, checkpoint: bool) -> None:
        """What a run with --resume does: fill what is missing, then finish."""
        self.write([block for block in range(N_BLOCKS) if block not in self.committed])
        running = RunningStatistics(self.folder, self.record)
        running.advance(checkpoint=checkpoint)
        assert running.n_blocks == N_BLOCKS
        write_finished(self.folder, self.record, running.total)

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def uncommit(self, data: st.DataObject) -> None:
        """Somebody takes a commit record away, as messages of damage advise."""
        block = data.draw(st.sampled_from(sorted(self.committed)))
        self.folder.delete(commit_key("corpus", block))
        self.committed.remove(block)

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A bit of a committed shard flips."""
        block = data.draw(st.sampled_from(sorted(self.committed)))
        key = shard_key(data.draw(st.sampled_from([spec.key for spec in block_arrays(self.record)])), block)
        short = key.removeprefix("captures/corpus/")
        if short in self.damaged:
            return
        content = bytearray(self.folder.read(key))
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        self.folder.write(key, bytes(content))
        self.damaged.add(short)

    @rule()
    def verify(self) -> None:
        """Exactly the damaged shards of committed blocks are named, and blocks that a finished capture lost."""
        found = {damage.key for damage in verify_capture(Store(self.location).capture())}
        lost = {key for key in found if key.startswith("blocks/")}
        expected = {key for key in self.damaged if int(key.rpartition("/")[2]) in self.committed}
        assert found - lost == expected
        assert lost <= {f"blocks/{block}.json" for block in range(N_BLOCKS) if block not in self.committed}

    @rule(layer=st.integers(0, 1), neuron=st.integers(0, 4))
    def read(self, layer: int, neuron: int) -> None:
        """A neuron over the committed blocks; of a damaged one, the shard's own answer or a refusal."""
        capture = Store(self.location).capture()
        if self.record.precision == "none":
            with pytest.raises(NotFoundError, match="no values"):
                capture.activations(layer, neuron)
            return
        prefixes = [f"{name}/mlp.post/{layer}/c/0/" for name in ("values", "scale")]
        if any(f"{prefix}{block}" in self.damaged for prefix in prefixes for block in self.committed):
            with suppress(FormatError):
                assert len(capture.activations(layer, neuron)) == len(capture.slots())
            return
        np.testing.assert_array_equal(capture.activations(layer, neuron), self.expected(layer, neuron))

    def expected(self, layer: int, neuron: int) -> Any:
        """What the model says of a neuron: float32 [token]."""
        parts = [np.empty(0, np.float32)]
        for block in sorted(self.committed):
            arrays, _ = self.filled[block]
            row = arrays[f"captures/corpus/values/mlp.post/{layer}"][neuron, : len(self.blocks.block(block).position)]
            if self.record.precision == "int8":
                row = row.astype(np.float32) * arrays[f"captures/corpus/scale/mlp.post/{layer}"][neuron]
            parts.append(row.astype(np.float32))
        return np.concatenate(parts)

    @rule()
    def count(self) -> None:
        """Statistics are those of the committed blocks, added in their order, bit for bit."""
        total = CaptureStatistics.empty(self.record)
        for block in sorted(self.committed):
            total.merge(self.filled[block][1])
        assert Store(self.location).capture().statistics().encode() == total.encode()

    @invariant()
    def what_is_committed_is_there(self) -> None:
        """Blocks appear with their commit records, and no token of another block does."""
        if not hasattr(self, "record"):
            return
        capture = Store(self.location).capture()
        assert set(capture.blocks) == self.committed
        assert set(capture.slots() // self.record.plan.block_slots) == self.committed
        for block in set(range(N_BLOCKS)) - self.committed:
            with pytest.raises(NotFoundError):
                capture.gate_signs(0, block)


def run(planting: ModuleType, n_examples: int, n_steps: int) -> None:
    machine = type("PlantedMachine", (Machine,), {"planting": planting})
    how = settings(
        max_examples=n_examples,
        stateful_step_count=n_steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=how)


def test_a_store_says_what_a_plain_model_of_it_says(planting: ModuleType) -> None:
    run(planting, n_examples=6, n_steps=10)


@pytest.mark.slow
def test_a_store_says_what_a_plain_model_of_it_says_for_long(planting: ModuleType) -> None:
    run(planting, n_examples=12, n_steps=25)

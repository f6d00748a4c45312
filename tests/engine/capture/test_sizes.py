"""The size of a block is a matter of settings: a plan is the same wherever it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import pytest

from actstore.engine.capture.sizes import (
    LEAST_MEMORY,
    MOST_MEMORY,
    bytes_per_slot,
    check_memory,
    default_memory,
    planned_slots,
)
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store.reader import Capture


class Memory:
    """What the system says of a machine with one gigabyte free."""

    available = 10**9


def test_the_demo_model_has_blocks_of_16384_slots_and_a_7b_one_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    small = bytes_per_slot({"mlp.post": dict.fromkeys(range(4), 672)}, "exact", "float32", 0)
    large = bytes_per_slot({"mlp.post": dict.fromkeys(range(32), 11_008)}, "exact", "bfloat16", 32 * 11_008)
    assert planned_slots(small, None, None, 16_384) == 16_384
    assert planned_slots(large, None, None, 16_384, 4 << 30) == (4 << 30) * 2 // 5 // (32 * 11_008 * 17 // 8)
    assert planned_slots(large, None, None, 16_384, default_memory(32 * 11_008, 4096, "bfloat16")) == 13_878
    assert planned_slots(large, 1 << 36, None, 16_384) == 16_384
    assert planned_slots(large, None, 131_072, 16_384) == 131_072
    with pytest.raises(
        InvalidInputError, match=r"^Blocks of 8,192 tokens take up to 15\.3\d GB .* the 4\.00 GB of `memory`"
    ):
        planned_slots(large, 4 * 10**9, 8192, 16_384)


def test_memory_is_a_matter_of_the_model() -> None:
    assert default_memory(2688, 256, "float32") == default_memory(12 * 3072, 768, "float32") == LEAST_MEMORY
    assert default_memory(32 * 11_008, 4096, "bfloat16") == 9 * 2 * 32 * 11_008 * 4096
    assert default_memory(80 * 28_672, 8192, "bfloat16") == MOST_MEMORY


def test_blocks_that_do_not_fit_the_memory_are_refused(
    captured: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = captured(precision="int8").record
    check_memory(record, 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(InvalidInputError, match=r"^Blocks of 256 tokens take .* fewer `block_tokens`\.$"):
        check_memory(record, 2)


def test_a_block_has_the_tokens_asked_for(captured: Callable[..., Any]) -> None:
    assert captured(block_tokens=100).record.plan.block_slots == 128, "in whole windows of 32"
    assert captured(block_tokens=100, positions="last").record.plan.block_slots == 64, "rounded down to whole bytes"
    with pytest.raises(InvalidInputError, match="`block_tokens` lies between 1 and 16,777,216, found 0"):
        captured(block_tokens=0)

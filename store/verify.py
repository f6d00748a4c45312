"""Is the store what its records say? Checksums of every committed shard, and the plan against its fingerprint.

Knows nothing about models; recomputing values is the engine's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.store.commits import damaged_shards
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.statistics import sum_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Damage:
    """One thing in a store that is not what it should be."""

    capture: str
    block: int | None
    """None for the plan and the finished statistics."""
    site: str | None
    layer: int | None
    key: str
    what: str

    def __str__(self) -> str:
        place = f"layer {self.layer} ({self.site}), " if self.layer is not None else ""
        block = f"block {self.block}" if self.block is not None else "the capture as a whole"
        return f"capture {self.capture!r}, {place}{block}: {self.key}: {self.what}"


def verify_capture(capture: Capture, on_block: Callable[[int], None] = lambda block: None) -> list[Damage]:
    """Everything damaged in a capture, by block; an empty list where all is well."""
    name = capture.record.name
    damage = []
    for block in capture.blocks:
        for key, what in damaged_shards(capture.folder, name, block):
            match = re.match(r"(?:values|scale|threshold|dropped)/([^/]+)/(\d+)/|gate_sign/(\d+)/", key)
            site = (match[1] or "gate_sign") if match else None
            layer = int(match[2] or match[3]) if match else None
            damage.append(Damage(name, block, site, layer, key, what))
        on_block(block)
    damage += [Damage(name, None, None, None, key, what) for key, what in _whole(capture)]
    return damage


def _whole(capture: Capture) -> list[tuple[str, str]]:
    """What is wrong with the parts that belong to no block."""
    wrong = []
    try:
        found = capture.plan.fingerprint()
        if found != capture.record.plan.fingerprint:
            wrong.append(("plan", f"fingerprint {found[:12]}…, expected {capture.record.plan.fingerprint[:12]}…"))
    except (FormatError, NotFoundError, ValueError, IndexError, OSError, RuntimeError) as error:
        wrong.append(("plan", str(error)))
    try:
        sum_statistics(capture.folder, capture.record)
        capture.neurons()
    except (FormatError, NotFoundError, ValueError, OSError) as error:
        wrong.append(("statistics", str(error)))
    return wrong

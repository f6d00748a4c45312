"""A part of a store is damaged, then `repair` runs, half of the times killed on its way and run again.

Whatever it was that was damaged, a value that is read is right. Where `repair` says that the store is whole, every reader says
what it said before the damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from faults.campaigns import Result, Say
from faults.oracle import Failures, describe, judge_end
from faults.shim import CHANGES, Fault
from faults.tampering import Expected, damaged_stores

if TYPE_CHECKING:
    from pathlib import Path

    from faults.oracle import Oracle

REPAIR: Final = "repair {store} --quiet"
MOST_CHANGES: Final = 40
"""A kill comes at one of the first changes of this many; a repair of one part makes about as many."""


def repairs(
    oracle: Oracle, n: int, seed: int, *, only: int | None = None, say: Say = print, state: str = "rich"
) -> Result:
    """Every kind of tampering in turn, then repair."""
    result = Result("repairs", n, seed)
    for tampered in damaged_stores(oracle, result, state, only):
        is_killed = tampered.chance.random() < 0.5
        fault = Fault("kill", CHANGES, tampered.chance.randint(1, MOST_CHANGES)) if is_killed else None
        outcome, failures = _repair(oracle, tampered.expected, tampered.work, fault)
        case = f"{tampered.case}, {fault or 'no fault'}"
        result.add(case, outcome, failures)
        for of, detail in failures:
            say(f"repairs: {case}: {of}: {describe(detail)}")
    return result


def _repair(oracle: Oracle, expected: Expected, work: Path, fault: Fault | None) -> tuple[str, Failures]:
    """What came of repairing a store, and what should not have."""
    store, failures = work / "store", []
    if fault is not None:
        ended = oracle.workshop.cli(REPAIR, work, fault=fault, timeout_s=120)
        failures += [(f"killed: {kind}", detail) for kind, detail in judge_end(ended)]
        _, found = expected.judge(store)
        failures += [(f"after the kill: {kind}", detail) for kind, detail in found]
    ended = oracle.workshop.cli(REPAIR, work, timeout_s=120)
    failures += judge_end(ended)
    outcome, found = expected.judge(store)
    failures += found
    if ended.status == 0 and outcome != "harmless":
        failures.append(("repair says whole, and it is not", outcome))
    elif ended.status != 0 and outcome == "harmless":
        failures.append(("repair says damaged, and nothing is", ended.out + ended.err))
    said = {0: "whole again", 1: "some of it named as beyond repair", 2: "refused in a sentence"}
    return said.get(ended.status if ended.status is not None else -1, "no end"), failures

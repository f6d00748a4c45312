"""The verdict of a quick run: what became slower since the figures that the checkout holds, benchmarks/results/quick.json.

Times of two runs say as much about the machine as about the code. So ratios are compared: a candidate of ours against the
alternative in its row, round by round, both in one run; and only with figures of the same kind of machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.registry import Measurement

FIGURES = Path(__file__).parent / "results" / "quick.json"
OURS = "actstore"
"""What the names of our candidates begin with."""
SMALLEST_CHANGE = 1.25
"""A median ratio that changes by less is no finding: quick runs have three rounds of small inputs."""


@dataclass(frozen=True)
class Kind:
    """What has to be the same for figures of two runs to be held against one another."""

    processor: str
    processors: int
    python: str
    torch: str
    gpu: str

    def __str__(self) -> str:
        return ", ".join(
            [self.processor, f"{self.processors} processors", f"Python {self.python}", f"torch {self.torch}", self.gpu]
        )


def this_kind(processor: str) -> Kind:
    """The kind of this machine."""
    import torch

    python, _, _ = platform.python_version().rpartition(".")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Kind(processor, os.cpu_count() or 1, python, torch.__version__, gpu)


def ratios(measurement: Measurement) -> dict[str, list[float]]:
    """Time of each candidate of ours over that of the row's alternative, by round; of none where a row has one side only.

    The alternative is the first candidate that is not ours.
    """
    other = next((name for name in measurement.seconds if not name.startswith(OURS)), None)
    if other is None:
        return {}
    return {
        name: [ours / theirs for ours, theirs in zip(times, measurement.seconds[other], strict=True)]
        for name, times in measurement.seconds.items()
        if name.startswith(OURS)
    }


def record(measurements: Sequence[Measurement], kind: Kind, where: str, path: Path = FIGURES) -> None:
    """Keep what a quick run measured, for later runs to be held against."""
    rows = {one.row: found for one in measurements if (found := ratios(one))}
    path.write_text(
        json.dumps({"kind": asdict(kind), "where": where, "ratios": rows}, indent=1) + "\n", encoding="utf-8"
    )


def changes(
    before: dict[str, dict[str, list[float]]], measurements: Sequence[Measurement]
) -> Iterator[tuple[str, float]]:
    """What is faster or slower than it was, and by which factor: where the ranges of all rounds of both runs do not meet."""
    for measurement in measurements:
        for name, now in ratios(measurement).items():
            then = before.get(measurement.row, {}).get(name)
            if then is None:
                continue
            factor = statistics.median(now) / statistics.median(then)
            apart = min(now) > max(then) or max(now) < min(then)
            if apart and max(factor, 1 / factor) >= SMALLEST_CHANGE:
                yield f"{measurement.row}: {name}", factor


def verdict(measurements: Sequence[Measurement], kind: Kind, path: Path = FIGURES) -> list[str]:
    """Lines to print: what changed, or that nothing did, or why no comparison is possible."""
    if not path.is_file():
        return [f"No verdict: the checkout has no figures of a quick run ({path.name}); --record keeps these."]
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    then = Kind(**found["kind"])
    if then != kind:
        return [f"No verdict: the figures to compare with are of another kind of machine ({then}); this is {kind}."]
    compared = sum(name in found["ratios"].get(one.row, {}) for one in measurements for name in ratios(one))
    changed = list(changes(found["ratios"], measurements))
    slower = [
        f"slower, {factor:.2f} × as long as before against the alternative: {name}"
        for name, factor in changed
        if factor > 1
    ]
    faster = [
        f"faster, {factor:.2f} × as long as before against the alternative: {name}"
        for name, factor in changed
        if factor < 1
    ]
    return [
        *slower,
        *faster,
        f"Verdict: of {compared} figures that are in both runs, {len(slower)} slower, {len(faster)} faster, of the others no "
        f"difference seen. Before: {found['where']}.",
    ]

"""Scans of a stored capture with `--device`, beside the same on the CPU: the demo model over Python's standard library."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import actstore
from benchmarks.rows.graphs import captured_demo

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.on_gpu.part import Part


def run(part: Part) -> None:
    """Every scan on the CPU and on the GPU; in a small run without a GPU, on the CPU only."""
    with captured_demo(part.pick(250_000, 600)) as capture:
        store = actstore.open(capture.folder.location)
        scans: dict[str, Callable[[str], object]] = {
            "coactivation L3.N17": lambda device: store.coactivation("L3.N17", k=5, device=device),
            "contributions, next tokens": lambda device: store.contributions(k=5, device=device),
            "coverage, tknc": lambda device: store.coverage(criteria=("tknc",), device=device),
        }
        for name, scan in scans.items():
            for device in ("cpu", "cuda") if part.device.type == "cuda" else ("cpu",):
                try:
                    seconds = part.wall_seconds(lambda s=scan, d=device: s(d), part.pick(3, 1))
                except Exception as error:
                    part.fail(f"{name}, {device}", error)
                    continue
                part.row(
                    f"{name}, {device}",
                    median_s=statistics.median(seconds),
                    min_s=min(seconds),
                    max_s=max(seconds),
                    repeats=len(seconds),
                )

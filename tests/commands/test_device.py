"""`--device` of scans: the GPU's launchers are called, the numbers are the CPU's, and only what has a kernel takes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from actstore import cli as command_line

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parents[1] / "store" / "data" / "format-1-step-2"
TEXT, IMAGES = KEPT / "text", KEPT / "images"
SCANS: dict[str, tuple[tuple[object, ...], str]] = {
    "contributions": (
        ("contributions", TEXT, "--next-tokens", "--capture", "corpus", "-k", 24),
        "contribution.gpu.sum_contributions",
    ),
    "contributions of a target": (
        ("contributions", TEXT, "--target-id", 282, "--capture", "corpus", "--by", "language"),
        "contribution.gpu.sum_contributions",
    ),
    "naica": (("naica", TEXT, "--u", 1, "--no-ica"), "cluster_inverse.gpu.threshold"),
    "coactivation": (("coactivation", TEXT, "L1.N3", "--capture", "corpus"), "coactivation.gpu.coactivation"),
    "coactivations": (
        ("coactivation", TEXT, "-k", 3, "--layers", "1", "--capture", "corpus"),
        "coactivation.gpu.coactivation",
    ),
    "coverage": (("coverage", TEXT, "--capture", "corpus", "--positions", "last", "--top", 3), "top_k.gpu.top_k"),
    "multimodal": (
        ("multimodal", IMAGES, "--capture", "corpus", "-k", 3, "--nouns", "content"),
        "contribution.gpu.contribution",
    ),
}
"""A command line by what it is called here, and the launcher that it must reach."""
WITH_DEVICE = {"contributions", "naica show", "coactivation", "coverage show", "multimodal show"}
"""Commands that scan with a kernel that has a form for GPUs; docs/gpu.md says why others have no such option."""


def near(value: Any) -> Any:
    """What equals `value` but for the rounding of floats."""
    if isinstance(value, dict):
        return {key: near(one) for key, one in value.items()}
    if isinstance(value, list):
        return [near(one) for one in value]
    return pytest.approx(value, rel=1e-5, abs=2e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_reaches_the_kernel_of_the_gpu(
    scan: str, cli: Callable[..., Result], request: pytest.FixtureRequest
) -> None:
    line, launcher = SCANS[scan]
    expected = cli(*line, "--device", "cpu", "--json")
    assert expected.status == 0, expected.err
    launches: Counter[str] = request.getfixturevalue("launches")
    device = "auto" if scan == "coactivation" else "cuda"
    found = cli(*line, "--device", device, "--json")
    assert found.status == 0, found.err
    assert launches[launcher] > 0
    assert not {key: n for key, n in launches.items() if ".cpu." in key}
    assert found.json == near(expected.json)


def scan_devices() -> dict[str, bool]:
    """Command → whether it has --device, and that is what a scan computes on."""

    def walk(command: Any, path: str) -> dict[str, bool]:
        if hasattr(command, "commands"):
            below = (walk(one, f"{path} {name}".strip()) for name, one in command.commands.items())
            return {name: found for part in below for name, found in part.items()}
        helps = [p.help for p in command.params if "--device" in p.opts]
        return {path: any(text.startswith("What computes") for text in helps)}

    return walk(typer.main.get_command(command_line.application()), "")


def test_what_has_a_kernel_takes_a_device() -> None:
    assert {path for path, takes in scan_devices().items() if takes} == WITH_DEVICE
    assert {line[0].__str__() for line, _ in SCANS.values()} == {path.split()[0] for path in WITH_DEVICE}


@pytest.mark.parametrize(
    "method", ["naica/knowledge.py", "naica/stored_knowledge.py", "selectivity", "change", "graphs"]
)
def test_what_takes_no_device_calls_no_kernel_that_has_a_form_for_gpus(method: str) -> None:
    """As docs/gpu.md says; where this fails, the method must reach the kernel, and its command take `--device`."""
    path = ROOT / "engine" / method
    sources = [path] if path.is_file() else [*path.rglob("*.py")]
    assert sources
    called = {
        kernel
        for source in sources
        for kernel in re.findall(r"from actstore\.kernels\.(\w+)\.api import", source.read_text(encoding="utf-8"))
    }
    assert not {kernel for kernel in called if (ROOT / "kernels" / kernel / "gpu.py").exists()}


@pytest.mark.parametrize("scan", [name for name, (line, _) in SCANS.items() if name == line[0]])
def test_a_device_that_is_not_there_is_refused_before_the_work(
    scan: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refused(*SCANS[scan][0], "--device", "cuda:3") == (
        "There is no device cuda:3 here: torch finds no GPU. Leave --device out, or pass --device cpu."
    )

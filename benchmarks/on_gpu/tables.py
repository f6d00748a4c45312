"""The tables of README.md and docs/gpu.md, from what was measured on a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from benchmarks.marked import table
from benchmarks.readme_rows import seconds

if TYPE_CHECKING:
    from pathlib import Path

    Results = dict[str, Any]

NOT_MEASURED: Final = "Not measured: no machine with a GPU has run `python benchmarks/gpu.py` yet."
SUMMARY, KERNELS, CAPTURE = "gpu-summary", "gpu-kernels", "gpu-capture"
MARKS: Final = (SUMMARY, KERNELS, CAPTURE)


def read(path: Path) -> Results | None:
    """What was measured; None where nothing was. SystemExit for figures that are not those of a GPU."""
    if not path.exists():
        return None
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    if results["small"] or not results["machine"].get("card"):
        raise SystemExit(f"{path} was not measured on a GPU: expected the name of a card, and no small run. Remove it.")
    return results


def markdown(results: Results | None) -> dict[str, str]:
    """Mark → its text."""
    if results is None:
        return {
            SUMMARY: "On a GPU: not measured.",
            KERNELS: NOT_MEASURED,
            CAPTURE: "Not measured.",
        }
    where = describe(results["machine"])
    kernels = [*_rows(results, "kernels"), *_rows(results, "large"), *_rows(results, "tests")]
    return {
        SUMMARY: _summary(results),
        KERNELS: f"{_kernels(results)}\n\nMedians on {where}.{_notes(results, kernels)}",
        CAPTURE: f"{_capture(results)}\n\n{_layers(results)}{_notes(results, _rows(results, 'capture'))}",
    }


def describe(machine: Results) -> str:
    """One line that describes the machine, the releases, the commit and the date."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['card']}, {machine['memory_nbytes'] / 2**30:.0f} GiB, driver {machine['driver']}, "
        f"{machine['processors']} processors, Python {machine['python']}, {versions}, commit {machine['commit']}, "
        f"{machine['date']}"
    )


def _rows(results: Results, part: str) -> list[Results]:
    rows: list[Results] = results["parts"].get(part, {}).get("rows", [])
    return rows


def _kernels(results: Results) -> str:
    header = ["kernel", "median", "min – max", "GB/s", "TFLOP/s", "right"]
    lines = []
    for row in _rows(results, "kernels"):
        if "median_s" not in row:
            continue
        rate, products = row.get("nbytes", 0) / row["median_s"] / 1e9, row.get("flops", 0) / row["median_s"] / 1e12
        lines.append(
            [
                row["name"], seconds(row["median_s"]), f"{seconds(row['min_s'])} – {seconds(row['max_s'])}",
                f"{rate:,.0f}" if rate else "", f"{products:,.1f}" if products else "", _right(row),
            ]
        )  # fmt: skip
    lines += [
        [f"{row['name']}, {row['elements']:,} values", "", "", "", "", _right(row)]
        for row in _rows(results, "large")
        if "elements" in row
    ]
    return table(header, lines)


def _right(row: Results) -> str:
    return {True: "yes", False: "**no**"}.get(row.get("right"), "")  # type: ignore[call-overload, no-any-return]


def _capture(results: Results) -> str:
    lines = [
        [
            row["name"], f"{row['tokens_per_s']:,.0f}", f"{row['ratio']:.2f}",
            f"{row['nbytes_per_token'] / 1e3:,.1f}" if "nbytes_per_token" in row else "",
        ]
        for row in _rows(results, "capture")
        if "ratio" in row
    ]  # fmt: skip
    scans = [
        [row["name"], seconds(row["median_s"]), f"{seconds(row['min_s'])} – {seconds(row['max_s'])}"]
        for row in _rows(results, "commands")
        if "median_s" in row
    ]
    captured = table(["capture", "tokens/s", "of the bare forward pass", "kB per token"], lines)
    return "\n\n".join([captured, *([table(["scan, device", "median", "min – max"], scans)] if scans else [])])


def _layers(results: Results) -> str:
    bare = next((row for row in _rows(results, "capture") if "of_layers" in row), None)
    if bare is None:
        return "The forward pass was not measured."
    return (
        f"A Llama of the 7B's shape with random weights, {bare['layers']} of its {bare['of_layers']} layers. kB per token are "
        "those of these layers: copied to the host, or on disk."
    )


def _summary(results: Results) -> str:
    rows = {row["name"]: row for row in _rows(results, "capture") if "ratio" in row}
    ratios = [f"{name.removesuffix(', written')} {row['ratio']:.2f}" for name, row in rows.items() if "written" in name]
    if not ratios:
        return "On a GPU: not measured."
    return (
        f"On {results['machine']['card']}, a capture takes this much of the bare forward pass: {', '.join(ratios)} "
        "([kernels and captures](docs/gpu.md#measured))."
    )


def _notes(results: Results, rows: list[Results]) -> str:
    failed = [row["name"] for row in rows if "error" in row]
    skipped = [row["name"] for row in rows if "skipped" in row]
    parts = [f"{name} ({part['error'][:200]})" for name, part in results["parts"].items() if part["status"] == "failed"]
    notes = [("Failed", failed), ("Without time", skipped), ("Parts that failed", parts)]
    return "".join(f" {title}: {'; '.join(names)}." for title, names in notes if names)

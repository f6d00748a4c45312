"""Coverages as a safetensors file, to be merged with those of other captures and machines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from actstore.engine.coverage.coverage import Coverage
from actstore.engine.coverage.criteria import CoverageSettings
from actstore.engine.coverage.state import Ranges
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.exports.outputs import output_file
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FORMAT: Final = 1


def write_coverage(path: str | Path, coverages: Mapping[str, Coverage]) -> None:
    """Write coverages by population into one file, which replaces an earlier one only once it is complete."""
    target = output_file(path)
    first = next(iter(coverages.values()))
    arrays: dict[str, NDArray[Any]] = {}
    for layer, ranges in first.ranges.items():
        arrays |= {f"range/{layer}/low": ranges.low, f"range/{layer}/high": ranges.high}
    for number, coverage in enumerate(coverages.values()):
        arrays[f"{number}/patterns/hashes"] = coverage.patterns.hashes
        arrays |= {f"{number}/buckets/{name}": buckets for name, buckets in coverage.buckets.items()}
        for name, layers in coverage.states.items():
            for layer, state in layers.items():
                arrays |= {f"{number}/{name}/{layer}/{key}": array for key, array in state.arrays().items()}
    about = {
        "format": FORMAT,
        "settings": dataclasses.asdict(first.settings),
        "widths": first.widths,
        "surprise": first.surprise_of,
        "populations": [[name, coverage.n_samples] for name, coverage in coverages.items()],
    }
    with replacing(target) as partial:
        partial.write_bytes(save(arrays, metadata={"actstore_coverage": json.dumps(about)}))


def read_coverage(path: str | Path) -> dict[str, Coverage]:
    """What `write_coverage` wrote; `NotFoundError` where there is no file, `FormatError` where it is another kind of file."""
    if not Path(path).is_file():
        raise NotFoundError(f"There is no file {path}: expected one written by `store.coverage(output=…)`.")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("actstore_coverage", "{}"))
            if about.get("format") != FORMAT:
                raise FormatError(
                    f"{path} is not a coverage of format {FORMAT}: expected a file written by `store.coverage(output=…)`."
                )
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["settings"].items()}
            widths = {int(layer): int(width) for layer, width in about["widths"].items()}
            low = {layer: f"range/{layer}/low" for layer in widths}
            ranges = {
                layer: Ranges(file.get_tensor(key), file.get_tensor(f"range/{layer}/high"))
                for layer, key in low.items()
                if key in file.keys()  # noqa: SIM118  # the file is no mapping
            }
            coverages = {}
            for number, (name, n_samples) in enumerate(about["populations"]):
                coverage = coverages[name] = Coverage(CoverageSettings(**fields), widths, ranges, int(n_samples))
                coverage.surprise_of = str(about.get("surprise", ""))
                for kind in coverage.buckets:
                    coverage.buckets[kind] = file.get_tensor(f"{number}/buckets/{kind}")
                coverage.patterns.hashes = file.get_tensor(f"{number}/patterns/hashes")
                for kind, layers in coverage.states.items():
                    for layer, state in layers.items():
                        for key in state.arrays():
                            setattr(state, key, file.get_tensor(f"{number}/{kind}/{layer}/{key}"))
            return coverages
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidInputError | NotFoundError):
            raise
        raise FormatError(f"{path} is damaged: {' '.join(str(error).split())}. Measure it again.") from None


def merge_coverages(coverages: dict[str, Coverage], other: Mapping[str, Coverage]) -> None:
    """Add every population of `other` to that of the same name in place; those that `coverages` lacks are copied."""
    for name, coverage in other.items():
        if name in coverages:
            coverages[name].merge(coverage)
        else:
            first = next(iter(coverages.values()))
            total = Coverage(first.settings, coverage.widths, first.ranges, surprise_of=first.surprise_of)
            total.merge(coverage)  # raises where the two were not measured alike
            coverages[name] = total

"""Scans on a GPU, which Triton interprets where there is none: the GPU's launcher is called, and the numbers are the CPU's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from elsewhere import Elsewhere
from planted_attributions import PlantedAttributions
from planted_stores import planted

from actstore.engine.coactivation.coactivation import find_coactivation
from actstore.engine.coactivation.nearest import find_nearest
from actstore.engine.coactivation.settings import CoactivationSettings
from actstore.engine.coverage.criteria import CoverageSettings
from actstore.engine.coverage.measure import measure_coverage
from actstore.engine.devices.device import HOST, Device
from actstore.engine.naica.naica import NaicaSettings, find_naica

if TYPE_CHECKING:
    from collections import Counter

    from numpy.typing import NDArray

GPU = Device("cuda")
LENGTHS = (20, 30, 16)
"""Two blocks: the interpreter takes its time."""


def without_gaps(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """Activations that have something in common."""
    return (values + np.linspace(-2, 2, len(values), dtype=np.float32)[:, None] * values[0]).astype(np.float32)


def with_gaps(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """The same, of which some are not finite, and those of layer 1, an expert, not there at half of the tokens."""
    values = without_gaps(values, layer)
    values[1, 5], values[2, 7] = np.inf, np.nan
    if layer == 1:
        values[:, ::2] = np.nan
    return values


def assert_near(found: pa.Table, expected: pa.Table, tolerance: float = 2e-6) -> None:
    """Two tables are the same but for the rounding of floats."""
    assert found.schema == expected.schema
    for name in found.column_names:
        mine, theirs = found[name].to_pylist(), expected[name].to_pylist()
        assert mine == (
            pytest.approx(theirs, abs=tolerance) if pa.types.is_floating(found.schema.field(name).type) else theirs
        )


@pytest.mark.parametrize(
    "precision", ["exact", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "half"))]
)
def test_coactivation_of_a_neuron(precision: str, launches: Counter[str]) -> None:
    capture, _ = planted(lengths=LENGTHS, precision=precision, values=with_gaps)
    expected = find_coactivation(capture, 0, 0, device=HOST)
    assert launches.keys() == {"coactivation.cpu.coactivation"}
    launches.clear()
    found = find_coactivation(capture, 0, 0, device=GPU)
    assert launches == {"coactivation.gpu.coactivation": 2 * len(capture.blocks)}
    for name in ("both_fire", "fires", "tokens", "jaccard"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.correlation, expected.correlation, atol=2e-6)


@pytest.mark.parametrize(("sort", "values"), [("correlation", without_gaps), ("jaccard", with_gaps)])
@pytest.mark.slow
def test_coactivation_of_all(sort: str, values: Any, launches: Counter[str]) -> None:
    capture, _ = planted(lengths=LENGTHS, values=values)
    settings: Any = CoactivationSettings(sort, 4)
    expected = find_nearest(capture, settings, device=HOST).table()
    launches.clear()
    found = find_nearest(capture, settings, device=GPU).table()
    assert launches == {"coactivation.gpu.coactivation": 3 * len(capture.blocks)}
    assert_near(found, expected)


def test_naica_is_the_same(launches: Counter[str]) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 2, 33)).astype(np.float32) ** 3
    scores[2, 1, 5] = np.nan
    planted_scores: Any = PlantedAttributions(3, ig=scores)
    expected = find_naica(planted_scores, NaicaSettings(u=0.5), device=HOST)
    assert launches.keys() == {"cluster_inverse.cpu.threshold"}
    launches.clear()
    found = find_naica(planted_scores, NaicaSettings(u=0.5), device=GPU)
    assert launches == {"cluster_inverse.gpu.threshold": 3}
    for name in ("offsets", "neurons", "scores", "weights", "common", "totals"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.offsets[-1] > 0


@pytest.mark.slow
def test_coverage_is_the_same(launches: Counter[str]) -> None:
    capture, _ = planted(lengths=(20, 16), values=with_gaps)
    settings = CoverageSettings(criteria=("tknc", "tknp", "nc"), top=3)
    expected = measure_coverage(capture, settings, by="language", device=HOST)
    assert launches.keys() == {"top_k.cpu.top_k"}
    launches.clear()
    found = measure_coverage(capture, settings, by="language", device=GPU)
    assert launches.keys() == {"top_k.gpu.top_k"}
    assert {name: one.results() for name, one in found.items()} == {
        name: one.results() for name, one in expected.items()
    }


def test_workers_take_the_device_along(launches: Counter[str]) -> None:
    capture, _ = planted(lengths=(60, 4), values=without_gaps)
    workers, settings = Elsewhere(), CoactivationSettings(layers=(0,))
    found = find_coactivation(capture, 0, 0, settings, executor=workers, device=GPU)
    assert len(workers.items) == len(capture.blocks)
    assert launches == {"coactivation.gpu.coactivation": len(capture.blocks)}
    np.testing.assert_array_equal(found.correlation, find_coactivation(capture, 0, 0, settings, device=GPU).correlation)

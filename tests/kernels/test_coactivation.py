"""`coactivation` against its specification: precision, gaps, merging, and the same bits whatever runs beside."""

import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actstore.kernels.coactivation import naive
from actstore.kernels.coactivation.api import Coactivation, coactivation
from actstore.kernels.coactivation.cpu import SPAN
from actstore.kernels.floats import decode, encode

FORMATS = [np.float32, np.float16, np.uint16]


def make_values(rng: np.random.Generator, n_neurons: int, n_tokens: int, special: bool = False) -> NDArray[np.float32]:
    """Rows with something in common, one in three constant; `special` puts in what is not finite."""
    common = rng.standard_normal(n_tokens)
    values = rng.standard_normal((n_neurons, n_tokens)) + rng.standard_normal((n_neurons, 1)) * common
    values += 10 * rng.standard_normal((n_neurons, 1))
    values[rng.random(n_neurons) < 1 / 3] = 3
    if special:
        for number in (np.nan, np.inf, -np.inf):
            values[rng.random(values.shape) < 0.05] = number
    return values.astype(np.float32)


def assert_agrees(
    found: Coactivation, chosen: NDArray[Any], values: NDArray[Any], counted: NDArray[np.bool_] | None = None
) -> None:
    expected = naive.pearson(chosen, values, counted)
    np.testing.assert_allclose(found.pearson(), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.broadcast_to(found.count, expected.shape), naive.count(chosen, values, counted))
    jaccard = naive.jaccard(chosen, values, found.chosen_thresholds, found.thresholds, counted)
    np.testing.assert_array_equal(found.jaccard(), jaccard.astype(np.float32))


def assert_same_bits(found: Coactivation, expected: Coactivation) -> None:
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.sampled_from([0, 1, 3, 5]), st.sampled_from([0, 1, 7, 50])),
    n_tokens=st.sampled_from([0, 1, 2, 63, 64, 100, 257, 600]),
    formats=st.tuples(st.sampled_from(FORMATS), st.sampled_from(FORMATS)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    threads=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_coactivation_is_what_its_specification_says(
    seed: int, shape: tuple[int, int], n_tokens: int, formats: tuple[Any, Any], flags: tuple[bool, ...], threads: int
) -> None:
    special, masked, continued, strided = flags
    rng = np.random.default_rng(seed)
    chosen, values = (
        encode(make_values(rng, n, n_tokens, special), dtype) for n, dtype in zip(shape, formats, strict=True)
    )
    if strided:
        chosen, values = np.asfortranarray(chosen), np.repeat(values, 2, axis=1)[:, ::2]
    counted = rng.random(n_tokens) < 0.8 if masked else None
    state = Coactivation.empty(*shape, rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    cut = n_tokens // 3 if continued else 0
    if continued:
        state = coactivation(
            chosen[:, :cut], values[:, :cut], state, None if counted is None else counted[:cut], threads
        )
    found = coactivation(chosen[:, cut:], values[:, cut:], state, None if counted is None else counted[cut:], threads)
    assert_agrees(found, chosen, values, counted)


@pytest.mark.parametrize("n_tokens", [SPAN, SPAN + 1, 2 * SPAN + 300])
@pytest.mark.parametrize("masked", [False, True])
def test_any_number_of_spans(n_tokens: int, masked: bool) -> None:
    rng = np.random.default_rng(n_tokens)
    chosen, values = make_values(rng, 3, n_tokens), make_values(rng, 60, n_tokens)
    values[5, 17] = values[6, SPAN - 1] = np.nan
    chosen[1, 99] = np.inf
    counted = rng.random(n_tokens) < 0.9 if masked else None
    assert_agrees(coactivation(chosen, values, counted=counted), chosen, values, counted)


@pytest.mark.parametrize("ratio", [1e3, 1e5, -1e6])
def test_a_mean_far_larger_than_the_spread_costs_no_precision(ratio: float) -> None:
    rng = np.random.default_rng(0)
    chosen, values = (make_values(rng, n, 3000) + np.float32(ratio) for n in (4, 30))
    chosen[:, 1000:] -= np.float32(ratio / 100)
    found = coactivation(chosen[:, 1700:], values[:, 1700:], coactivation(chosen[:, :1700], values[:, :1700]))
    assert_agrees(found, chosen, values)


def test_plain_float32_sums_would_fail_where_the_mean_is_large() -> None:
    """What the test above is about: it can fail."""
    rng = np.random.default_rng(0)
    x, y = make_values(rng, 4, 3000) + np.float32(1e5), make_values(rng, 30, 3000) + np.float32(1e5)
    mean_x, mean_y = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    covariance = x @ y.T / 3000 - mean_x * mean_y.T
    spreads = (rows.std(1, dtype=np.float64) + 1e-9 for rows in (x, y))
    plain = covariance / np.outer(*spreads)
    assert np.nanmax(np.abs(plain - naive.pearson(x, y))) > 0.1


@pytest.mark.parametrize("scales", [(1e-38, 1e-30), (1e30, 1e35), (1e-20, 1e34), (1e-44, 1.0)])
def test_the_tiniest_and_the_largest_values(scales: tuple[float, float]) -> None:
    """A dead SiLU neuron's values are about -1e-20; their products would vanish in float32."""
    rng = np.random.default_rng(0)
    chosen, values = ((make_values(rng, 6, 500) * scale).astype(np.float32) for scale in scales)
    chosen[0], values[0] = chosen[0] - chosen[0].mean(), -3e38 * np.sign(values[0])
    assert_agrees(coactivation(chosen, values), chosen, values)


def test_a_gap_where_the_other_neuron_is_huge() -> None:
    """Both overflow at the first token of a window, one to infinity: the others' correlation must not notice."""
    rng = np.random.default_rng(0)
    chosen, values = make_values(rng, 2, 2000), make_values(rng, 8, 2000)
    chosen[:, ::50] = 6e4
    values[3:, ::50] = np.inf
    assert_agrees(coactivation(chosen, values), chosen, values)
    values[3:] = np.where(np.isinf(values[3:]), values[3:], 1.7)
    assert np.isnan(coactivation(chosen, values).pearson()[:, 3:]).all()


def test_neither_threads_nor_neighbours_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    chosen, values = make_values(rng, 5, SPAN + 700), make_values(rng, 131, SPAN + 700)
    whole = coactivation(chosen, values, threads=1)
    for threads in (2, 3, 8):
        assert_same_bits(coactivation(chosen, values, threads=threads), whole)
    for start, stop in ((0, 1), (1, 50), (47, 131)):
        part = coactivation(chosen[2:4], values[start:stop])
        np.testing.assert_array_equal(part.comoment, whole.comoment[2:4, start:stop])
        np.testing.assert_array_equal(part.m2, whole.m2[:, start:stop])
        np.testing.assert_array_equal(part.pearson(), whole.pearson()[2:4, start:stop])
        np.testing.assert_array_equal(part.both_active, whole.both_active[2:4, start:stop])


@pytest.mark.parametrize("special", [False, True])
def test_parts_merge_to_the_whole(special: bool) -> None:
    rng = np.random.default_rng(0)
    chosen, values = make_values(rng, 3, 900), make_values(rng, 20, 900)
    chosen[:, :300] += 1000
    if special:
        chosen[1, 350], values[7, 20] = np.nan, np.inf
    a, b, c = (coactivation(chosen[:, x : x + 300], values[:, x : x + 300]) for x in (0, 300, 600))
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        assert_agrees(merged, chosen, values)
    assert_same_bits(coactivation(chosen[:, 300:600], values[:, 300:600], a), a.merge(b))
    nothing = Coactivation.empty(3, 20)
    assert_same_bits(nothing.merge(b), b)
    assert_same_bits(b.merge(nothing), b)
    assert_agrees(nothing, chosen[:, :0], values[:, :0])


def test_moments_take_no_more_room_than_they_need() -> None:
    rng = np.random.default_rng(0)
    chosen, values = make_values(rng, 3, 100), make_values(rng, 20, 100)
    compact = coactivation(chosen, values)
    assert (compact.count.shape, compact.mean.shape, compact.chosen_m2.shape) == ((1, 1), (1, 20), (3, 1))
    values[4, 4] = np.nan
    full = coactivation(chosen, values)
    assert (full.count.shape, full.mean.shape, full.chosen_m2.shape) == ((3, 20),) * 3
    np.testing.assert_array_equal(full.pearson()[:, 5:], compact.pearson()[:, 5:])


def test_a_state_is_left_as_it_is_and_survives_being_taken_apart() -> None:
    rng = np.random.default_rng(0)
    chosen, values = make_values(rng, 3, 100), make_values(rng, 20, 100)
    state = coactivation(chosen, values)
    before = {name: array.copy() for name, array in state.arrays().items()}
    coactivation(values[:3], values, state)
    assert_same_bits(state, Coactivation(**before))


def test_infinity_is_active_and_nan_is_not() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1, 0.5, 0]], np.float32)
    state = coactivation(values, values, Coactivation.empty(1, 1, 0.5, 0.0))
    assert (state.chosen_active.item(), state.active.item(), state.both_active.item()) == (2, 3, 2)
    assert state.jaccard().item() == np.float32(2 / 3)


def test_tensors_of_torch_are_read_where_they_lie() -> None:
    values = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    counted = torch.arange(70) % 3 > 0
    found = coactivation(values[:2], values, counted=counted)
    assert_agrees(found, *(decode(v.view(torch.uint16).numpy()) for v in (values[:2], values)), counted.numpy())


def test_bad_input_is_named() -> None:
    x, y = np.zeros((2, 5), np.float32), np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError, match=r"over the same tokens, not \[2, 5\] and \[3, 4\]"):
        coactivation(x, y[:, :4])
    with pytest.raises(ValueError, match=r"state must be \[2 chosen, 3 neurons\], not \[3, 2\]"):
        coactivation(x, y, Coactivation.empty(3, 2))
    with pytest.raises(ValueError, match=r"one flag for each of 5 tokens, not int64 \[5\]"):
        coactivation(x, y, counted=np.arange(5))
    with pytest.raises(TypeError, match="chosen must be float32"):
        coactivation(x.astype(np.float64), y)
    with pytest.raises(ValueError, match=r"thresholds must be one number or one for each of 3 neurons, not \[2\]"):
        Coactivation.empty(2, 3, 0, np.zeros(2))
    with pytest.raises(ValueError, match="nothing is larger than NaN"):
        Coactivation.empty(2, 3, np.nan)
    with pytest.raises(ValueError, match="of different thresholds"):
        Coactivation.empty(2, 3).merge(Coactivation.empty(2, 3, 0, 1))
    with pytest.raises(ValueError, match="of 2 and of 1 neurons"):
        Coactivation.empty(2, 3).merge(Coactivation.empty(1, 3))


OTHER_MACHINE = """
import hashlib, sys
import llvmlite.binding
if sys.argv[1] == "small":
    llvmlite.binding.get_host_cpu_features = dict
import numpy as np
from actstore.kernels.coactivation.api import coactivation
values = np.random.default_rng(0).standard_normal((40, 5000)).astype(np.float32) + 100
values[3, 7] = np.nan
for array in coactivation(values[:5], values).arrays().values():
    print(hashlib.sha256(np.ascontiguousarray(array)).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names another x86-64 processor")
def test_a_processor_with_shorter_vectors_gives_the_same_bits(tmp_path: Any) -> None:
    def run(kind: str, **environment: str) -> list[str]:
        command, everything = [sys.executable, "-c", OTHER_MACHINE, kind], os.environ | environment
        done = subprocess.run(command, capture_output=True, text=True, env=everything, check=True)
        return done.stdout.split()

    features = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert run("small", **features) == run("host")

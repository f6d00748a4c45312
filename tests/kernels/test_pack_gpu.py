"""`pack` and `pack_signs` in Triton against their specification and the CPU's form, at odd sizes and with odd floats."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, NAN_BITS, Batch, batches, make_columns

from actstore.kernels.floats import decode, encode
from actstore.kernels.pack import api, naive
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.statistics import Statistics

gpu = pytest.importorskip("actstore.kernels.pack.gpu", exc_type=ImportError)
gpu_columns = pytest.importorskip("actstore.kernels.pack.gpu_columns", exc_type=ImportError)
DeviceStatistics = pytest.importorskip("actstore.kernels.pack.gpu_statistics", exc_type=ImportError).DeviceStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    OnDevice = Callable[[NDArray[Any]], Tensor]
    OnHost = Callable[[Tensor], NDArray[Any]]

N_LABELS, K = 3, 4
# The borders of a tile, 64 neurons × 16 tokens, and what lies beside them.
TOKENS, NEURONS = [0, 1, 7, 15, 16, 17, 33, 63], [1, 2, 63, 64, 65, 100]
only_on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def assert_same_statistics(found: Statistics, expected: Statistics) -> None:
    """Exactly the same, moments within what summing in another order costs float64."""
    largest = np.nan_to_num(np.maximum(np.abs(expected.minimum), np.abs(expected.maximum)), posinf=0).astype(np.float64)
    for name, array in found.arrays().items():
        other = expected.arrays()[name]
        assert array.dtype == other.dtype
        if name == "mean":
            assert (np.abs(array - other) <= 1e-12 * largest).all()
        elif array.dtype == np.float64:
            assert (np.abs(array - other) <= 1e-9 * np.abs(other) + 1e-20 * largest**2).all()
        else:
            np.testing.assert_array_equal(array, other, err_msg=name)


@given(batches(TOKENS, NEURONS), st.sampled_from([*FORMATS, None]), st.booleans(), st.sampled_from([16, 48, 512]))
@settings(max_examples=20, deadline=None)
def test_pack_is_what_its_specification_says(
    on_device: OnDevice, on_host: OnHost, case: Batch, target: Any, counting: bool, piece: int
) -> None:
    n_neurons = case.values.shape[1]
    expected = None if target is None else np.full((n_neurons, case.n_slots), NAN_BITS[target], target)
    out = None if expected is None else on_device(expected.copy())
    found = DeviceStatistics.empty(n_neurons, N_LABELS, K, on_device(case.values).device) if counting else None
    reference, by_cpu = Statistics.empty(n_neurons, N_LABELS, K), Statistics.empty(n_neurons, N_LABELS, K)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_columns, "PIECE", piece)
        gpu.pack(on_device(case.values), case.columns, out, found)
    naive.pack(case.values, case.columns, expected, reference)
    api.pack(case.values, case.columns, None if expected is None else expected.copy(), by_cpu)

    if expected is not None and out is not None:
        packed = on_host(out)
        if target == case.values.dtype:
            np.testing.assert_array_equal(packed.view(np.uint8), expected.view(np.uint8))
        else:
            np.testing.assert_array_equal(decode(packed), decode(expected))
    if found is not None:
        assert_same_statistics(found.to_host(), reference)
        assert_same_statistics(found.to_host(), by_cpu)


@given(batches(TOKENS, NEURONS))
@settings(max_examples=20, deadline=None)
def test_signs_are_what_their_specification_says(on_device: OnDevice, on_host: OnHost, case: Batch) -> None:
    n_neurons = case.values.shape[1]
    expected, counts = np.zeros((n_neurons, -(-case.n_slots // 8)), np.uint8), np.zeros((N_LABELS, n_neurons), np.int64)
    expected[:, 0] = 0b101  # bits that another batch has set
    out, found = on_device(expected.copy()), on_device(counts.astype(np.int32))

    gpu.pack_signs(on_device(case.values), case.columns, out, found)
    naive.pack_signs(case.values, case.columns, expected, counts)

    np.testing.assert_array_equal(on_host(out), expected)
    np.testing.assert_array_equal(on_host(found), counts)


def whole_batch(n_tokens: int, first_token: int = 0) -> Columns:
    everything = np.ones(n_tokens, np.bool_)
    tokens = np.arange(n_tokens)
    return Columns(tokens, tokens, np.array([0, n_tokens]), np.zeros((1, 0), np.int32), everything, first_token)


@pytest.mark.parametrize("piece", [16, 512])
def test_a_tie_within_a_window_goes_to_its_first_counted_token(on_device: OnDevice, piece: int) -> None:
    columns = replace(whole_batch(50), first_token=100, segments=np.array([0, 45, 50]), labels=np.zeros((2, 0)))
    columns.counted[:2] = False
    values = np.ones((50, 2), np.float32)
    found = DeviceStatistics.empty(2, 0, 3, on_device(values).device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_columns, "PIECE", piece)
        gpu.pack(on_device(values), columns, None, found)
    assert found.to_host().exemplar_tokens.tolist() == [[102, 145, -1]] * 2


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_bit_survives_in_the_same_format(on_device: OnDevice, on_host: OnHost, dtype: Any) -> None:
    if dtype == np.float32:
        bits = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32)
    else:
        bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(dtype).reshape(256, 256)
    out = on_device(np.zeros((256, 256), dtype))
    gpu.pack(on_device(values), whole_batch(256), out, None)
    np.testing.assert_array_equal(on_host(out).view(np.uint8), np.ascontiguousarray(values.T).view(np.uint8))


@pytest.mark.parametrize("target", [np.float16, np.uint16])
def test_casts_round_to_nearest_even_like_torch(on_device: OnDevice, on_host: OnHost, target: Any) -> None:
    coarse = decode(np.arange(2**16, dtype=np.uint16).view(target)).view(np.uint32).astype(np.int64)
    half = 1 << (12 if target == np.float16 else 15)
    around = (coarse[:, None] + np.array([0, 1, half - 1, half, half + 1, 2 * half])) & 0xFFFFFFFF
    values = around.astype(np.uint32).view(np.float32).reshape(96, 4096)
    out = on_device(np.zeros((4096, 96), target))
    gpu.pack(on_device(values), whole_batch(96), out, None)
    torch_dtype = torch.float16 if target == np.float16 else torch.bfloat16
    expected = torch.from_numpy(values.T.copy()).to(torch_dtype).float().numpy()
    np.testing.assert_array_equal(decode(on_host(out)), expected)


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_nan_is_packed_to_the_bits_of_the_cpu(on_device: OnDevice, on_host: OnHost, source: Any, target: Any) -> None:
    nan = {np.float32: (0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF), np.float16: (0x7C01, 0x7E00, 0x7FFF)}
    magnitudes = np.array(nan.get(source, (0x7F81, 0x7FC0, 0x7FFF)), np.uint32 if source == np.float32 else np.uint16)
    sign = magnitudes.dtype.type(1 << (8 * magnitudes.itemsize - 1))
    values = np.concatenate([magnitudes, magnitudes | sign])[:, None].view(source)
    out, expected = (np.zeros((1, len(values)), target) for _ in range(2))
    found = on_device(out)
    gpu.pack(on_device(values), whole_batch(len(values)), found, None)
    api.pack(values, whole_batch(len(values)), expected, None)
    np.testing.assert_array_equal(on_host(found).view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 5:45],  # what a fused projection hands out: rows apart, neurons together
        lambda x: x[:, ::3],
        lambda x: x.T.contiguous().T,
        lambda x: x[::2],
        lambda x: x[:1].expand(20, 60),
        lambda x: x.requires_grad_(),
    ],
    ids=["part of a row", "every third neuron", "transposed", "every second row", "repeated", "with gradient"],
)
def test_tensors_of_any_strides_are_read_right(
    device: torch.device, on_host: OnHost, dtype: torch.dtype, view: Any
) -> None:
    values = view(torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).to(dtype).to(device))
    n_rows, n_neurons = values.shape
    out = torch.full((n_neurons, n_rows), torch.nan, device=device)
    gpu.pack(values, whole_batch(n_rows), out, None)
    np.testing.assert_array_equal(on_host(out), on_host(values.detach().float()).T)


def test_a_block_may_be_part_of_a_wider_buffer(on_device: OnDevice, on_host: OnHost) -> None:
    values = np.random.default_rng(0).standard_normal((20, 9)).astype(np.float32)
    buffer = on_device(np.full((9, 50), np.nan, np.float32))
    gpu.pack(on_device(values), whole_batch(20), buffer[:, 10:30], None)
    np.testing.assert_array_equal(on_host(buffer)[:, 10:30], values.T)
    assert np.isnan(on_host(buffer)[:, :10]).all()
    assert np.isnan(on_host(buffer)[:, 30:]).all()


def test_batches_add_up_as_on_the_cpu_and_clearing_forgets_them(on_device: OnDevice) -> None:
    rng = np.random.default_rng(1)
    values = np.round(rng.standard_normal((150, 20)) * 4).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    found = DeviceStatistics.empty(20, N_LABELS, K, on_device(values).device)
    gpu.pack(on_device(-values), make_columns(rng, 100, 150, scattered=True), None, found)
    found.clear()
    expected = Statistics.empty(20, N_LABELS, K)
    for first in (100, 0, 50):  # an earlier token may come later, and wins a tie all the same
        columns = replace(make_columns(rng, 50, 50, scattered=True), first_token=first * 10)
        gpu.pack(on_device(values[first : first + 50]), columns, None, found)
        naive.pack(values[first : first + 50], columns, None, expected)
    assert_same_statistics(found.to_host(), expected)


def test_moments_survive_a_mean_a_million_times_the_deviation(on_device: OnDevice) -> None:
    rng = np.random.default_rng(0)
    values = (1e4 + 1e-2 * rng.standard_normal((900, 20))).astype(np.float32)
    columns = whole_batch(300)
    columns.counted[:40] = False  # special tokens that open a window, and lie elsewhere
    values[np.arange(900) % 300 < 40] = -3e8
    found = DeviceStatistics.empty(20, 0, 0, on_device(values).device)
    for start in range(0, 900, 300):
        gpu.pack(on_device(values[start : start + 300]), replace(columns, first_token=start), None, found)
    exact = values[values[:, 0] > 0].astype(np.float64)
    np.testing.assert_allclose(found.to_host().mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.to_host().m2, ((exact - exact.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-9)


def test_an_outlier_first_does_not_spoil_the_moments(on_device: OnDevice) -> None:
    values = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    values[0] = [1e30, -1e30, np.nan]
    found = DeviceStatistics.empty(3, 0, 0, on_device(values).device)
    gpu.pack(on_device(values), whole_batch(200), None, found)
    exact = values.astype(np.float64)
    expected = np.nansum((exact - np.nanmean(exact, axis=0)) ** 2, axis=0)
    np.testing.assert_allclose(found.to_host().m2, expected, rtol=1e-9)


def test_a_batch_is_uploaded_once_for_all_layers(device: torch.device) -> None:
    columns = whole_batch(10)
    values = torch.ones(10, 2, device=device)
    for _ in range(3):
        gpu.pack(values, columns, torch.zeros(2, 10, device=device), None)
    assert gpu_columns.columns_on(values.device, columns) is gpu_columns.columns_on(values.device, columns)
    again = replace(columns, first_token=5)
    assert gpu_columns.columns_on(values.device, again).tokens[0] == 5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda v: gpu.pack(v.double(), whole_batch(3), None, DeviceStatistics.empty(4, 0, 0, v.device)),
            TypeError,
            "values must be float32, float16 or bfloat16, not torch.float64: convert them first",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(5), None, None),
            ValueError,
            "values must be [row, neuron] with 5 rows or more, not [3, 4]",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(3), v.new_zeros(4, 2), None),
            ValueError,
            "out must be [4 neurons, 3 slots or more], not [4, 2]",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(3), v.new_zeros(3, 4).T, None),
            ValueError,
            "out must be contiguous along its slots; its strides are [1, 4]",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(3), np.zeros((4, 3), np.float32), None),
            TypeError,
            "as values are, not ndarray",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(3), None, Statistics.empty(4, 0, 0)),
            TypeError,
            "statistics must be a tensor on",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(3), torch.zeros(4, 3, device="meta"), None),
            ValueError,
            "as values are, not on meta",
        ),
        (
            lambda v: gpu.pack(v, whole_batch(3), None, DeviceStatistics.empty(5, 0, 0, v.device)),
            ValueError,
            "statistics are of 5 neurons, values of 4",
        ),
        (
            lambda v: gpu.pack_signs(v, whole_batch(3), v.new_zeros(4, 1)),
            TypeError,
            "out_bits must be uint8, not torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    device: torch.device, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        call(torch.zeros(3, 4, device=device))
    assert message in str(raised.value)


def test_values_and_statistics_are_not_mixed_between_devices() -> None:
    with pytest.raises(TypeError, match="statistics of values on the CPU must be Statistics, not DeviceStatistics"):
        api.pack(np.zeros((3, 4), np.float32), whole_batch(3), None, DeviceStatistics.empty(4, 0, 0, "cpu"))


@only_on_gpu
@pytest.mark.parametrize("dtype", FORMATS)
def test_a_large_batch_is_the_cpus_and_the_same_every_time(on_device: OnDevice, on_host: OnHost, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = encode((rng.standard_normal((5000, 3001)) * 10.0 ** rng.integers(-9, 4, 3001)).astype(np.float32), dtype)
    columns = make_columns(rng, 4900, 5000, scattered=True)
    expected, out = Statistics.empty(3001, N_LABELS, 20), np.zeros((3001, columns.n_slots), dtype)
    bits, positives = np.zeros((3001, -(-columns.n_slots // 8)), np.uint8), np.zeros((N_LABELS, 3001), np.int64)
    api.pack(values, columns, out, expected)
    api.pack_signs(values, columns, bits, positives)
    results = []
    for _ in range(2):
        found = DeviceStatistics.empty(3001, N_LABELS, 20, "cuda")
        packed, signs = on_device(np.zeros_like(out)), on_device(np.zeros_like(bits))
        counts = torch.zeros(N_LABELS, 3001, dtype=torch.int32, device="cuda")
        api.pack(on_device(values), replace(columns), packed, found)
        api.pack_signs(on_device(values), replace(columns), signs, counts)
        assert_same_statistics(found.to_host(), expected)
        for array, other in ((packed, out), (signs, bits), (counts, positives)):
            np.testing.assert_array_equal(on_host(array), other)
        results.append(b"".join(array.tobytes() for array in found.to_host().arrays().values()))
    assert results[0] == results[1]

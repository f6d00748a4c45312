"""`pack` and `pack_signs` against their specification, at odd sizes and with all that can go wrong in a float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, NAN_BITS, Batch, batches, make_columns

from actstore.kernels.floats import cast, decode
from actstore.kernels.pack import naive
from actstore.kernels.pack.api import Columns, Statistics, pack, pack_signs

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The borders of a tile (128 neurons × 64 tokens) and of a transposed square (16 × 16), and what lies beside them.
NEURONS = [1, 2, 15, 16, 17, 100, 127, 128, 129, 145]
TOKENS = [0, 1, 7, 15, 16, 17, 63, 64, 65, 100, 130]


def assert_same_statistics(found: Statistics, expected: Statistics) -> None:
    # A sum's rounding is relative to the largest of its terms, not to what is left of them.
    largest = np.nan_to_num(np.maximum(np.abs(expected.minimum), np.abs(expected.maximum)), posinf=0).astype(np.float64)
    for name, array in found.arrays().items():
        other = expected.arrays()[name]
        if name == "mean":
            assert (np.abs(array - other) <= 1e-12 * largest).all()
        elif array.dtype == np.float64:
            assert (np.abs(array - other) <= 1e-9 * np.abs(other) + 1e-20 * largest**2).all()
        else:
            np.testing.assert_array_equal(array, other, err_msg=name)


@given(batches(TOKENS, NEURONS), st.sampled_from([*FORMATS, None]), st.booleans(), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_pack_is_what_its_specification_says(case: Batch, target: Any, counting: bool, threads: int) -> None:
    n_neurons = case.values.shape[1]
    found = expected = None
    if target is not None:
        found = np.full((n_neurons, case.n_slots), NAN_BITS[target], target)
        expected = found.copy()
    statistics = Statistics.empty(n_neurons, 3, 4) if counting else None
    reference = Statistics.empty(n_neurons, 3, 4)

    pack(case.values, case.columns, found, statistics, threads)
    naive.pack(case.values, case.columns, expected, reference)

    if found is not None and expected is not None:
        if target == case.values.dtype:
            np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
        else:
            np.testing.assert_array_equal(decode(found), decode(expected))
    if statistics is not None:
        assert_same_statistics(statistics, reference)


@given(batches(TOKENS, NEURONS), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_signs_are_what_their_specification_says(case: Batch, threads: int) -> None:
    n_neurons = case.values.shape[1]
    found = np.zeros((n_neurons, -(-case.n_slots // 8)), np.uint8)
    found[:, 0] = 0b101  # bits that another batch has set
    expected, counts, reference = found.copy(), np.zeros((3, n_neurons), np.int64), np.zeros((3, n_neurons), np.int64)

    pack_signs(case.values, case.columns, found, counts, threads)
    naive.pack_signs(case.values, case.columns, expected, reference)

    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, reference)


@pytest.mark.parametrize("target", [None, np.float16])  # each takes numba a compilation of its own
def test_values_and_columns_that_are_read_only_are_packed_like_others(target: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((103, 100)).astype(np.float16)
    columns = make_columns(rng, 100, 103, scattered=True)
    results = []
    for writeable in (True, False):
        for array in (values, columns.rows, columns.slots, columns.segments, columns.labels, columns.counted):
            array.flags.writeable = writeable
        statistics, signs = Statistics.empty(100, 3, 4), np.zeros((100, 28), np.uint8)
        out = None if target is None else np.zeros((100, 220), target)
        pack(values, columns, out, statistics)
        pack_signs(values, columns, signs)
        arrays = [signs, *statistics.arrays().values(), *([] if out is None else [out])]
        results.append(b"".join(array.tobytes() for array in arrays))
    assert results[0] == results[1]


def whole_batch(n_tokens: int, first_slot: int = 0) -> Columns:
    everything = np.ones(n_tokens, np.bool_)
    slots = first_slot + np.arange(n_tokens)
    return Columns(np.arange(n_tokens), slots, np.array([0, n_tokens]), np.zeros((1, 0), np.int32), everything, 0)


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_bit_survives_in_the_same_format(dtype: Any) -> None:
    if dtype == np.float32:
        bits = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32)
    else:
        bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(dtype).reshape(256, 256)
    out = np.zeros((256, 256), dtype)
    statistics = Statistics.empty(256, 0, 1)
    pack(values, whole_batch(256), out, statistics)
    np.testing.assert_array_equal(out.view(np.uint8), np.ascontiguousarray(values.T).view(np.uint8))


@pytest.mark.parametrize("target", [np.float16, np.uint16])
def test_casts_round_to_nearest_even_like_torch(target: Any) -> None:
    coarse = decode(np.arange(2**16, dtype=np.uint16).view(target)).view(np.uint32).astype(np.int64)
    half = 1 << (12 if target == np.float16 else 15)
    around = (coarse[:, None] + np.array([0, 1, half - 1, half, half + 1, 2 * half])) & 0xFFFFFFFF
    values = around.astype(np.uint32).view(np.float32)
    out = np.zeros((6, 2**16), target)
    pack(values, whole_batch(2**16), out, None)
    torch_dtype = torch.float16 if target == np.float16 else torch.bfloat16
    expected = torch.from_numpy(values.T.copy()).to(torch_dtype).float().numpy()
    np.testing.assert_array_equal(decode(out), expected)


def test_moments_survive_a_mean_a_million_times_the_deviation() -> None:
    rng = np.random.default_rng(0)
    values = (1e4 + 1e-2 * rng.standard_normal((3000, 20))).astype(np.float32)
    statistics = Statistics.empty(20, 0, 0)
    for start in range(0, 3000, 1000):
        pack(values[start : start + 1000], whole_batch(1000, start), None, statistics)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(statistics.m2, ((exact - exact.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-9)


def test_an_outlier_first_does_not_spoil_the_moments() -> None:
    values = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    values[0] = [1e30, -1e30, np.nan]
    statistics = Statistics.empty(3, 0, 0)
    pack(values, whole_batch(500), None, statistics)
    exact = values.astype(np.float64)
    expected = np.nansum((exact - np.nanmean(exact, axis=0)) ** 2, axis=0)
    np.testing.assert_allclose(statistics.m2, expected, rtol=1e-9)


def test_a_batch_gives_the_same_bits_on_one_thread_and_on_many() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((200, 700)) * 10.0 ** rng.integers(-9, 9, 700)).astype(np.float32)
    columns = make_columns(rng, 190, 200, scattered=True)
    results = []
    for threads in (1, 2, 5):
        statistics, out = Statistics.empty(700, 3, 5), np.zeros((700, 400), np.float16)
        signs = np.zeros((700, 50), np.uint8)
        pack(values, columns, out, statistics, threads)
        pack_signs(values, columns, signs, statistics.positives, threads)
        arrays: list[NDArray[Any]] = [out, signs, *statistics.arrays().values()]
        results.append(b"".join(array.tobytes() for array in arrays))
    assert results[0] == results[1] == results[2]


def test_a_token_that_is_not_counted_is_stored_but_leaves_no_trace_in_the_statistics() -> None:
    values = np.array([[5.0, np.nan], [1.0, 2.0]], np.float32)
    columns = Columns(
        np.arange(2),
        np.arange(2),
        np.array([0, 2]),
        np.zeros((1, 1), np.int32),
        np.array([False, True]),
        first_token=40,
    )
    out, statistics = np.zeros((2, 2), np.float32), Statistics.empty(2, 1, 2)
    pack(values, columns, out, statistics)
    np.testing.assert_array_equal(out, values.T)
    assert statistics.maximum.tolist() == [1, 2]
    assert statistics.count.tolist() == [1, 1]
    assert statistics.non_finite.tolist() == [0, 0]
    assert statistics.positives.tolist() == [[1, 1]]
    assert statistics.exemplar_tokens.tolist() == [[41, -1], [41, -1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[:, 5:45],  # what a fused projection hands out: rows apart, neurons together
        lambda x: x[:, ::3],
        lambda x: x.T.contiguous().T,
        lambda x: x[::2],
        lambda x: x[:1].expand(40, 60),
        lambda x: x.requires_grad_(),
    ],
    ids=["whole", "part of a row", "every third neuron", "transposed", "every second row", "repeated", "with gradient"],
)
def test_tensors_of_any_strides_are_read_right(dtype: torch.dtype, view: Any) -> None:
    values = view(torch.randn(80, 60, generator=torch.Generator().manual_seed(0)).to(dtype))
    n_rows, n_neurons = values.shape
    out = np.zeros((n_neurons, n_rows), np.float32)
    pack(values, whole_batch(n_rows), out, None)
    np.testing.assert_array_equal(out, values.detach().float().numpy().T)


def test_read_only_activations_are_read_and_reversed_rows_copied() -> None:
    values = np.random.default_rng(0).standard_normal((20, 9)).astype(np.float32)
    values.flags.writeable = False
    out = np.zeros((9, 20), np.float32)
    pack(values, whole_batch(20), out, None)
    np.testing.assert_array_equal(out, values.T)
    pack(values[::-1], whole_batch(20), out, None)
    np.testing.assert_array_equal(out, values[::-1].T)


def test_a_block_may_be_part_of_a_wider_buffer() -> None:
    values = np.random.default_rng(0).standard_normal((20, 9)).astype(np.float32)
    buffer = np.full((9, 50), np.nan, np.float32)
    pack(values, whole_batch(20), buffer[:, 10:30], None)
    np.testing.assert_array_equal(buffer[:, 10:30], values.T)
    assert np.isnan(buffer[:, :10]).all()
    assert np.isnan(buffer[:, 30:]).all()


def test_exemplars_of_one_text_window_take_one_place() -> None:
    values = np.array([[9.0], [8.0], [1.0], [9.0], [3.0]], np.float32)
    columns = Columns(
        np.arange(5),
        np.arange(5),
        np.array([0, 2, 4, 5]),
        np.zeros((3, 0), np.int32),
        np.ones(5, np.bool_),
        first_token=100,
    )
    statistics = Statistics.empty(1, 0, 4)
    pack(values, columns, None, statistics)
    assert statistics.exemplar_values.tolist() == [[9, 9, 3, -np.inf]]
    assert statistics.exemplar_tokens.tolist() == [[100, 103, 104, -1]]


def test_a_nan_below_the_precision_of_bfloat16_stays_nan() -> None:
    payload = np.array([[0x7F800001]], np.uint32).view(np.float32)
    assert np.isnan(decode(cast(payload, np.uint16))).all()
    out = np.zeros((1, 1), np.uint16)
    pack(payload, whole_batch(1), out, None)
    assert np.isnan(decode(out)).all()


GOOD = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: pack(GOOD.astype(np.float64), whole_batch(3), None, None),
            TypeError,
            "values must be float32, float16 or bfloat16 (as uint16 bits), not float64: convert it first",
        ),
        (
            lambda: pack([[1.0]], whole_batch(1), None, None),  # type: ignore[arg-type]
            TypeError,
            "values must be a torch tensor or a numpy array",
        ),
        (
            lambda: pack(torch.zeros(3, 4, device="meta"), whole_batch(3), None, None),
            ValueError,
            "values must be on the CPU, not on meta: call .cpu() first",
        ),
        (
            lambda: pack(GOOD, whole_batch(5), None, None),
            ValueError,
            "values must be [row, neuron] with 5 rows or more, not [3, 4]",
        ),
        (
            lambda: pack(GOOD, whole_batch(3), np.zeros((4, 2), np.float32), None),
            ValueError,
            "out must be [4 neurons, 3 slots or more], not [4, 2]",
        ),
        (
            lambda: pack(GOOD, whole_batch(3), np.zeros((3, 4), np.float32).T, None),
            ValueError,
            "out must be contiguous along its slots; its strides are [4, 16] bytes",
        ),
        (
            lambda: pack(
                GOOD, whole_batch(3), np.broadcast_to(np.float32(0), (4, 1)).repeat(3, 1), Statistics.empty(5, 0, 0)
            ),
            ValueError,
            "statistics are of 5 neurons, values of 4",
        ),
        (
            lambda: pack_signs(GOOD, whole_batch(3), np.zeros((4, 1), np.int8)),
            TypeError,
            "out_bits must be uint8, not int8",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


def test_a_read_only_block_and_an_unknown_label_are_refused() -> None:
    block = np.zeros((4, 3), np.float32)
    block.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        pack(GOOD, whole_batch(3), block, None)
    labelled = Columns(np.arange(3), np.arange(3), np.array([0, 3]), np.array([[2]]), np.ones(3, np.bool_), 0)
    with pytest.raises(ValueError, match=r"positives must be \[3 labels or more, 4 neurons\], not \[2, 4\]"):
        pack(GOOD, labelled, None, Statistics.empty(4, 2, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": np.array([0, 2, 2])}, "slots must ascend"),
        ({"slots": np.array([0, 1])}, "slots must hold one slot for each of 3 rows"),
        ({"rows": np.array([0, -1, 2])}, "rows must not be negative"),
        ({"segments": np.array([0, 2])}, "segments must ascend from 0 to the number of tokens, 3"),
        ({"labels": np.zeros((2, 1))}, r"labels must be \[1 segments, column\]"),
        ({"labels": np.array([[-2]])}, "labels must be label ids, or -1 for none"),
        ({"counted": np.ones(2)}, "counted must hold one flag for each of 3 rows"),
    ],
)
def test_columns_that_contradict_themselves_are_refused(change: dict[str, Any], message: str) -> None:
    good = {
        "rows": np.arange(3),
        "slots": np.arange(3),
        "segments": np.array([0, 3]),
        "labels": np.zeros((1, 1)),
        "counted": np.ones(3),
        "first_token": 0,
    }
    with pytest.raises(ValueError, match=message):
        Columns(**{**good, **change})

"""Precisions: the bits on disk are those of the kernels' specification and of the stores that are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from actstore.kernels.pack import api, naive
from actstore.store import layout
from actstore.store.errors import FormatError
from actstore.store.files.arrays import BlockArray
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.precision import PRECISIONS, Exact, Half, Int8, NoValues, Precision, Sparse, widened
from actstore.store.files.shards import encode_shard
from actstore.store.reader import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import CaptureRecord

DATA = Path(__file__).parent.parent / "data"
STORES = ("format-1", *(f"format-1-step-2/{path.name}" for path in sorted((DATA / "format-1-step-2").iterdir())))

BLOCKS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)
FINITE = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(-(2.0**15), 2.0**15, width=32),
)


def encoded(precision: Precision, block: NDArray[Any], n_used: int) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    result = precision.encode(block.copy(), np.arange(block.shape[1]) < n_used, api)
    return result.values, result.parameters


@given(BLOCKS, st.sampled_from(["float32", "float16", "uint16"]))
def test_int8_is_the_specification_of_the_kernels(block: NDArray[np.float32], dtype: str) -> None:
    with np.errstate(over="ignore"):
        staged = block.view(np.uint32).__rshift__(16).astype(np.uint16) if dtype == "uint16" else block.astype(dtype)
    steps, parameters = encoded(Int8("bfloat16" if dtype == "uint16" else dtype), staged, block.shape[1])
    expected_steps, expected_scale = naive.quantise(staged)
    assert steps.tobytes() == expected_steps.tobytes()
    assert {name: (v.dtype.name, v.tobytes()) for name, v in parameters.items()} == {
        "scale": ("float32", expected_scale.tobytes())
    }


@given(BLOCKS, st.floats(0, 1), st.data())
def test_sparse_is_the_specification_of_the_kernels(
    block: NDArray[np.float32], keep: float, data: st.DataObject
) -> None:
    n_used = data.draw(st.integers(0, block.shape[1]))
    values, parameters = encoded(Sparse("float32", keep), block, n_used)
    expected = block.copy()
    threshold, dropped = naive.sparsify(expected, keep, np.arange(block.shape[1]) < n_used)
    assert values.tobytes() == expected.tobytes()
    assert parameters["threshold"].tobytes() == threshold.tobytes()
    assert parameters["dropped"].tolist() == dropped.tolist()


@given(BLOCKS)
def test_exact_and_half_write_what_was_staged(block: NDArray[np.float32]) -> None:
    for kind, dtype in ((Exact, "float32"), (Half, "float16")):
        with np.errstate(over="ignore"):
            staged = block.astype(dtype)
        values, parameters = encoded(kind("float32"), staged, block.shape[1])
        assert (values.tobytes(), parameters) == (staged.tobytes(), {})


@given(FINITE)
def test_a_stored_value_lies_within_the_rounding(block: NDArray[np.float32]) -> None:
    largest = np.abs(block).max(axis=1)
    for precision in (Exact("float32"), Half("float32"), Int8("float32")):
        staging = precision.staging_format
        assert staging is not None
        values, parameters = encoded(precision, block.astype(staging.dtype), block.shape[1])
        difference = np.abs(precision.decode(values, parameters) - block)
        assert (difference <= precision.rounding(largest, parameters.__getitem__)[:, None]).all()


@given(BLOCKS)
def test_one_row_decodes_as_in_its_block(block: NDArray[np.float32]) -> None:
    precision = Int8("float32")
    steps, parameters = encoded(precision, block, block.shape[1])
    whole = precision.decode(steps, parameters)
    for row in range(len(block)):
        one = precision.decode(steps[row], {"scale": parameters["scale"][row : row + 1]})
        assert one.tobytes() == whole[row].tobytes()


def test_what_each_precision_says() -> None:
    table = {
        name: (
            precision.keeps_values, precision.keeps_every_value, precision.keeps_signs, precision.uses_keep,
            precision("bfloat16").compression.cname, dict(precision.parameters),
            *(form and form.name for form in (precision("bfloat16").staging_format, precision("bfloat16").stored_format)),
            precision("bfloat16").can_overflow, precision("float16").can_overflow,
        )
        for name, precision in PRECISIONS.items()
    }  # fmt: skip
    assert table == {
        "exact": (True, True, True, False, "lz4", {}, "bfloat16", "bfloat16", False, False),
        "half": (True, True, True, False, "lz4", {}, "float16", "float16", True, False),
        "int8": (True, True, False, False, "zstd", {"scale": "float32"}, "bfloat16", "int8", False, False),
        "sparse": (
            True, False, False, True, "zstd", {"threshold": "float32", "dropped": "int64"}, "bfloat16", "bfloat16", False,
            False,
        ),
        "none": (False, False, False, False, "lz4", {}, None, None, False, False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "nbytes"),
    [
        (Exact("float32"), 3.72), (Exact("bfloat16"), 1.5), (Half("float32"), 2.0), (Int8("float32"), 0.62),
        (Sparse("float32", 0.1), 0.68), (Sparse("float32", 1.0), 3.72), (NoValues("float32"), 0.0),
    ],
)  # fmt: skip
def test_bytes_per_value(precision: Precision, nbytes: float) -> None:
    assert precision.bytes_per_value == pytest.approx(nbytes)


def test_an_unknown_precision_is_named(record: CaptureRecord) -> None:
    with pytest.raises(FormatError, match=r"has precision 'int4', expected one of exact, half, int8, sparse, none\."):
        replace(record, precision="int4").encoding  # noqa: B018


# Comparing with what was recomputed.


@dataclass
class Stored:
    values: NDArray[np.float32]
    steps: NDArray[Any]
    parameters: dict[str, NDArray[Any]]
    n_used: int

    def raw(self) -> NDArray[Any]:
        return self.steps

    def parameter(self, name: str) -> NDArray[Any]:
        return self.parameters[name]


def test_values_at_the_threshold_may_fall_on_either_side() -> None:
    stored = Stored(np.array([[0, 5, 0]], np.float32), np.zeros(0), {"threshold": np.array([3], np.float32)}, 3)
    recomputed = np.array([[3.01, 5.5, 0.5]], np.float32)
    precision = Sparse("float32", 0.5)
    assert precision.comparable(recomputed, stored, 0.01).tolist() == [[0, 5.5, 0.5]]
    assert precision.comparable(recomputed, stored, 0.0).tolist() == [recomputed[0].tolist()]


def test_thresholds_of_earlier_versions_hold_where_tokens_have_no_value() -> None:
    """They counted such tokens into the share; nothing else may have been dropped beyond the share."""
    values = np.array([[np.nan, 0, 0, 3], [1, 0, 0, 3]], np.float32)
    stored = Stored(values, np.zeros(0), {"threshold": np.array([2.5, 0.5], np.float32)}, 4)
    recomputed = np.array([[np.nan, 1.5, -2, 3], [1, 1.5, -2, 3]], np.float32)
    comparable = Sparse("float32", 0.5).comparable(recomputed, stored, 1e-3)
    np.testing.assert_array_equal(comparable, [[np.nan, 0, 0, 3], [1, 1.5, -2, 3]])


@pytest.mark.parametrize(("mark", "expected"), [(0, [254.0, 4.0]), (1, [np.inf, 4.0])])
def test_infinities_are_those_of_the_stored_scale(mark: int, expected: list[float]) -> None:
    scale = (np.array([2], np.float32).view(np.uint32) | np.uint32(mark)).view(np.float32)
    stored = Stored(np.array([[254, 4]], np.float32), np.array([[127, 2]], np.int8), {"scale": scale}, 2)
    again = Int8("float32").comparable(np.array([[np.inf, 4]], np.float32), stored, 0.0)
    assert again.tolist() == [expected]


# The stores that are kept.


def captures_with_values() -> list[tuple[str, str]]:
    return [
        (store, name)
        for store in STORES
        if (DATA / store).is_dir()
        for name in Store(DATA / store).captures
        if Store(DATA / store).capture(name).record.encoding.keeps_values
    ]


def decoded_by_hand(capture: Capture, raw: NDArray[Any], layer: int, block: int, site: str) -> NDArray[np.float32]:
    """The stored values by the format's definition, written out once more."""
    if raw.dtype == np.uint16:
        return np.left_shift(raw.astype("<u4"), 16).view("<f4")
    if raw.dtype != np.int8:
        return raw.astype("<f4")
    scale = capture.block_parameter("scale", layer, block, site)[:, None]
    bits = scale.view(np.uint32)
    values = np.where(raw == -128, np.nan, raw * (bits & ~np.uint32(1)).view(np.float32)).astype(np.float32)
    return np.where((bits & 1 == 1) & (abs(raw.astype(int)) == 127), np.copysign(np.float32(np.inf), raw), values)


@pytest.mark.parametrize(("store", "name"), captures_with_values())
def test_kept_stores_read_and_write_to_the_same_bits(store: str, name: str) -> None:
    capture = Store(DATA / store).capture(name)
    record, encoding = capture.record, capture.record.encoding
    assert encoding.stored_format is not None
    assert capture.blocks
    for site in record.sites:
        for layer in record.layers(site):
            key = layout.values_key(name, site, layer)
            array = BlockArray(capture.folder, key)
            assert (array.dtype, array.attributes["precision"]) == (encoding.stored_format.dtype, record.precision)
            for block in capture.blocks:
                raw = capture.raw_block(layer, block, site)
                shard = capture.folder.read(layout.shard_key(key, block))
                if store != "format-1":  # its version compressed chunks that are now framed as they are
                    assert encode_shard(raw, array.grid, encoding.compression) == shard
                expected = decoded_by_hand(capture, raw, layer, block, site)
                np.testing.assert_array_equal(capture.block_values(layer, block, site), expected)
                np.testing.assert_array_equal(capture.block_row(layer, 0, block, site), expected[0])
    for spec in block_arrays(record):
        if spec.dimension == "block":
            assert BlockArray(capture.folder, spec.key).dtype == spec.dtype


def test_every_precision_is_among_the_kept_stores() -> None:
    kept = {Store(DATA / store).capture(name).record.precision for store, name in captures_with_values()}
    assert kept == {name for name, precision in PRECISIONS.items() if precision.keeps_values}


def test_widening_keeps_every_bit_of_bfloat16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    assert (widened(bits).view(np.uint32) >> 16).tolist() == bits.tolist()

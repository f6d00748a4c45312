"""Products on tensor cores, of 16-bit floats as they are and of float32 in parts, against their specifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_values import make_weights

from actstore.kernels.contribution import naive as contribution_naive
from actstore.kernels.contribution.entries import Entries
from actstore.kernels.contribution.targets import Targets
from actstore.kernels.floats import decode, encode
from actstore.kernels.vocabulary_top_k import naive as vocabulary_naive

gpu_products = pytest.importorskip("actstore.kernels.contribution.gpu_products", exc_type=ImportError)
contribution = pytest.importorskip("actstore.kernels.contribution.gpu", exc_type=ImportError)
vocabulary = pytest.importorskip("actstore.kernels.vocabulary_top_k.gpu", exc_type=ImportError)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    OnDevice = Callable[[NDArray[Any]], Tensor]

# Formats of write vectors and directions, and whether there is a gain.
FACTORS = pytest.mark.parametrize(
    ("left", "right", "weighted"),
    [
        pytest.param(np.float16, np.float16, False, id="float16"),
        pytest.param(np.uint16, np.uint16, False, id="bfloat16"),
        pytest.param(np.uint16, np.uint16, True, id="bfloat16 with a gain"),
        pytest.param(np.uint16, np.float32, False, id="bfloat16 and float32"),
        pytest.param(np.uint16, np.float16, True, id="bfloat16 and float16 with a gain"),
    ],
)
DEPTHS = pytest.mark.parametrize("d", [1, 70])


@pytest.fixture
def _as_on_a_gpu(device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels multiply 16-bit floats as they are, in the interpreter too, and nothing else."""
    import triton.language as tl

    formats: set[str] = set()
    if device.type == "cpu":
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        multiply = InterpreterBuilder.create_dot

        def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
            formats.add(str(a.dtype.scalar))
            if a.dtype.scalar == tl.bfloat16:
                a, b = (TensorHandle(decode(x.data), tl.float32) for x in (a, b))
            return multiply(self, a, b, *others)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
        monkeypatch.setattr(gpu_products, "INTERPRETED", False)
    yield
    assert device.type == "cuda" or formats in ({"fp16"}, {"bf16"})


def make_case(
    d: int, left: Any, right: Any, weighted: bool
) -> tuple[NDArray[Any], NDArray[Any], Targets, NDArray[np.float64]]:
    """Activations [neuron, token], write vectors, targets, and what float32 sums of exact products may be wrong by."""
    rng = np.random.default_rng(d)
    activations, vectors, directions = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((65, 100), (65, d), (9, d))
    )
    vectors, directions, rows = encode(vectors, left), encode(directions, right), rng.integers(0, 9, 100)
    gain = rng.random(d).astype(np.float32) + 1 if weighted else None
    magnitudes = Targets(np.abs(decode(directions)), rows, gain)
    # Parts of which one were forgotten would be wrong by 2⁻⁸ or 2⁻¹⁶ of a product.
    bound = 1e-6 * contribution_naive.contribution(np.abs(activations), np.abs(decode(vectors)), magnitudes)
    return activations, vectors, Targets(directions, rows, gain), bound


@FACTORS
@DEPTHS
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_contributions_are_what_their_specification_says(
    on_device: OnDevice, d: int, left: Any, right: Any, weighted: bool
) -> None:
    activations, vectors, targets, bound = make_case(d, left, right, weighted)
    moved = on_device(vectors), Targets(on_device(targets.directions), targets.rows, targets.gain)
    found = contribution.contribution(activations, *moved).cpu().numpy()
    expected = contribution_naive.contribution(activations, vectors, targets)
    assert (np.abs(found - expected) <= bound).all()
    groups = np.arange(100)[:, None] % 3
    sums = contribution.sum_contributions(activations, *moved, Entries.of(targets.rows, groups), 3)
    expected_sums = contribution_naive.sum_contributions(activations, vectors, targets, groups, 3)
    assert (np.abs(sums.total - expected_sums.total) <= bound.sum(axis=1)).all()


@FACTORS
@DEPTHS
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_top_tokens_are_what_their_specification_says(
    on_device: OnDevice, d: int, left: Any, right: Any, weighted: bool
) -> None:
    vectors, unembedding, gain = make_weights(d, 65, 300, (left, right), True, lambda _: d)
    weights = gain if weighted else None
    with np.errstate(invalid="ignore"):  # the interpreter multiplies with numpy, which warns of inf · 0
        found = vocabulary.vocabulary_top_k(on_device(vectors), on_device(unembedding), 8, weights).to_host()
    expected = vocabulary_naive.vocabulary_top_k(vectors, unembedding, 8, weights)
    for side, of_side in zip(found, expected, strict=True):
        np.testing.assert_array_equal(side.values, of_side.values)
        np.testing.assert_array_equal(side.tokens, of_side.tokens)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_factor_that_is_not_finite_is_what_its_product_is(on_device: OnDevice) -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF], np.uint32)  # NaN of one low bit first
    directions, vectors = bits.view(np.float32)[:, None], encode(np.array([[1.0], [-0.5]], np.float32), np.uint16)
    targets = Targets(on_device(directions))
    with np.errstate(invalid="ignore"):  # infinity less its upper half, in numpy
        found = contribution.contribution(np.ones((2, 5), np.float32), on_device(vectors), targets).cpu().numpy()
    largest = np.finfo(np.float32).max
    expected = [[np.nan, np.nan, np.inf, -np.inf, largest], [np.nan, np.nan, -np.inf, np.inf, -largest / 2]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_the_formats_decide_what_is_multiplied(on_device: OnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_products, "INTERPRETED", False)
    in_float32, in_16_bits, in_parts = 0, 1, 2
    f32, f16, bf16 = (on_device(np.ones((2, 3), dtype)) for dtype in (np.float32, np.float16, np.uint16))
    gain = on_device(np.ones(3, np.float32))
    for left, right, weights, products in (
        (f16, f16, None, in_16_bits),
        (f16, f16, gain, in_float32),
        (f16, f32, None, in_float32),
        (bf16, bf16, None, in_16_bits),
        (bf16, bf16, gain, in_parts),
        (bf16, f16, None, in_parts),
        (f32, f32, None, in_float32),
    ):
        assert gpu_products.factors(left, right, weights)["PRODUCTS"] == products

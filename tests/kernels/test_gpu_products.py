"""Products of 16-bit floats as they are, which on a GPU are those of the tensor cores, against their specifications."""

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

HALVES = pytest.mark.parametrize("dtype", [np.float16, np.uint16], ids=["float16", "bfloat16"])
DEPTHS = pytest.mark.parametrize("d", [1, 33, 70])


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


def make_case(d: int, dtype: Any) -> tuple[NDArray[Any], NDArray[Any], Targets, NDArray[np.float64]]:
    """Activations [neuron, token], write vectors, targets, and what float32 sums of exact products may be wrong by."""
    rng = np.random.default_rng(d)
    activations, vectors, directions = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((65, 100), (65, d), (9, d))
    )
    arrays = activations, encode(vectors, dtype), encode(directions, dtype)
    rows = rng.integers(0, 9, 100)
    magnitudes = Targets(np.abs(decode(arrays[2])), rows)
    bound = 1e-5 * contribution_naive.contribution(np.abs(activations), np.abs(decode(arrays[1])), magnitudes)
    return activations, arrays[1], Targets(arrays[2], rows), bound


@HALVES
@DEPTHS
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_contributions_are_what_their_specification_says(on_device: OnDevice, d: int, dtype: Any) -> None:
    activations, vectors, targets, bound = make_case(d, dtype)
    moved = on_device(vectors), Targets(on_device(targets.directions), targets.rows)
    found = contribution.contribution(activations, *moved).cpu().numpy()
    expected = contribution_naive.contribution(activations, vectors, targets)
    assert (np.abs(found - expected) <= bound).all()
    groups = np.arange(100)[:, None] % 3
    sums = contribution.sum_contributions(activations, *moved, Entries.of(targets.rows, groups), 3)
    expected_sums = contribution_naive.sum_contributions(activations, vectors, targets, groups, 3)
    assert (np.abs(sums.total - expected_sums.total) <= bound.sum(axis=1)).all()


@HALVES
@DEPTHS
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_top_tokens_are_what_their_specification_says(on_device: OnDevice, d: int, dtype: Any) -> None:
    vectors, unembedding, _ = make_weights(d, 65, 300, (dtype, dtype), True, lambda _: d)
    with np.errstate(invalid="ignore"):  # the interpreter multiplies with numpy, which warns of inf · 0
        found = vocabulary.vocabulary_top_k(on_device(vectors), on_device(unembedding), 8).to_host()
    expected = vocabulary_naive.vocabulary_top_k(vectors, unembedding, 8)
    for side, of_side in zip(found, expected, strict=True):
        np.testing.assert_array_equal(side.values, of_side.values)
        np.testing.assert_array_equal(side.tokens, of_side.tokens)


def test_the_formats_decide_whether_products_are_of_16_bits(
    on_device: OnDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_products, "INTERPRETED", False)
    half, whole = (np.ones((2, 3), dtype) for dtype in (np.float16, np.float32))
    gain = on_device(np.ones(3, np.float32))
    for left, right, weights, native in (
        (half, half, None, True),
        (half, half, gain, False),
        (half, whole, None, False),
    ):
        assert gpu_products.factors(on_device(left), on_device(right), weights)["NATIVE"] == native

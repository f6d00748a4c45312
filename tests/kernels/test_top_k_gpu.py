"""`top_k` in Triton against its specification, and that its parts merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, make_values

from actstore.kernels.floats import encode
from actstore.kernels.top_k import api, naive

gpu = pytest.importorskip("actstore.kernels.top_k.gpu", exc_type=ImportError)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.kernels.top_k.naive import TopK

    OnDevice = Callable[[NDArray[Any]], Tensor]


def assert_equal(found: TopK, expected: TopK) -> None:
    np.testing.assert_array_equal(found.values, expected.values, strict=True)
    np.testing.assert_array_equal(found.tokens, expected.tokens, strict=True)


@given(
    seed=st.integers(0, 2**32),
    n_neurons=st.integers(0, 4),
    n_tokens=st.sampled_from([0, 1, 2, 127, 129, 600, 1024, 1025, 1500]),
    k=st.sampled_from([0, 1, 2, 3, 5, 8, 40]),
    dtype=st.sampled_from(FORMATS),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=80, deadline=None)
def test_top_k_is_what_its_specification_says(
    on_device: OnDevice, seed: int, n_neurons: int, n_tokens: int, k: int, dtype: Any, flags: tuple[bool, ...]
) -> None:
    tied, special, segmented, continued = flags
    rng = np.random.default_rng(seed)
    everywhere = rng.permutation(3000) + int(rng.integers(0, 10**12))
    tokens, earlier = np.sort(everywhere[:n_tokens]), np.sort(everywhere[n_tokens : n_tokens + 30])
    values = encode(make_values(rng, (n_neurons, n_tokens), tied, special), dtype)
    segments = np.sort(np.concatenate([[0, n_tokens], rng.integers(0, n_tokens + 1, 4)])) if segmented else None
    state = naive.top_k(make_values(rng, (n_neurons, 30), tied, special), earlier, k) if continued else None
    found = gpu.top_k(
        on_device(values),
        on_device(tokens),
        k,
        None if segments is None else on_device(segments),
        None if state is None else gpu.DeviceTopK(*map(on_device, state)),
    )
    assert_equal(found.to_host(), naive.top_k(values, tokens, k, segments, state))


@given(st.integers(0, 2**32), st.integers(0, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_parts_merge_to_the_whole_in_any_order_and_grouping(
    on_device: OnDevice, seed: int, k: int, special: bool
) -> None:
    values = make_values(np.random.default_rng(seed), (3, 90), tied=True, special=special)
    tokens = np.arange(90)
    a, b, c = (gpu.top_k(on_device(values[:, x : x + 30]), on_device(tokens[x : x + 30]), k) for x in (0, 30, 60))
    whole = naive.top_k(values, tokens, k)
    for merged in (
        gpu.merge(gpu.merge(a, b), c),
        gpu.merge(a, gpu.merge(b, c)),
        gpu.merge(gpu.merge(c, a), b),
    ):
        assert_equal(merged.to_host(), whole)


@pytest.mark.parametrize(
    "view", [lambda x: x.T, lambda x: x[::2, ::3], lambda x: x[:, 7:]], ids=["transposed", "every third", "part"]
)
def test_values_of_any_strides_are_read_right(on_device: OnDevice, view: Any) -> None:
    values = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    part = view(values)
    tokens = np.arange(part.shape[1])
    assert_equal(gpu.top_k(view(on_device(values)), on_device(tokens), 3).to_host(), naive.top_k(part, tokens, 3))


def test_the_sign_of_a_zero_is_kept_but_decides_nothing(on_device: OnDevice) -> None:
    found = gpu.top_k(on_device(np.array([[-0.0, 0.0, -0.0]], np.float32)), on_device(np.arange(3)), 2).to_host()
    assert found.tokens.tolist() == [[0, 1]]
    assert np.signbit(found.values).tolist() == [[True, False]]


def test_what_does_not_fit_is_refused_in_a_sentence(device: torch.device) -> None:
    values, tokens = torch.zeros(2, 4, device=device), torch.arange(4, device=device)
    with pytest.raises(ValueError, match=r"values must be \[neuron, token\] with 3 tokens, not \[2, 4\]"):
        gpu.top_k(values, tokens[:3], 1)
    with pytest.raises(ValueError, match="k must be 0 or more, not -1"):
        gpu.top_k(values, tokens, -1)
    with pytest.raises(ValueError, match="cannot merge the top activations of 2 and of 1 neurons"):
        gpu.merge(gpu.top_k(values, tokens, 1), gpu.top_k(values[:1], tokens, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("segmented", [False, True])
def test_the_api_searches_a_large_layer_on_a_gpu_to_the_same_result(on_device: OnDevice, segmented: bool) -> None:
    rng = np.random.default_rng(0)
    values, tokens = make_values(rng, (500, 20_000), tied=True, special=True), np.arange(20_000)
    segments = np.append(np.arange(0, 20_000, 300), 20_000) if segmented else None
    state = api.top_k(values[:, :100], tokens[:100] + 10**6, 100)
    found = api.top_k(on_device(values), tokens, 100, segments, state)
    assert_equal(found, api.top_k(values, tokens, 100, segments, state))

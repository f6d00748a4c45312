"""The Triton `coactivation`: interpreted where there is no GPU, compiled where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from actstore.kernels.coactivation import naive
from actstore.kernels.coactivation.api import Coactivation, coactivation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Run = Callable[..., Coactivation]


@pytest.fixture(autouse=True)
def _scratch_of_nan() -> Iterator[None]:
    """Tensors come filled with NaN, so that what a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run(device: torch.device) -> Run:
    """What `api.coactivation` does with tensors on a GPU, on whatever device there is."""
    from actstore.kernels.coactivation import gpu

    def run(
        chosen: Tensor, values: Tensor, state: Coactivation | None = None, counted: Tensor | None = None
    ) -> Coactivation:
        state = state or Coactivation.empty(len(chosen), len(values))
        tokens = torch.arange(values.shape[1]) if counted is None else counted.nonzero()[:, 0]
        found = gpu.coactivation(chosen.to(device), values.to(device), tokens.to(device), state.to(device))
        return found.cpu()

    return run


@pytest.fixture
def short_spans(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from actstore.kernels.coactivation import gpu

    monkeypatch.setattr(gpu, "SPAN", 128)


def make_values(seed: int, n_neurons: int, n_tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n_neurons, n_tokens, generator=generator)
    values += 2 * torch.randn(n_neurons, 1, generator=generator) * torch.randn(n_tokens, generator=generator)
    values[::4] = 3
    return values.to(dtype)


def assert_agrees(found: Coactivation, chosen: Any, values: Any, counted: Any = None) -> None:
    x, y, counted = chosen.float().numpy(), values.float().numpy(), None if counted is None else counted.numpy()
    expected = naive.pearson(x, y, counted)
    np.testing.assert_allclose(found.pearson(), expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(np.broadcast_to(found.count, expected.shape), naive.count(x, y, counted))
    jaccard = naive.jaccard(x, y, found.chosen_thresholds, found.thresholds, counted)
    np.testing.assert_array_equal(found.jaccard(), jaccard.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("n_chosen", "n_neurons", "n_tokens"), [(1, 1, 1), (3, 65, 63), (2, 5, 100), (70, 3, 33), (0, 4, 9), (2, 3, 0)]
)
def test_the_gpu_does_what_the_specification_says(
    run: Run, n_chosen: int, n_neurons: int, n_tokens: int, dtype: torch.dtype
) -> None:
    chosen, values = make_values(1, n_chosen, n_tokens, dtype), make_values(2, n_neurons, n_tokens, dtype)
    assert_agrees(run(chosen, values), chosen, values)


@pytest.mark.usefixtures("short_spans")
def test_the_gpu_keeps_to_the_cpu(run: Run) -> None:
    """Spans, a state to go on from, thresholds, tokens left out, gaps, a mean far larger than the spread."""
    chosen, values = make_values(1, 5, 400) + 1e4, make_values(2, 37, 400) - 1e5
    counted = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.8
    state = Coactivation.empty(5, 37, 1e4, -1e5)
    for special in (False, True):
        if special:
            values[3, 130], values[7], chosen[1, 5] = torch.nan, torch.inf, -torch.inf
            values[9, 140:] = torch.nan
        first, second = (slice(0, 150), slice(150, 400))
        here = there = state
        for part in (first, second):
            here = run(chosen[:, part], values[:, part], here, counted[part])
            there = coactivation(chosen[:, part], values[:, part], there, counted[part])
        assert_agrees(here, chosen, values, counted)
        for name, array in there.arrays().items():
            found = getattr(here, name)
            assert found.dtype == array.dtype
            np.testing.assert_allclose(found, array, rtol=1e-6, atol=1e-6 * abs(array).max(initial=0), err_msg=name)


@pytest.mark.parametrize("scales", [(1e-30, 1e30), (1e-44, 1.0)])
def test_the_tiniest_and_the_largest_values(run: Run, scales: tuple[float, float]) -> None:
    chosen, values = make_values(1, 3, 90) * scales[0], make_values(2, 6, 90) * scales[1]
    assert_agrees(run(chosen, values), chosen, values)


@pytest.mark.usefixtures("short_spans")
def test_a_neuron_that_is_constant_where_it_is_compared_has_no_correlation(run: Run) -> None:
    chosen, values = make_values(1, 2, 200), make_values(2, 3, 200)
    chosen[1] = 1.7
    chosen[1, ::50] = 6e4
    values[1, ::50] = torch.nan
    assert_agrees(run(chosen, values), chosen, values)


def test_rows_may_lie_apart(run: Run) -> None:
    chosen, values = make_values(1, 6, 80)[::2, ::2], make_values(2, 40, 7).T
    assert_agrees(run(chosen, values), chosen, values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_api_runs_where_the_values_lie() -> None:
    chosen, values = make_values(1, 3, 90).cuda(), make_values(2, 6, 90).cuda()
    found = coactivation(chosen, values)
    assert found.comoment.is_cuda
    assert_agrees(
        coactivation(chosen, values, found.merge(found)).cpu(), *(v.cpu().repeat(1, 3) for v in (chosen, values))
    )
    with pytest.raises(ValueError, match="state must lie on cuda:0"):
        coactivation(chosen, values, found.cpu())
    with pytest.raises(ValueError, match="chosen lies on cpu"):
        coactivation(chosen.cpu(), values)
    with pytest.raises(ValueError, match="state must lie on the CPU"):
        coactivation(chosen.cpu(), values.cpu(), found)

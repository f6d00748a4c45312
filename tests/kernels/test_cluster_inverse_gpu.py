"""The Triton `cluster_inverse`, bit for bit that of the CPU: interpreted where there is no GPU, compiled where there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from actstore.kernels.cluster_inverse.api import Clusters, Frequency, cluster_frequency, cluster_inverse, threshold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def _scratch_of_nan() -> Iterator[None]:
    """Tensors come filled with NaN or the largest integer, so that what a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def make_scores(n_clusters: int, n_neurons: int, tied: bool) -> NDArray[np.float32]:
    rng = np.random.default_rng(n_neurons)
    scores = rng.standard_normal((n_clusters, n_neurons)).astype(np.float32) ** 3
    scores = np.round(scores) / 2 if tied else scores
    for number in (np.nan, np.inf, -np.inf):
        scores[rng.random(scores.shape) < 0.05] = number
    scores[1:2] = -np.abs(scores[1:2])
    scores[2:3] = np.nan
    return scores


def assert_same(found: object, expected: object) -> None:
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
        assert getattr(found, name).dtype == array.dtype


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (4, 63), (7, 1025), (5, 2100)])
def test_the_gpu_does_what_the_cpu_does(device: torch.device, shape: tuple[int, int], tied: bool) -> None:
    from actstore.kernels.cluster_inverse import gpu

    scores = make_scores(*shape, tied)
    expected = threshold(scores, 0.3)
    clusters = gpu.threshold(torch.from_numpy(scores).to(device), 0.3)
    assert_same(clusters.to_host(), expected)
    frequency = cluster_frequency(expected, shape[1])
    counts = gpu.cluster_frequency(clusters, shape[1])
    np.testing.assert_array_equal(counts.cpu(), frequency.counts)
    for u, v, ica in ((0.3, 5, True), (1, 9, True), (0.5, 3, False), (1, 0, False), (1, 70, False)):
        found = gpu.cluster_inverse(clusters, counts, shape[0], u, v, ica).to_host()
        assert_same(found, cluster_inverse(expected, frequency, u=u, v=v, ica=ica))


def test_clusters_of_every_size(device: torch.device) -> None:
    from actstore.kernels.cluster_inverse import gpu

    rng = np.random.default_rng(0)
    sizes = [0, 1, 63, 64, 65, 0, 200, 0]
    neurons = np.concatenate([np.sort(rng.permutation(300)[:size]) for size in sizes])
    scores = np.ceil(rng.random(len(neurons)) * 8).astype(np.float32)
    scores[rng.random(len(neurons)) < 0.1] = np.nan
    clusters = Clusters(np.cumsum([0, *sizes]), neurons, scores)
    arrays = (torch.from_numpy(a).to(device) for a in (clusters.offsets, clusters.neurons, clusters.scores))
    counts = rng.integers(1, 30, 300)
    found = gpu.cluster_inverse(gpu.DeviceClusters(*arrays), torch.from_numpy(counts).to(device), 30, 0.9, 20)
    assert_same(found.to_host(), cluster_inverse(clusters, Frequency(counts, 30), u=0.9, v=20))


def test_rows_may_lie_apart(device: torch.device) -> None:
    from actstore.kernels.cluster_inverse import gpu

    scores = make_scores(4, 90, tied=False)
    strided = torch.from_numpy(np.repeat(scores, 2, axis=1)).to(device).T.contiguous().T[:, ::2]
    assert_same(gpu.threshold(strided, 0.2).to_host(), threshold(scores))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_a_gpu_are_searched_there() -> None:
    scores = make_scores(4, 90, tied=False)
    assert_same(threshold(torch.from_numpy(scores).cuda()), threshold(scores))

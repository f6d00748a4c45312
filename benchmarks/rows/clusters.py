"""NA-ICA's clusters and coactivation, against plain numpy and torch over the same arrays; both on all cores."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.kernels.cluster_inverse.api import Clusters, cluster_frequency, cluster_inverse, threshold
from actstore.kernels.coactivation.api import coactivation
from actstore.kernels.jit import default_threads
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

U, V, SIZE = 0.3, 20, 50


@contextmanager
def all_cores() -> Iterator[None]:
    """torch with as many threads as actstore's kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(default_threads())
    yield
    torch.set_num_threads(before)


def expect(same: bool) -> None:
    if not same:
        raise AssertionError("the candidates give different results")


@contextmanager
def prepare_clusters(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Clusters of 50 of 400,000 neurons, a few of them in many clusters; the plain implementations need no offsets."""
    n_clusters, n_neurons = (10_000 if quick else 100_000), 400_000
    rng = np.random.default_rng(0)
    neurons = np.sort((rng.random((n_clusters, SIZE)) ** 3 * (n_neurons - SIZE)).astype(np.int64), axis=1)
    neurons += np.arange(SIZE)  # each once
    scores = rng.random((n_clusters, SIZE), np.float32)
    clusters = Clusters(np.arange(n_clusters + 1) * SIZE, neurons.ravel(), scores.ravel())
    in_torch = torch.from_numpy(neurons), torch.from_numpy(scores)

    def plain_numpy() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        df = np.bincount(neurons.ravel(), minlength=n_neurons)
        weights = np.log(n_clusters / (df + 1)).astype(np.float32)
        weights[df / n_clusters > U] = -np.inf
        naica = scores * weights[neurons]
        best = np.argpartition(-naica, V, axis=1)[:, :V]
        order = np.argsort(-np.take_along_axis(naica, best, axis=1), axis=1)
        best = np.take_along_axis(best, order, axis=1)
        return np.take_along_axis(neurons, best, axis=1), np.take_along_axis(naica, best, axis=1)

    def plain_torch() -> tuple[torch.Tensor, torch.Tensor]:
        df = torch.bincount(in_torch[0].view(-1), minlength=n_neurons)
        weights = torch.log(n_clusters / (df + 1))
        weights[df / n_clusters > U] = -torch.inf
        naica, best = torch.topk(in_torch[1] * weights[in_torch[0]], V, dim=1)
        return in_torch[0].gather(1, best), naica

    with all_cores():
        ours = cluster_inverse(clusters, cluster_frequency(clusters, n_neurons), u=U, v=V)
        expect(np.allclose(ours.naica, plain_numpy()[1]) and np.allclose(ours.naica, plain_torch()[1].numpy()))
        yield {
            f"actstore, {n_clusters:,} clusters of {SIZE}": Candidate(
                lambda: cluster_inverse(clusters, cluster_frequency(clusters, n_neurons), u=U, v=V)
            ),
            "numpy: bincount, log, argpartition, argsort": Candidate(plain_numpy),
            "torch: bincount, log, topk": Candidate(plain_torch),
            "limit: one copy of the clusters": Candidate(lambda: (clusters.neurons.copy(), clusters.scores.copy())),
        }


@contextmanager
def prepare_threshold(quick: bool) -> Iterator[dict[str, Candidate]]:
    """Dense scores, of which about 25 in 400,000 pass the threshold."""
    scores = np.random.default_rng(0).standard_normal((16 if quick else 256, 400_000), np.float32) ** 9
    in_torch = torch.from_numpy(scores)

    def plain_numpy() -> tuple[NDArray[np.int64], ...]:
        return np.nonzero(scores > np.float32(0.2) * scores.max(axis=1, keepdims=True))

    def plain_torch() -> tuple[torch.Tensor, torch.Tensor]:
        kept = in_torch > 0.2 * in_torch.amax(dim=1, keepdim=True)
        return kept.nonzero(), in_torch[kept]

    with all_cores():
        ours = threshold(scores)
        expect(len(ours.neurons) == len(plain_numpy()[1]) == len(plain_torch()[1]))
        yield {
            f"actstore, {len(scores)} queries": Candidate(lambda: threshold(scores)),
            "numpy: max, >, nonzero": Candidate(plain_numpy),
            "torch: amax, >, nonzero": Candidate(plain_torch),
            "limit: one copy of the scores": Candidate(scores.copy),
        }


@contextmanager
def prepare_coactivation(quick: bool) -> Iterator[dict[str, Candidate]]:
    """64 chosen neurons and 2,048 others over a block; actstore also computes the active sets and their intersections."""
    n_neurons, n_tokens = (512, 4096) if quick else (2048, 16384)
    values = torch.randn(n_neurons, n_tokens, generator=torch.Generator().manual_seed(0))
    values[1:] += 0.5 * values[0]
    selected = values[:64].clone()

    def correlate() -> torch.Tensor:
        x, y = (rows - rows.mean(dim=1, keepdim=True) for rows in (selected, values))
        return x @ y.T / (x.norm(dim=1)[:, None] * y.norm(dim=1))

    with all_cores():
        expect(np.allclose(coactivation(selected, values).pearson(), correlate().numpy(), atol=1e-5))
        yield {
            f"actstore, 64 × {n_neurons:,} neurons, {n_tokens:,} tokens": Candidate(
                lambda: coactivation(selected, values)
            ),
            "torch: correlation alone, as corrcoef": Candidate(correlate),
            "limit: torch.matmul alone, float32": Candidate(lambda: selected @ values.T),
        }


ROWS = (
    Row("NA-ICA: weigh and choose from clusters", prepare_clusters, ("tests/kernels/test_cluster_inverse.py",)),
    Row("NA-ICA: threshold attribution scores", prepare_threshold, ("tests/kernels/test_cluster_inverse.py",)),
    Row("coactivation: Pearson and Jaccard", prepare_coactivation, ("tests/kernels/test_coactivation.py",)),
)

"""Contributions and vocabulary top-k: against the matrix product alone, which is the lower limit, and against plain torch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.kernels.contribution.api import Targets, sum_contributions, top_contribution
from actstore.kernels.vocabulary_top_k.api import vocabulary_top_k
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

N_GROUPS = 3
LIMIT = "torch.matmul of the same shapes, nothing else"


def sizes(quick: bool) -> tuple[int, int, int]:
    """Neurons, d and vocabulary: those of a 7B Llama."""
    return (1024, 256, 2000) if quick else (11_008, 4096, 32_000)


class Corpus:
    """A layer's weights, and activations shaped like a gated feed-forward's with each token's next one."""

    def __init__(self, quick: bool, n_tokens: int, repeated: bool) -> None:
        n_neurons, d, n_vocabulary = sizes(quick)
        generator = torch.Generator().manual_seed(0)
        self.write_vectors = torch.randn(n_neurons, d, generator=generator)
        self.unembedding = torch.randn(min(n_vocabulary, 8192), d, generator=generator)
        gate, up = torch.randn(2, n_neurons, n_tokens, generator=generator)
        self.activations = (torch.nn.functional.silu(gate - 1) * up).half()
        rng = np.random.default_rng(0)
        n_rows = len(self.unembedding)
        rows = np.minimum(rng.zipf(1.2, n_tokens), n_rows) - 1 if repeated else rng.permutation(n_rows)[:n_tokens]
        gain, scale = (1 + rng.random(n).astype(np.float32) for n in (d, n_tokens))
        self.targets = Targets(self.unembedding, rows, gain, scale)
        self.groups = rng.integers(0, N_GROUPS, n_tokens)

    def distinct(self) -> Tensor:
        """The directions [target, d] that must be multiplied."""
        return self.unembedding[np.unique(self.targets.rows)] * torch.from_numpy(self.targets.gain)

    def scores(self) -> Tensor:
        """Contributions [neuron, token], computed the plain way."""
        gain, scale = torch.from_numpy(self.targets.gain), torch.from_numpy(self.targets.scale)
        directions = self.unembedding[self.targets.rows] * gain
        return (self.write_vectors @ directions.T).mul_(self.activations.float()).mul_(scale)

    def sum_plainly(self) -> tuple[Tensor, Tensor]:
        """Sums and sums of magnitudes [neuron, group]."""
        scores, groups = self.scores(), torch.from_numpy(self.groups)
        nothing = torch.zeros(len(scores), N_GROUPS)
        return nothing.index_add(1, groups, scores), nothing.index_add(1, groups, scores.abs_())


@contextmanager
def prepare_sums(quick: bool, repeated: bool) -> Iterator[dict[str, Candidate]]:
    corpus = Corpus(quick, (512 if quick else 4096) if repeated else (256 if quick else 2048), repeated)
    distinct = corpus.distinct()
    product = torch.empty(len(corpus.write_vectors), len(distinct))
    threads = torch.get_num_threads()

    def ours() -> np.ndarray:
        weights, groups = corpus.write_vectors, corpus.groups
        return sum_contributions(corpus.activations, weights, corpus.targets, groups, N_GROUPS, threads).total

    expected = corpus.sum_plainly()[0].T.numpy()
    if not np.allclose(ours(), expected, rtol=0, atol=1e-4 * np.abs(expected).max()):
        raise AssertionError("the sums of actstore and of torch differ")
    shape = f"{len(corpus.activations):,} neurons × {len(corpus.groups):,} tokens, {len(distinct):,} distinct targets"
    yield {
        f"{LIMIT} (distinct targets)": Candidate(lambda: torch.matmul(corpus.write_vectors, distinct.T, out=product)),
        f"actstore, {shape}": Candidate(ours),
        "torch: matmul, multiply, index_add": Candidate(corpus.sum_plainly),
    }


@contextmanager
def prepare_top(quick: bool) -> Iterator[dict[str, Candidate]]:
    corpus = Corpus(quick, 64 if quick else 512, repeated=False)
    directions, threads = corpus.distinct(), torch.get_num_threads()
    product = torch.empty(len(corpus.write_vectors), len(directions))
    yield {
        LIMIT: Candidate(lambda: torch.matmul(corpus.write_vectors, directions.T, out=product)),
        f"actstore, {len(corpus.activations):,} neurons × {len(corpus.groups)} tokens, k 50": Candidate(
            lambda: top_contribution(corpus.activations, corpus.write_vectors, corpus.targets, 50, threads)
        ),
        "torch: matmul, multiply, topk": Candidate(lambda: corpus.scores().topk(50, dim=0)),
    }


@contextmanager
def prepare_vocabulary(quick: bool) -> Iterator[dict[str, Candidate]]:
    """At d 512, because one product at d 4,096 takes 3 TFLOP, and the rest of the work costs the same at any d."""
    n_neurons, d, n_vocabulary = sizes(quick)
    generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    write_vectors = torch.randn(n_neurons, min(d, 512), generator=generator)
    unembedding = torch.randn(n_vocabulary, min(d, 512), generator=generator)

    def plainly() -> tuple[Tensor, Tensor]:
        products = write_vectors @ unembedding.T
        return products.topk(10).values, products.topk(10, largest=False).values

    sides = vocabulary_top_k(write_vectors, unembedding, 10, threads=threads)
    for side, expected in zip(sides, plainly(), strict=True):
        if not np.allclose(side.values, expected.numpy(), atol=1e-3):
            raise AssertionError("the top tokens of actstore and of torch differ")
    yield {
        LIMIT: Candidate(lambda: write_vectors @ unembedding.T),
        f"actstore, {n_neurons:,} neurons × {n_vocabulary:,} tokens, d {min(d, 512)}, k 10": Candidate(
            lambda: vocabulary_top_k(write_vectors, unembedding, 10, threads=threads)
        ),
        "torch: matmul, topk of the largest and of the smallest": Candidate(plainly),
    }


TESTS = ("tests/kernels/test_contribution.py", "tests/kernels/test_vocabulary_top_k.py")
ROWS = (
    Row("contribution sums, every token its own target", lambda quick: prepare_sums(quick, False), TESTS, repeats=5),
    Row("contribution sums, targets as often as words", lambda quick: prepare_sums(quick, True), TESTS, repeats=5),
    Row("neurons that contribute most", prepare_top, TESTS, repeats=7),
    Row("vocabulary top-k of every neuron", prepare_vocabulary, TESTS, repeats=3),
)

"""Packing a batch's activations and updating the largest, against torch doing the same and against a memory copy."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.kernels.pack.api import HISTOGRAM_EDGES, Columns, Statistics, pack
from actstore.kernels.top_k.api import top_k
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

TOKENS, NEURONS, WINDOW, K = 8192, 1536, 256, 20
EDGES = torch.from_numpy(HISTOGRAM_EDGES[1:-1].copy())
N_BINS = len(HISTOGRAM_EDGES) - 1


def make_activations(n_tokens: int) -> Tensor:
    """SiLU(gate) · up with gates mostly shut, float32 [token, neuron]."""
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn((2, n_tokens, NEURONS), generator=generator)
    return torch.nn.functional.silu(gate - 1) * up


def make_columns(n_tokens: int) -> Columns:
    """Windows of 256 tokens, each with one of two labels and with a third label that all of them have."""
    n_windows = n_tokens // WINDOW
    return Columns(
        rows=np.arange(n_tokens),
        slots=np.arange(n_tokens),
        segments=np.arange(n_windows + 1) * WINDOW,
        labels=np.stack([np.arange(n_windows) % 2, np.full(n_windows, 2)], axis=1),
        counted=np.ones(n_tokens, bool),
        first_token=0,
    )


def with_torch(values: Tensor, out: Tensor) -> dict[str, Tensor]:
    """What `pack` computes, in the torch operations a script would use; every result is the same but for rounding."""
    out.copy_(values.T)
    finite = values.isfinite()
    results = {"count": finite.sum(0), "non_finite": (~finite).sum(0)}
    known = torch.where(finite, values, 0)
    results["m2"], results["mean"] = torch.var_mean(known, 0, correction=0)
    results["minimum"], results["maximum"] = known.amin(0), known.amax(0)
    bins = torch.bucketize(known.T.contiguous(), EDGES, right=True)
    results["histogram"] = torch.zeros((NEURONS, N_BINS), dtype=torch.int64).scatter_add_(
        1, bins, torch.ones_like(bins)
    )
    windows = known.view(-1, WINDOW, NEURONS)
    above = (windows > 0).sum(1)
    results["positives"] = torch.stack([above[::2].sum(0), above[1::2].sum(0), above.sum(0)])
    best, position = windows.max(1)
    results["exemplar_values"], window = best.topk(min(K, len(best)), 0)
    results["exemplar_tokens"] = position.gather(0, window) + window * WINDOW
    return results


def agrees(values: Tensor, statistics: Statistics) -> None:
    """Check that both give the same results before they are compared."""
    theirs = with_torch(values, torch.empty(values.T.shape))
    for name in ("count", "minimum", "maximum", "positives"):
        np.testing.assert_array_equal(getattr(statistics, name), theirs[name].numpy())
    np.testing.assert_allclose(statistics.mean, theirs["mean"].numpy(), atol=1e-5)
    # A negative value on an edge is in the bin farther from zero here, nearer to it there.
    assert abs(statistics.histogram - theirs["histogram"].numpy()).sum() <= 2e-6 * values.numel()
    np.testing.assert_array_equal(
        statistics.exemplar_values[:, : len(theirs["exemplar_values"])], theirs["exemplar_values"].T.numpy()
    )


@contextmanager
def prepare_pack(quick: bool) -> Iterator[dict[str, Candidate]]:
    """One batch, larger than the caches."""
    n_tokens = 2048 if quick else TOKENS
    values, columns = make_activations(n_tokens), make_columns(n_tokens)
    block, half = np.empty((NEURONS, n_tokens), np.float32), np.empty((NEURONS, n_tokens), np.float16)
    statistics = Statistics.empty(NEURONS, 3, K)
    pack(values, columns, block, statistics)
    agrees(values, statistics)
    copy, target = torch.empty_like(values), torch.empty((NEURONS, n_tokens))
    yield {
        "memory copy of the input": Candidate(lambda: copy.copy_(values)),
        "actstore, transpose": Candidate(lambda: pack(values, columns, block, None)),
        "actstore, transpose to float16": Candidate(lambda: pack(values, columns, half, None)),
        "actstore, statistics": Candidate(lambda: pack(values, columns, None, statistics)),
        "actstore, transpose and statistics": Candidate(lambda: pack(values, columns, block, statistics)),
        "torch, transpose": Candidate(lambda: target.copy_(values.T)),
        "torch, transpose and statistics": Candidate(lambda: with_torch(values, target)),
    }


@contextmanager
def prepare_top_k(quick: bool) -> Iterator[dict[str, Candidate]]:
    """One layer of a block."""
    n_tokens = 4096 if quick else 16_384
    values = make_activations(n_tokens).T.contiguous()
    tokens, copy = np.arange(n_tokens), torch.empty_like(values)
    assert np.array_equal(top_k(values, tokens, K).values, values.topk(K).values.numpy())
    yield {
        "memory copy of the input": Candidate(lambda: copy.copy_(values)),
        "actstore": Candidate(lambda: top_k(values, tokens, K)),
        "torch.topk": Candidate(lambda: values.topk(K)),
    }


ROWS = (
    Row(f"pack, {TOKENS:,} tokens × {NEURONS:,} neurons", prepare_pack, ("tests/kernels/test_pack.py",), repeats=15),
    Row(f"top_k, {NEURONS:,} neurons × 16,384 tokens", prepare_top_k, ("tests/kernels/test_top_k.py",), repeats=15),
)

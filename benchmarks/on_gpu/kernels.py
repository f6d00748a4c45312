"""Every Triton kernel beside what torch does at best: a copy for what moves values, a product for what multiplies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.kernels.cluster_inverse import gpu as clusters
from actstore.kernels.coactivation import gpu as coactivation
from actstore.kernels.coactivation.state import Coactivation
from actstore.kernels.compaction import gpu as compaction
from actstore.kernels.contribution import gpu as contribution
from actstore.kernels.contribution.entries import Entries
from actstore.kernels.contribution.targets import Targets
from actstore.kernels.pack import gpu as pack
from actstore.kernels.pack import gpu_lossy, naive
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.gpu_statistics import DeviceStatistics
from actstore.kernels.top_k import gpu as top_k
from actstore.kernels.vocabulary_top_k import gpu as vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.on_gpu.part import Part

BF16 = torch.bfloat16
KEEP = 0.05


def run(part: Part) -> None:
    """The machine's limits first, then every kernel at the shapes of a layer of a 7B Llama."""
    for each in (limits, packing, lossy, selection, products, analyses):
        each(part)
        if part.device.type == "cuda":
            torch.cuda.empty_cache()


def columns_of(n_tokens: int, window: int) -> Columns:
    """Windows of one length, all with one label."""
    borders = np.append(np.arange(0, n_tokens, window), n_tokens)
    tokens = np.arange(n_tokens)
    return Columns(tokens, tokens, borders, np.zeros((len(borders) - 1, 1), np.int32), np.ones(n_tokens, bool), 0)


def bits_on_host(tensor: Tensor) -> Any:
    """A tensor as an array, bfloat16 as its bits."""
    tensor = tensor.cpu()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == BF16 else tensor.numpy()


def limits(part: Part) -> None:
    """Memory, bus and tensor cores."""
    size, side = part.pick(1 << 30, 1 << 12), part.pick(8192, 64)
    values = torch.empty(size, dtype=torch.uint8, device=part.device)
    other = torch.empty_like(values)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=part.device.type == "cuda")
    part.measure("torch copy", lambda: other.copy_(values), nbytes=2 * size)
    part.measure("device to pinned host", lambda: host.copy_(values, non_blocking=True), nbytes=size, repeats=3)
    part.measure("pinned host to device", lambda: values.copy_(host, non_blocking=True), nbytes=size, repeats=3)
    for dtype in (BF16, torch.float32):
        a, b = torch.randn(2, side, side, device=part.device).to(dtype)
        name = str(dtype).removeprefix("torch.")
        part.measure(f"torch matmul, {name}", lambda a=a, b=b: a @ b, flops=2 * side**3, repeats=5)


def packing(part: Part) -> None:
    """A batch of a layer into its block, with and without statistics."""
    n_tokens, width, n_slots = part.pick(4096, 24), part.pick(11_008, 10), part.pick(16_384, 32)
    values = torch.randn(n_tokens, width, device=part.device).mul_(0.1).to(BF16)
    block = torch.zeros(width, n_slots, dtype=BF16, device=part.device)
    statistics = DeviceStatistics.empty(width, 2, 20, part.device)
    both = 2 * values.nbytes

    def is_transposed() -> bool:
        pack.pack(values, columns_of(n_tokens, 1024), block, None)
        return torch.equal(block[:, :n_tokens].view(torch.int16), values.T.contiguous().view(torch.int16))

    part.measure("torch transpose, bfloat16", lambda: block[:, :n_tokens].copy_(values.T), nbytes=both)
    for window in (1024, 128):
        columns = columns_of(n_tokens, window)
        name = f"windows of {window}"
        part.measure(
            f"pack, {name}", lambda c=columns: pack.pack(values, c, block, None), nbytes=both, check=is_transposed
        )
        part.measure(
            f"pack with statistics, {name}", lambda c=columns: pack.pack(values, c, block, statistics), nbytes=both
        )
    columns = columns_of(n_tokens, 1024)
    relu = values.relu()
    part.measure(
        "pack with statistics, half of the values 0", lambda: pack.pack(relu, columns, block, statistics), nbytes=both
    )
    equal = torch.full_like(values, 0.5)  # every addition of a neuron's histogram at one place
    part.measure(
        "pack with statistics, all values in one bin", lambda: pack.pack(equal, columns, block, statistics), nbytes=both
    )
    signs = torch.zeros(width, n_slots // 8, dtype=torch.uint8, device=part.device)
    positives = torch.zeros(2, width, dtype=torch.int32, device=part.device)
    part.measure(
        "pack_signs",
        lambda: pack.pack_signs(values, columns, signs, positives),
        nbytes=values.nbytes + n_tokens * width // 8,
    )
    rows = torch.arange(0, n_tokens, 8, device=part.device)  # as one of many experts sees them
    few = values[rows]
    part.measure(
        "pack with statistics, an eighth of the rows, as of an expert",
        lambda: pack.pack(few, columns, block, statistics, rows),
        nbytes=2 * few.nbytes,
    )


def lossy(part: Part) -> None:
    """Blocks of a layer at int8 and sparse, and compacted for the way to the host."""
    width, n_slots = part.pick(11_008, 5), part.pick(16_384, 300)
    block = torch.randn(width, n_slots, device=part.device).to(BF16)
    expected = naive.quantise(bits_on_host(block[:16]))
    part.measure(
        "quantise",
        lambda: gpu_lossy.quantise(block),
        nbytes=block.nbytes + block.numel(),
        check=lambda: bool((gpu_lossy.quantise(block)[0][:16].cpu().numpy() == expected[0]).all()),
    )
    thin, few = block.clone(), bits_on_host(block[:16]).copy()
    naive.sparsify(few, KEEP)
    part.measure(
        "sparsify",
        lambda: gpu_lossy.sparsify(thin, KEEP),
        nbytes=2 * block.nbytes,
        check=lambda: (gpu_lossy.sparsify(thin, KEEP), bool((bits_on_host(thin[:16]) == few).all()))[1],
    )
    capacity = int(np.ceil(n_slots * KEEP))
    base = compaction.common_row(thin, 0)
    part.measure("compact", lambda: compaction.compact(thin, base, capacity), nbytes=block.nbytes)


def selection(part: Part) -> None:
    """The largest activations of every neuron."""
    width, n_slots = part.pick(11_008, 3), part.pick(16_384, 300)
    block = torch.randn(width, n_slots, device=part.device).to(BF16)
    tokens = torch.arange(n_slots, device=part.device)
    part.measure(
        "top_k 20",
        lambda: top_k.top_k(block, tokens, 20),
        nbytes=block.nbytes,
        check=lambda: torch.equal(top_k.top_k(block, tokens, 20).values, block.float().topk(20, dim=1).values),
    )
    part.measure("torch topk 20", lambda: block.topk(20, dim=1), nbytes=block.nbytes)


def products(part: Part) -> None:
    """Products with the unembedding, which are not kept."""
    width, d_model, n_vocabulary = part.pick(11_008, 40), part.pick(4096, 32), part.pick(32_000, 96)
    n_tokens = part.pick(1024, 48)
    vectors, unembedding = (torch.randn(n, d_model, device=part.device).to(BF16) for n in (width, n_vocabulary))
    gain = np.linspace(0.5, 1.5, d_model).astype(np.float32)
    flops = 2 * width * n_vocabulary * d_model
    few = vectors[:16]

    def is_near(found: Tensor, exact: Tensor) -> bool:
        return bool(((found.double() - exact).abs() <= 1e-4 * exact.abs().amax()).all())

    def largest_are_right() -> bool:
        exact = few.double() @ (unembedding.double() * torch.from_numpy(gain).to(part.device).double()).T
        found = vocabulary.vocabulary_top_k(few, unembedding, 10, gain).to_host().largest.values
        return is_near(torch.from_numpy(found), exact.topk(10, dim=1).values.cpu())

    part.measure("torch: product and topk", lambda: (vectors @ unembedding.T).topk(10, dim=1), flops=flops, repeats=3)
    part.measure(
        "vocabulary_top_k 10", lambda: vocabulary.vocabulary_top_k(vectors, unembedding, 10), flops=flops, repeats=3
    )
    part.measure(
        "vocabulary_top_k 10, with a gain",
        lambda: vocabulary.vocabulary_top_k(vectors, unembedding, 10, gain),
        flops=flops,
        check=largest_are_right,
        repeats=3,
    )
    rng = np.random.default_rng(0)
    activations = torch.randn(width, n_tokens, device=part.device).to(BF16)
    targets = Targets(unembedding, rng.integers(0, n_vocabulary, n_tokens), gain)

    def scores_are_right() -> bool:
        chosen = unembedding[torch.from_numpy(targets.rows).to(part.device)].double()
        logits = few.double() @ (chosen * torch.from_numpy(gain).to(part.device).double()).T
        return is_near(contribution.contribution(activations[:16], few, targets), activations[:16].double() * logits)

    part.measure(
        "contribution",
        lambda: contribution.contribution(activations, vectors, targets),
        flops=2 * width * n_tokens * d_model,
        check=scores_are_right,
        repeats=5,
    )
    rows = np.minimum(rng.zipf(1.3, n_tokens), n_vocabulary) - 1
    entries, whole = Entries.of(rows, rng.integers(0, 3, n_tokens)[:, None]), Targets(unembedding, rows, gain)
    part.measure(
        "sum_contributions, 3 groups",
        lambda: contribution.sum_contributions(activations, vectors, whole, entries, 3),
        flops=2 * width * len(entries.rows) * d_model,
        repeats=3,
    )


def analyses(part: Part) -> None:
    """NA-ICA's clusters, and coactivation."""
    n_clusters, n_neurons = part.pick(256, 2), part.pick(352_256, 300)
    scores = torch.rand(n_clusters, n_neurons, device=part.device).pow_(8)
    part.measure("threshold", lambda: clusters.threshold(scores, 0.2), nbytes=scores.nbytes, repeats=5)
    held = clusters.threshold(scores, 0.999)
    counts = clusters.cluster_frequency(held, n_neurons)
    part.measure("cluster_inverse", lambda: clusters.cluster_inverse(held, counts, n_clusters), repeats=5)
    width, n_tokens, n_chosen = part.pick(11_008, 8), part.pick(16_384, 32), part.pick(64, 2)
    block, tokens = (
        torch.randn(width, n_tokens, device=part.device).to(BF16),
        torch.arange(n_tokens, device=part.device),
    )
    state = Coactivation.empty(n_chosen, width).to(part.device)
    part.measure(
        f"coactivation, {n_chosen} neurons with all of a layer",
        lambda: coactivation.coactivation(block[:n_chosen], block, tokens, state),
        flops=4 * n_chosen * width * n_tokens,
        repeats=3,
    )

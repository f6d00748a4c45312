"""Tensors of more than 2³¹ elements through each kernel whose offsets could overflow; and the same twice, for the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from actstore.kernels.compaction import api
from actstore.kernels.compaction import gpu as compaction
from actstore.kernels.compaction.compacted import Compacted
from actstore.kernels.pack import gpu as pack
from actstore.kernels.pack import gpu_lossy, naive
from actstore.kernels.pack.gpu_statistics import DeviceStatistics
from actstore.kernels.top_k import gpu as top_k
from benchmarks.on_gpu.kernels import BF16, KEEP, bits_on_host, columns_of

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.on_gpu.part import Part


def run(part: Part) -> None:
    """Pack 2.4·10⁹ values, then encode what was packed; only the last neurons are looked at, where an index would be wrong."""
    n_tokens, width = part.pick(220_000, 300), part.pick(11_008, 4)
    generator = torch.Generator(part.device).manual_seed(0)
    values = torch.empty(n_tokens, width, dtype=BF16, device=part.device).normal_(generator=generator)
    block = torch.zeros(width, n_tokens, dtype=BF16, device=part.device)
    last = torch.tensor([width - 2, width - 1], device=part.device)
    _pack(part, values, block, last)
    del values
    for check in (_quantise, _sparsify_and_compact, _top_k):
        try:
            check(part, block, last)
        except Exception as error:
            part.fail(check.__name__.removeprefix("_"), error)


def _pack(part: Part, values: Tensor, block: Tensor, last: Tensor) -> None:
    columns, runs = columns_of(len(values), 1024), []
    for _ in range(2):
        statistics = DeviceStatistics.empty(len(block), 1, 20, part.device)
        pack.pack(values, columns, block, statistics)
        runs.append({name: tensor.clone() for name, tensor in statistics.tensors().items()})
    exact = values[:, last].double()
    is_right = torch.equal(block[last].view(torch.int16), values[:, last].T.contiguous().view(torch.int16))
    is_right &= torch.equal(runs[0]["maximum"][last].double(), exact.amax(dim=0))
    is_right &= bool(((runs[0]["mean"][last] - exact.mean(dim=0)).abs() < 1e-9).all())
    differing = [name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])]
    part.row("pack", elements=values.numel(), right=is_right and not differing, differs_between_runs=differing)


def _quantise(part: Part, block: Tensor, last: Tensor) -> None:
    steps, scale = naive.quantise(bits_on_host(block[last]))
    found, found_scale = gpu_lossy.quantise(block)
    is_right = (found[last].cpu().numpy() == steps).all() and (found_scale[last].cpu().numpy() == scale).all()
    part.row("quantise", elements=block.numel(), right=bool(is_right))


def _sparsify_and_compact(part: Part, block: Tensor, last: Tensor) -> None:
    expected = bits_on_host(block[last]).copy()
    threshold, _ = naive.sparsify(expected, KEEP)
    found, _ = gpu_lossy.sparsify(block, KEEP)
    is_right = (bits_on_host(block[last]) == expected).all() and (found[last].cpu().numpy() == threshold).all()
    part.row("sparsify", elements=block.numel(), right=bool(is_right))
    compacted = compaction.compact(block, compaction.common_row(block, 0), int(KEEP * block.shape[1]) + 1)
    host = Compacted(
        **{
            name: (tensor if name == "base" else tensor[last]).cpu().numpy()
            for name, tensor in compacted.parts().items()
        }
    )
    is_right = (api.expand(host).view(expected.dtype) == expected).all()
    part.row("compact", elements=block.numel(), right=bool(is_right))


def _top_k(part: Part, block: Tensor, last: Tensor) -> None:
    tokens = torch.arange(block.shape[1], device=part.device)
    found = top_k.top_k(block, tokens, 20)
    is_right = torch.equal(found.values[last], block[last].float().topk(20, dim=1).values)
    part.row("top_k", elements=block.numel(), right=is_right)

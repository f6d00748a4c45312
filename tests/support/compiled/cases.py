"""The launches that kernels are compiled for: those of a capture, at odd sizes and strides, and with one of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
from actstore.kernels.pack import gpu_lossy
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.gpu_statistics import DeviceStatistics
from actstore.kernels.top_k import gpu as top_k
from actstore.kernels.vocabulary_top_k import gpu as vocabulary_top_k

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


class Case(NamedTuple):
    """One launcher, with arguments that nothing else would compile the same kernel for."""

    name: str
    call: Callable[[], object]
    usual: bool = True
    """Whether it is compiled in the fast tests too."""
    on_tensor_cores: bool = False
    """Whether its products must reach them."""
    at_most: Mapping[str, int] = {}
    """The largest numbers that `inspection.counts` may give for Hopper, where they are what makes the kernel fast."""


def cases() -> Iterator[Case]:
    """Every case."""
    for part in (_packing, _lossy, _compaction, _top_k, _products, _clusters, _coactivation):
        yield from part()


class _Size(NamedTuple):
    name: str
    n_neurons: int
    columns: Columns
    n_slots: int
    k: int


def _columns(n_windows: int, length: int, n_labels: int) -> Columns:
    tokens, labels = np.arange(n_windows * length), np.zeros((n_windows, n_labels), np.int32)
    return Columns(tokens, tokens, np.arange(n_windows + 1) * length, labels, np.ones(len(tokens), np.bool_), 0)


# Triton compiles anew for sizes and strides that are multiples of 16, that are not, and that are 1.
_SIZES = (
    _Size("usual", 64, _columns(2, 64, 1), 128, 20),
    _Size("odd", 101, _columns(3, 37, 3), 127, 7),
    _Size("one", 1, _columns(1, 1, 0), 8, 0),
)
# Of activations and of the block that they are packed into; None for statistics alone.
_FORMATS = ((BF16, BF16), (F32, F16), (F32, F32), (F16, F16), (BF16, F16), (F32, BF16), (BF16, None))


def _packing() -> Iterator[Case]:
    for size in _SIZES:
        is_usual, step = size.name == "usual", 2 if size.name == "odd" else 1
        for source, target in _FORMATS if is_usual else [(F32, BF16)]:
            # Every second column of a wider tensor: neither stride is 1.
            values = torch.zeros(len(size.columns.rows), size.n_neurons * step, dtype=source)[:, ::step]
            out = None if target is None else torch.zeros(size.n_neurons, size.n_slots, dtype=target)
            for counting in (True, False) if target is not None else (True,):
                statistics = DeviceStatistics.empty(size.n_neurons, 3, size.k, "cpu") if counting else None
                yield Case(
                    f"pack {source} to {target}, counting {counting}, {size.name}",
                    lambda v=values, s=size, o=out, t=statistics: pack.pack(v, s.columns, o, t),
                    usual=(counting and (source, target) in _FORMATS[:2]) or not is_usual,
                )
        for source in (BF16, F32, F16) if is_usual else (F32,):
            values = torch.zeros(len(size.columns.rows), size.n_neurons, dtype=source)
            bits = torch.zeros(size.n_neurons, -(-size.n_slots // 8), dtype=torch.uint8)
            positives = torch.zeros(3, size.n_neurons, dtype=torch.int32)
            yield Case(
                f"pack_signs {source}, {size.name}",
                lambda v=values, s=size, b=bits, p=positives: pack.pack_signs(v, s.columns, b, p),
                usual=source is not F16,
            )
    for k in (100, 1000):
        yield Case(
            f"pack, {k} exemplars",
            lambda k=k: pack.pack(
                torch.zeros(128, 64), _SIZES[0].columns, None, DeviceStatistics.empty(64, 2, k, "cpu")
            ),
            usual=k == 1000,
        )


def _lossy() -> Iterator[Case]:
    for shape in ((64, 2048), (101, 127), (1, 1), (64, 40_000)):
        for source in (BF16, F32, F16):
            block, usual = torch.zeros(shape, dtype=source), source is BF16 and shape[0] > 1
            yield Case(f"quantise {source} {shape}", lambda b=block: gpu_lossy.quantise(b), usual)
            # A row, and which slots are counted, 16 bytes at a time: not a value at a time.
            at_most = {"loads": 8} if (source, shape) == (BF16, (64, 2048)) else {}
            name = f"sparsify {source} {shape}"
            yield Case(name, lambda b=block: gpu_lossy.sparsify(b, 0.05), usual, at_most=at_most)


def _compaction() -> Iterator[Case]:
    for shape, capacity in (((64, 2048), 112), ((101, 127), 7), ((1, 1), 1)):
        for source in (BF16, F32):
            block = torch.zeros(shape, dtype=source)
            yield Case(
                f"compact {source} {shape}",
                lambda b=block, c=capacity: compaction.compact(b, compaction.common_row(b, 0), c),
                usual=source is BF16 and shape[0] > 1,
            )


def _top_k() -> Iterator[Case]:
    segments = torch.tensor([0, 500, 1000])
    for source, k, parts in ((BF16, 20, None), (F32, 1, segments), (F16, 100, None), (F32, 20, segments)):
        yield Case(
            f"top_k {source}, {k}",
            lambda s=source, k=k, p=parts: top_k._find(torch.zeros(64, 1000, dtype=s), 1000, k, p),
            usual=source is not F16 and k != 1,
        )
    yield Case("top_k, one of everything", lambda: top_k._find(torch.zeros(1, 1), 1, 1, None), usual=False)


def _products() -> Iterator[Case]:
    for left, right, weighted in (
        (BF16, BF16, False),
        (BF16, BF16, True),
        (F16, F16, False),
        (F16, F16, True),
        (F32, F32, True),
        (F32, F32, False),
        (BF16, F32, True),
    ):
        gain = np.ones(64, np.float32) if weighted else None
        vectors, unembedding = torch.zeros(256, 64, dtype=left), torch.zeros(512, 64, dtype=right)
        name, usual = f"{left} · {right}, gain {weighted}", left is BF16 and right is BF16
        on_tensor_cores = left is BF16 or (left is F16 and not weighted)
        for k in (10, 64):
            yield Case(
                f"vocabulary_top_k {name}, {k}",
                lambda w=vectors, u=unembedding, g=gain, k=k: vocabulary_top_k.vocabulary_top_k(w, u, k, g),
                usual and k == 10,
                on_tensor_cores,
            )
        targets = Targets(unembedding[:64], np.arange(64), gain, np.ones(64, np.float32) if weighted else None)
        activations = torch.zeros(256, 64, dtype=left)
        entries = Entries.of(np.arange(64), (np.arange(64) % 3)[:, None])
        arguments: Any = (activations, vectors, targets)
        yield Case(f"contribution {name}", lambda a=arguments: contribution.contribution(*a), usual, on_tensor_cores)
        yield Case(
            f"sum_contributions {name}",
            lambda a=arguments, e=entries: contribution.sum_contributions(*a, e, 3),
            usual,
            on_tensor_cores,
        )
    one: Any = (torch.zeros(1, 1), torch.zeros(1, 1), Targets(torch.zeros(1, 1)))
    entry = Entries.of(np.arange(1), np.zeros((1, 1), np.int64))
    yield Case("contribution, one of everything", lambda: contribution.contribution(*one))
    yield Case(
        "sum_contributions, one of everything", lambda: contribution.sum_contributions(*one, entry, 1), usual=False
    )


def _clusters() -> Iterator[Case]:
    for n_clusters, n_neurons in ((3, 2048), (1, 1), (7, 101)):
        scores = torch.zeros(n_clusters, n_neurons)
        yield Case(f"threshold {list(scores.shape)}", lambda s=scores: clusters.threshold(s, 0.2), n_clusters == 3)
    held = clusters.DeviceClusters(torch.tensor([0, 3, 64]), torch.zeros(64, dtype=torch.int32), torch.zeros(64))
    yield Case("cluster_frequency", lambda: clusters.cluster_frequency(held, 2048))
    counts = torch.zeros(2048, dtype=torch.int64)
    for v in (20, 1):
        yield Case(f"cluster_inverse, {v}", lambda v=v: clusters.cluster_inverse(held, counts, 2, v=v), v == 20)


def _coactivation() -> Iterator[Case]:
    for source, n_tokens in ((BF16, 4096), (F32, 101), (F16, 1)):
        # Not all finite, so that pairs are compared anew: nothing runs, and counts are zeros.
        values, state = torch.zeros(8, n_tokens, dtype=source), Coactivation.empty(8, 8).to("cpu")
        yield Case(
            f"coactivation {source} {n_tokens}",
            lambda x=values, n=n_tokens, s=state: coactivation.coactivation(x, x, torch.arange(n), s),
            usual=source is BF16,
        )

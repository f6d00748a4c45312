"""The statistics of packed activations on a GPU: where they are kept, and the kernels that gather and merge them.

One program follows one piece of a text window for a tile of neurons and leaves what it saw of each neuron in
`Partials`; a second kernel adds the pieces in their order. Sums of floats are therefore always made in the same order;
integers go through atomic additions, which no order changes.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import MAGNITUDE, jit, jit_for_any, launch
from actstore.kernels.pack.gpu_columns import DeviceColumns
from actstore.kernels.pack.statistics import LOWEST_EXPONENT, N_BINS, Statistics, exemplar_order

MERGE_ENTRIES = 1024  # neurons × exemplars of one program: eight of each a thread
STARTS = {"minimum": np.inf, "maximum": -np.inf, "exemplar_values": -np.inf, "exemplar_tokens": -1}
"""Field → what it holds over no token, where that is not 0."""
BINS = tl.constexpr(N_BINS)
MIDDLE = tl.constexpr(N_BINS // 2)
_BELOW_FIRST = tl.constexpr((127 + LOWEST_EXPONENT) * 2 - 1)  # see cpu_statistics
_NO_TOKEN = tl.constexpr(0x7FFFFFFF)
_BEFORE_EMPTY = tl.constexpr(-2)


@dataclass(frozen=True)
class DeviceStatistics:
    """`Statistics` on a device, of fewer than 2³¹ tokens: the same fields, but exemplars in no order until `to_host`."""

    count: Tensor
    """[neuron] int64: finite values."""
    mean: Tensor
    """[neuron] float64: of the finite values."""
    m2: Tensor
    """[neuron] float64: sum of the squared differences from the mean."""
    minimum: Tensor
    """[neuron] float32: smallest finite value."""
    maximum: Tensor
    """[neuron] float32: largest finite value."""
    non_finite: Tensor
    """[neuron] int32: NaN and infinite values."""
    overflow: Tensor
    """[neuron] int32: finite values that the block holds as infinite."""
    histogram: Tensor
    """[neuron, bin] int32: finite values between `HISTOGRAM_EDGES`."""
    positives: Tensor
    """[label, neuron] int32: finite values above zero at the tokens of each label."""
    exemplar_values: Tensor
    """[neuron, k] float32: the largest activations, at most one for each text window."""
    exemplar_tokens: Tensor
    """[neuron, k] int64: the tokens they came from; -1 where there are fewer than k."""

    @staticmethod
    def formats(n_neurons: int, n_labels: int, k: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every field."""
        neuron_dtypes = {
            "count": torch.int64,
            "mean": torch.float64,
            "m2": torch.float64,
            "minimum": torch.float32,
            "maximum": torch.float32,
            "non_finite": torch.int32,
            "overflow": torch.int32,
        }
        formats: dict[str, tuple[tuple[int, ...], torch.dtype]]
        formats = {name: ((n_neurons,), dtype) for name, dtype in neuron_dtypes.items()}
        return formats | {
            "histogram": ((n_neurons, N_BINS), torch.int32),
            "positives": ((n_labels, n_neurons), torch.int32),
            "exemplar_values": ((n_neurons, k), torch.float32),
            "exemplar_tokens": ((n_neurons, k), torch.int64),
        }

    @classmethod
    def empty(cls, n_neurons: int, n_labels: int, k: int, device: torch.device | str) -> Self:
        """Statistics over no token."""
        formats = cls.formats(n_neurons, n_labels, k)
        result = cls(
            **{name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in formats.items()}
        )
        result.clear()
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def clear(self) -> None:
        """Forget every token."""
        for name, tensor in self.tensors().items():
            tensor.fill_(STARTS.get(name, 0))

    def to_host(self) -> Statistics:
        """The same statistics in numpy; waits for the device."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()}
        values, tokens = arrays["exemplar_values"], arrays["exemplar_tokens"]
        order = exemplar_order(values, tokens)
        arrays["exemplar_values"] = np.take_along_axis(values, order, axis=1)
        arrays["exemplar_tokens"] = np.take_along_axis(tokens, order, axis=1)
        return Statistics.from_arrays(arrays)


class Partials(NamedTuple):
    """What the programs saw of each piece of a window, before it is merged; [piece, neuron] each."""

    finite: Tensor  # int32, how many values are
    mean: Tensor  # float64
    m2: Tensor  # float64
    minimum: Tensor  # float32
    best: Tensor  # float32, the largest
    token: Tensor  # int32, the first token of the batch that attains it

    @classmethod
    def empty(cls, n_pieces: int, n_neurons: int, device: torch.device) -> Self:
        """Contents undefined: every entry is written."""
        dtypes = (torch.int32, torch.float64, torch.float64, torch.float32, torch.float32, torch.int32)
        return cls(*(torch.empty((n_pieces, n_neurons), dtype=dtype, device=device) for dtype in dtypes))


def merge(partials: Partials, columns: DeviceColumns, statistics: DeviceStatistics) -> None:
    """Add the pieces of a batch to the moments, extremes and exemplars."""
    n_neurons, k = statistics.exemplar_values.shape
    entries = triton.next_power_of_2(max(k, 1))
    width = max(1, min(64, MERGE_ENTRIES // entries))
    launch(
        _merge,
        triton.cdiv(n_neurons, width),
        partials,
        columns.piece_segments,
        columns.tokens,
        statistics.count,
        statistics.mean,
        statistics.m2,
        statistics.minimum,
        statistics.maximum,
        statistics.exemplar_values,
        statistics.exemplar_tokens,
        columns.n_pieces,
        n_neurons,
        k,
        WIDTH=width,
        ENTRIES=entries,
        on=statistics.count,
        fuse=True,
    )


@jit
def count_bins(bits: tl.tensor, finite: tl.tensor, neurons: tl.tensor, histogram: tl.tensor) -> tl.tensor:
    """1 for each value of the middle bin, 0 elsewhere, [token, neuron] int32; counts the others in `histogram`.

    bits: [token, neuron] float32 bits. finite: [token, neuron] bool; where False nothing is counted. neurons: [neuron]
    int64. histogram: [neuron, bin] int32, contiguous. The middle bin is left to the caller: a model with ReLU would
    have most of its additions wait for one another there.

    A neuron's bins lie side by side. Transposed, the 32 additions of an instruction are those of 16 tokens of two neurons,
    which meet in 9 sectors of 32 bytes (SiLU(gate) · up of normal variables); those of one token are of 32 neurons, in 32.
    """
    # Exponent and first mantissa bit name the bin, counted from the middle one; see `cpu_statistics.classify`.
    step = ((bits & MAGNITUDE) >> 22) - _BELOW_FIRST
    step = tl.minimum(tl.maximum(step, 0), MIDDLE)
    # [neuron, token]; 0 where nothing is counted
    signed = tl.trans(tl.where(finite, tl.where(bits < 0, -step, step), 0))
    tl.atomic_add(histogram + (neurons * BINS + MIDDLE)[:, None] + signed, 1, mask=signed != 0, sem="relaxed")
    return (finite & (step == 0)).to(tl.int32)


@jit
def reduce_moments(
    count: tl.tensor, anchor: tl.tensor, total: tl.tensor, squares: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Mean and M2 [neuron] float64 of every neuron from sums of differences from an anchor, each [lane, neuron].

    count: int32 values of a lane. anchor, total, squares: float64; total and squares are of the differences. An anchor
    is one of its own lane's values: then `squares - total² / n` loses at most a factor n of the precision, whatever the
    mean. Over no value both are 0.
    """
    n = count.to(tl.float64)
    divisor = tl.maximum(n, 1.0)
    lane_mean = anchor + total / divisor  # [lane, neuron]
    lane_m2 = tl.maximum(squares - total * (total / divisor), 0.0)
    mean = tl.sum(n * lane_mean, axis=0) / tl.maximum(tl.sum(n, axis=0), 1.0)  # [neuron]
    difference = lane_mean - mean[None, :]
    return mean, tl.sum(lane_m2 + n * difference * difference, axis=0)


@jit
def find_first_largest(best: tl.tensor, token: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The largest of `best` [lane, neuron] float32 of each neuron, and the least `token`, int32, that goes with it."""
    largest = tl.max(best, axis=0)
    return largest, tl.min(tl.where(best == largest[None, :], token, _NO_TOKEN), axis=0)


@jit
def _add_moments(
    count: tl.tensor,
    mean: tl.tensor,
    m2: tl.tensor,
    other_count: tl.tensor,
    other_mean: tl.tensor,
    other_m2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """count, mean and M2 [neuron] of two parts together, as `Statistics.merge` adds them; counts are integers."""
    total = count + other_count
    share = other_count.to(tl.float64) / tl.maximum(total, 1).to(tl.float64)
    difference = other_mean - mean
    m2 = m2 + other_m2 + difference * difference * (count.to(tl.float64) * share)
    return total, mean + difference * share, m2


@jit
def _insert(
    values: tl.tensor, tokens: tl.tensor, entries: tl.tensor, value: tl.tensor, token: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The exemplars [WIDTH, ENTRIES], the last of each neuron replaced by a value that precedes it.

    values: float32 and tokens: int64, [WIDTH, ENTRIES], in no order; entries beyond k are +inf. entries: [ENTRIES].
    value: [WIDTH] float32 and token: [WIDTH] int64. The last is the smallest value, of those that tie the latest token,
    of unused entries, which are all -inf with token -1, the first. -inf precedes nothing.
    """
    worst = tl.min(values, axis=1)  # [WIDTH]
    latest = tl.max(tl.where(values == worst[:, None], tokens, _BEFORE_EMPTY), axis=1)  # [WIDTH]
    is_last = (values == worst[:, None]) & (tokens == latest[:, None])  # [WIDTH, ENTRIES]
    last_entry = tl.min(
        tl.where(is_last, entries[None, :], _NO_TOKEN), axis=1
    )  # [WIDTH]; one of them, where unused entries are alike
    precedes = (value > worst) | ((value == worst) & (value > -float("inf")) & (token < latest))
    is_replaced = precedes[:, None] & (entries[None, :] == last_entry[:, None])
    return tl.where(is_replaced, value[:, None], values), tl.where(is_replaced, token[:, None], tokens)


@jit_for_any("n_pieces")
def _merge(
    partials: Partials,
    piece_segments: tl.tensor,
    tokens: tl.tensor,
    counts: tl.tensor,
    means: tl.tensor,
    m2s: tl.tensor,
    minima: tl.tensor,
    maxima: tl.tensor,
    exemplar_values: tl.tensor,
    exemplar_tokens: tl.tensor,
    n_pieces: tl.tensor,
    n_neurons: tl.tensor,
    k: tl.tensor,
    WIDTH: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """Add the pieces of a batch to the statistics of a tile of neurons, in the order of the pieces.

    Grid: [tile of WIDTH neurons]. Alone with its neurons, a program adds floats in the same order in every run.

    partials: [piece, neuron] each. piece_segments: [piece + 1] int32, the window of each piece, and -1. tokens: [token]
    int64. counts: int64, means, m2s: float64, minima, maxima: float32, all [neuron] and updated in place.
    exemplar_values: float32, exemplar_tokens: int64, [neuron, k], contiguous, likewise. ENTRIES: k rounded up to a
    power of two.

    A window's largest value enters the exemplars once, when its last piece was seen.
    """
    neurons = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    inside = neurons < n_neurons
    entries = tl.arange(0, ENTRIES)  # [ENTRIES]
    entry_offsets = neurons[:, None] * k + entries[None, :]  # [WIDTH, ENTRIES]
    is_entry = inside[:, None] & (entries[None, :] < k)
    count, mean, m2 = tl.zeros([WIDTH], tl.int32), tl.zeros([WIDTH], tl.float64), tl.zeros([WIDTH], tl.float64)
    minimum = tl.full([WIDTH], float("inf"), tl.float32)
    maximum = tl.full([WIDTH], -float("inf"), tl.float32)
    best, best_token = maximum, tl.zeros([WIDTH], tl.int32)
    # Entries beyond k are +inf, which nothing precedes.
    top_values = tl.load(exemplar_values + entry_offsets, mask=is_entry, other=float("inf"))  # [WIDTH, ENTRIES]
    top_tokens = tl.load(exemplar_tokens + entry_offsets, mask=is_entry, other=-1)
    partial_offsets = neurons  # [WIDTH] int64, as `piece * n_neurons` would not be
    for piece in range(n_pieces):
        # [WIDTH], as all that is loaded below
        other_count = tl.load(partials.finite + partial_offsets, mask=inside, other=0)
        other_mean = tl.load(partials.mean + partial_offsets, mask=inside, other=0.0)
        other_m2 = tl.load(partials.m2 + partial_offsets, mask=inside, other=0.0)
        count, mean, m2 = _add_moments(count, mean, m2, other_count, other_mean, other_m2)
        minimum = tl.minimum(minimum, tl.load(partials.minimum + partial_offsets, mask=inside, other=float("inf")))
        value = tl.load(partials.best + partial_offsets, mask=inside, other=-float("inf"))
        best_token = tl.where(value > best, tl.load(partials.token + partial_offsets, mask=inside, other=0), best_token)
        best = tl.maximum(best, value)
        is_end = tl.load(piece_segments + piece) != tl.load(piece_segments + piece + 1)
        # Within a window nothing is inserted: -inf precedes no exemplar.
        candidate = tl.where(is_end, best, -float("inf"))
        token = tl.load(tokens + best_token, mask=candidate > -float("inf"), other=0)
        top_values, top_tokens = _insert(top_values, top_tokens, entries, candidate, token)
        maximum = tl.maximum(maximum, best)
        best = tl.where(is_end, -float("inf"), best)
        partial_offsets += n_neurons
    tl.store(exemplar_values + entry_offsets, top_values, mask=is_entry)
    tl.store(exemplar_tokens + entry_offsets, top_tokens, mask=is_entry)
    old_count = tl.load(counts + neurons, mask=inside, other=0)
    old_mean = tl.load(means + neurons, mask=inside, other=0.0)
    old_m2 = tl.load(m2s + neurons, mask=inside, other=0.0)
    total, mean, m2 = _add_moments(old_count, old_mean, old_m2, count, mean, m2)
    tl.store(counts + neurons, total, mask=inside)
    tl.store(means + neurons, mean, mask=inside)
    tl.store(m2s + neurons, m2, mask=inside)
    minimum = tl.minimum(minimum, tl.load(minima + neurons, mask=inside, other=float("inf")))
    maximum = tl.maximum(maximum, tl.load(maxima + neurons, mask=inside, other=-float("inf")))
    tl.store(minima + neurons, minimum, mask=inside)
    tl.store(maxima + neurons, maximum, mask=inside)

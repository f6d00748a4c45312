"""The k largest activations of every neuron on a GPU; takes tensors of any device that Triton runs on.

A value and its place in the row become one integer, ordered as the specification orders them: the larger value first, the
earlier token on a tie. All keys of a row differ, so that keeping the k largest of them leaves nothing to decide.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import FORMATS, INFINITY, MAGNITUDE, as_bits, jit, jit_for_any, on_device_of, widen
from actstore.kernels.top_k.naive import TopK

SPAN = 1024  # values of a row that are looked at together: eight a thread

_PLACE_BITS = tl.constexpr(31)
_PLACES = tl.constexpr((1 << 31) - 1)
_EMPTY = tl.constexpr(
    -(1 << 62)
)  # below every key: those of finite float32 lie 2⁵⁴ above it. Empty places count up from it
_FULL = tl.constexpr(1 << 62)  # above every key


class DeviceTopK(NamedTuple):
    """`TopK` on a device: descending; an empty place is -inf and token -1."""

    values: Tensor  # [neuron, k] float32
    tokens: Tensor  # [neuron, k] int64

    def to_host(self) -> TopK:
        """The same in numpy; waits for the device."""
        return TopK(self.values.cpu().numpy(), self.tokens.cpu().numpy())


def top_k(
    values: Tensor, tokens: Tensor, k: int, segments: Tensor | None = None, state: DeviceTopK | None = None
) -> DeviceTopK:
    """The k largest of `values` [neuron, token] and `state` together; as `api.top_k`, but all on the device of `values`.

    tokens: [token] int64, fewer than 2³¹. segments: [segment + 1] int64. What they hold is not checked: that would wait for
    the device.
    """
    n_neurons, n_tokens = len(values), tokens.numel()
    if values.ndim != 2 or tokens.shape != values.shape[1:]:
        raise ValueError(f"values must be [neuron, token] with {n_tokens} tokens, not {list(values.shape)}")
    if k < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
    if n_neurons == 0 or n_tokens == 0 or k == 0:
        found = _nothing(n_neurons, k, values.device)
    else:
        found = _decode(_find(values, n_tokens, k, segments), values, tokens)
    return found if state is None else merge(state, found)


def merge(a: DeviceTopK, b: DeviceTopK) -> DeviceTopK:
    """The k largest activations of two parts together, the k being that of `a`; neither is changed."""
    if len(a.values) != len(b.values):
        raise ValueError(f"cannot merge the top activations of {len(a.values)} and of {len(b.values)} neurons")
    values, tokens = torch.cat([a.values, b.values], dim=1), torch.cat([a.tokens, b.tokens], dim=1)
    # Keys sorted as integers: where floats are sorted by their bits, -0 and 0 are no tie.
    by_token = tokens.argsort(dim=1, stable=True)
    by_value = _order(values).gather(1, by_token).argsort(dim=1, descending=True, stable=True)
    order = by_token.gather(1, by_value)[:, : a.values.shape[1]]
    return DeviceTopK(values.gather(1, order), tokens.gather(1, order))


def _nothing(n_neurons: int, k: int, device: torch.device) -> DeviceTopK:
    values = torch.full((n_neurons, k), -torch.inf, dtype=torch.float32, device=device)
    return DeviceTopK(values, torch.full((n_neurons, k), -1, dtype=torch.int64, device=device))


def _find(values: Tensor, n_tokens: int, k: int, segments: Tensor | None) -> Tensor:
    """The keys [neuron, k] of the k largest, in no order."""
    source = as_bits(values)
    keys = torch.empty((len(values), k), dtype=torch.int64, device=values.device)
    n_segments = 0 if segments is None else len(segments) - 1
    length = n_tokens // max(n_segments, 1)
    with on_device_of(values):
        _top_k[(len(values),)](
            source,
            source.stride(0),
            source.stride(1),
            n_tokens,
            segments,
            n_segments,
            keys,
            k,
            SOURCE=FORMATS[values.dtype],
            SEGMENTED=segments is not None,
            PLACES=triton.next_power_of_2(k),
            SPAN=min(SPAN, max(128, triton.next_power_of_2(length))),
            enable_fp_fusion=True,
        )
    return keys


def _decode(keys: Tensor, values: Tensor, tokens: Tensor) -> DeviceTopK:
    keys = keys.sort(dim=1, descending=True).values
    empty = keys < _EMPTY.value + (1 << 53)
    place = (_PLACES.value - (keys & _PLACES.value)).masked_fill(empty, 0)
    return DeviceTopK(
        values.gather(1, place).float().masked_fill(empty, -torch.inf), tokens[place].masked_fill(empty, -1)
    )


def _order(values: Tensor) -> Tensor:
    """Integers in the order of float32 values; -0 and 0 the same."""
    bits = values.contiguous().view(torch.int32)
    return torch.where(values == 0, 0, torch.where(bits < 0, bits ^ MAGNITUDE.value, bits))


@jit
def _keys(raw: tl.tensor, at: tl.tensor, there: tl.tensor, SOURCE: tl.constexpr) -> tl.tensor:
    """The keys of values at places `at` of a row; that of an empty place for -inf and NaN."""
    bits = widen(raw, SOURCE)
    magnitude = bits & MAGNITUDE
    ordered = tl.where(magnitude == 0, 0, tl.where(bits < 0, bits ^ MAGNITUDE, bits))
    wins = there & (magnitude <= INFINITY) & ((magnitude < INFINITY) | (bits > 0))
    return tl.where(wins, (ordered.to(tl.int64) << _PLACE_BITS) + (_PLACES - at), _EMPTY)


@jit
def _insert(best: tl.tensor, key: tl.tensor) -> tl.tensor:
    """The `best` keys [place], the least of them replaced by `key` if that is larger."""
    least = tl.min(best, axis=0)
    return tl.where((best == least) & (best < key), key, best)


@jit_for_any("n_tokens", "n_segments")
def _top_k(
    values: tl.tensor,
    neuron_stride: tl.tensor,
    token_stride: tl.tensor,
    n_tokens: tl.tensor,
    segments: tl.tensor,
    n_segments: tl.tensor,
    keys: tl.tensor,
    k: tl.tensor,
    SOURCE: tl.constexpr,
    SEGMENTED: tl.constexpr,
    PLACES: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    neuron = tl.program_id(0).to(tl.int64)
    row = values + neuron * neuron_stride
    places = tl.arange(0, PLACES).to(tl.int64)
    # No two empty places are alike, and one beyond k is full for ever.
    best = tl.where(places < k, _EMPTY + places, _FULL)
    if SEGMENTED:
        for s in range(n_segments):
            start, stop = tl.load(segments + s), tl.load(segments + s + 1)
            largest = tl.full([SPAN], _EMPTY, tl.int64)
            for first in range(start, stop, SPAN):
                at = first + tl.arange(0, SPAN).to(tl.int64)
                raw = tl.load(row + at * token_stride, mask=at < stop, other=0)
                largest = tl.maximum(largest, _keys(raw, at, at < stop, SOURCE))
            best = _insert(best, tl.max(largest, axis=0))
    else:
        for first in range(0, n_tokens, SPAN):
            at = first + tl.arange(0, SPAN).to(tl.int64)
            raw = tl.load(row + at * token_stride, mask=at < n_tokens, other=0)
            found = _keys(raw, at, at < n_tokens, SOURCE)
            # Most spans hold nothing that is large enough.
            n_larger = tl.sum((found > tl.min(best, axis=0)).to(tl.int32), axis=0)
            for _ in range(tl.minimum(n_larger, k)):
                largest = tl.max(found, axis=0)
                best = _insert(best, largest)
                found = tl.where(found == largest, _EMPTY, found)
    tl.store(keys + neuron * k + places, best, mask=places < k)

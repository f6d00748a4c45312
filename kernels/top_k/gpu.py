"""The k largest activations of every neuron on a GPU; takes tensors of any device that Triton runs on.

A value and its column in the row become one integer, its key, ordered as the specification orders them: the larger value
first, the earlier token on a tie. All keys of a row differ, so that keeping the k largest of them leaves nothing to decide.

A key is the value's bits, ordered as integers are, × 2³¹, plus 2³¹ - 1 - column.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from actstore.kernels.gpu import FORMATS, INFINITY, MAGNITUDE, as_bits, jit, jit_for_any, launch, widen
from actstore.kernels.top_k.naive import TopK

SPAN = 1024  # values of a row that are looked at together: eight a thread

_COLUMN_BITS = tl.constexpr(31)
_COLUMNS = tl.constexpr((1 << 31) - 1)
# Below every key: those of finite float32 lie 2⁵⁴ above it. Unused entries count up from it.
_EMPTY = tl.constexpr(-(1 << 62))
_FULL = tl.constexpr(1 << 62)  # above every key


class DeviceTopK(NamedTuple):
    """`TopK` on a device: descending; unused entries are -inf with token -1."""

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
    the device. Ties go to the earlier column. Raises ValueError for shapes that do not fit and a negative k.
    """
    n_neurons, n_tokens = len(values), tokens.numel()
    if values.ndim != 2 or tokens.shape != values.shape[1:]:
        raise ValueError(f"values must be [neuron, token] with {n_tokens} tokens, not {list(values.shape)}")
    if k < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
    if n_neurons == 0 or n_tokens == 0 or k == 0:
        result = _nothing(n_neurons, k, values.device)
    else:
        result = _decode(_find(values, n_tokens, k, segments), values, tokens)
    return result if state is None else merge(state, result)


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
    launch(
        _top_k,
        len(values),
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
        ENTRIES=triton.next_power_of_2(k),
        SPAN=min(SPAN, max(128, triton.next_power_of_2(length))),
        on=values,
        fuse=False,
    )
    return keys


def _decode(keys: Tensor, values: Tensor, tokens: Tensor) -> DeviceTopK:
    """The values and tokens that `keys` [neuron, k] stand for, descending; the values are taken from `values` themselves."""
    keys = keys.sort(dim=1, descending=True).values
    # Unused keys lie within 2³¹ of _EMPTY, those of values 2⁵⁴ or more above it: any bound between them will do.
    unused = keys < _EMPTY.value + (1 << 53)
    columns = (_COLUMNS.value - (keys & _COLUMNS.value)).masked_fill(unused, 0)
    return DeviceTopK(
        values.gather(1, columns).float().masked_fill(unused, -torch.inf), tokens[columns].masked_fill(unused, -1)
    )


def _order(values: Tensor) -> Tensor:
    """Integers in the order of float32 values; -0 and 0 the same."""
    bits = values.contiguous().view(torch.int32)
    return torch.where(values == 0, 0, torch.where(bits < 0, bits ^ MAGNITUDE.value, bits))


@jit
def _keys(raw: tl.tensor, column: tl.tensor, valid: tl.tensor, SOURCE: tl.constexpr) -> tl.tensor:
    """The keys, int64, of the values at `column` of a row; `_EMPTY` for -inf, NaN and where not `valid`.

    raw: the values' bits as integers of their width. column: int64. valid: bool. All, and the result, of one shape.
    """
    bits = widen(raw, SOURCE)
    magnitude = bits & MAGNITUDE
    # As integers, negative floats are in reverse order: all bits but the sign are flipped. -0 and 0 tie.
    ordered = tl.where(magnitude == 0, 0, tl.where(bits < 0, bits ^ MAGNITUDE, bits))
    wins = valid & (magnitude <= INFINITY) & ((magnitude < INFINITY) | (bits > 0))
    return tl.where(wins, (ordered.to(tl.int64) << _COLUMN_BITS) + (_COLUMNS - column), _EMPTY)


@jit
def _insert(best: tl.tensor, key: tl.tensor) -> tl.tensor:
    """The `best` keys [ENTRIES] int64, in no order, the least of them replaced by `key`, a scalar, if that is larger.

    All of `best` differ, so that one entry at most is replaced.
    """
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
    ENTRIES: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Fill the keys of the k largest values of one neuron, in no order; unused entries are near `_EMPTY`.

    Grid: [neuron]. A program streams one row past the k keys that it holds in registers.

    values: [neuron, token] the bits of SOURCE as integers, with any strides. segments: [segment + 1] int64, ascending; read
    only if SEGMENTED: then a segment contributes the largest of its keys alone, the first token on a tie; an empty segment
    nothing. keys: [neuron, k] int64, contiguous, written whole. ENTRIES: k rounded up to a power of two; SPAN: values that are
    looked at together. k, n_tokens and segments are 1 or more: `top_k` starts no program otherwise.
    """
    neuron = tl.program_id(0).to(tl.int64)
    row = values + neuron * neuron_stride
    entries = tl.arange(0, ENTRIES).to(tl.int64)  # [ENTRIES]
    # No two unused entries are alike, so that an insertion replaces one; those beyond k are above every key and stay.
    best = tl.where(entries < k, _EMPTY + entries, _FULL)
    if SEGMENTED:
        for s in range(n_segments):
            start, stop = tl.load(segments + s), tl.load(segments + s + 1)  # scalars
            largest = tl.full([SPAN], _EMPTY, tl.int64)  # [SPAN]
            for span_start in range(start, stop, SPAN):
                column = span_start + tl.arange(0, SPAN).to(tl.int64)
                raw = tl.load(row + column * token_stride, mask=column < stop, other=0)
                largest = tl.maximum(largest, _keys(raw, column, column < stop, SOURCE))
            best = _insert(best, tl.max(largest, axis=0))  # [ENTRIES]
    else:
        for span_start in range(0, n_tokens, SPAN):
            column = span_start + tl.arange(0, SPAN).to(tl.int64)
            raw = tl.load(row + column * token_stride, mask=column < n_tokens, other=0)
            candidates = _keys(raw, column, column < n_tokens, SOURCE)  # [SPAN]
            # Most spans hold nothing that is large enough, and few hold more than one or two: those alone are searched for.
            n_larger = tl.sum((candidates > tl.min(best, axis=0)).to(tl.int32), axis=0)
            for _ in range(tl.minimum(n_larger, k)):
                largest = tl.max(candidates, axis=0)  # scalar; keys differ: it is in one column alone
                best = _insert(best, largest)
                candidates = tl.where(candidates == largest, _EMPTY, candidates)
    tl.store(keys + neuron * k + entries, best, mask=entries < k)

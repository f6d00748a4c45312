"""What kernels are tested on, on the CPU as on a GPU: values at odd sizes with all that can go wrong in a float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from actstore.kernels.floats import encode
from actstore.kernels.pack.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

FORMATS: list[Any] = [np.float32, np.float16, np.uint16]
"""uint16 holds bfloat16."""
NAN_BITS = {np.float32: np.float32(np.nan), np.float16: np.float16(np.nan), np.uint16: np.uint16(0x7FC0)}
SPECIALS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 6e-8, 65520.0, 2.0**-14, -(2.0**10), 1.5)


@dataclass(frozen=True)
class Batch:
    """What `pack` takes."""

    values: NDArray[Any]
    columns: Columns
    n_slots: int


def make_columns(rng: np.random.Generator, n_tokens: int, n_rows: int, scattered: bool, n_labels: int = 3) -> Columns:
    n_slots = n_tokens * 2 + 20
    start = int(rng.integers(0, n_slots - n_tokens))
    borders = np.sort(np.concatenate([[0, n_tokens], rng.integers(0, n_tokens + 1, 4)]))
    labels = np.stack([rng.permutation(np.append(np.arange(n_labels), -1))[:2] for _ in borders[1:]])
    return Columns(
        rows=rng.permutation(n_rows)[:n_tokens] if scattered else np.arange(n_tokens),
        slots=np.sort(rng.permutation(n_slots)[:n_tokens]) if scattered else start + np.arange(n_tokens),
        segments=borders,
        labels=labels[:, : int(rng.integers(0, 3))],
        counted=rng.random(n_tokens) < rng.choice([0.5, 1.0]),
        first_token=int(rng.integers(0, 10**12)),
    )


@st.composite
def batches(draw: st.DrawFn, n_tokens: Sequence[int], n_neurons: Sequence[int]) -> Batch:
    """Of these sizes, in every format and of every magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens, neurons = draw(st.sampled_from(n_tokens)), draw(st.sampled_from(n_neurons))
    columns = make_columns(rng, tokens, tokens + 3, draw(st.booleans()))
    values = rng.standard_normal((tokens + 3, neurons)) * 10.0 ** rng.integers(-42, 38, neurons)
    if draw(st.booleans()):
        for special in SPECIALS:
            values[rng.random(values.shape) < 0.03] = special
    if draw(st.booleans()):
        values = np.maximum(values, 0)
        if draw(st.booleans()):
            values = np.round(values)  # ties
    with np.errstate(over="ignore"):
        return Batch(encode(values.astype(np.float32), draw(st.sampled_from(FORMATS))), columns, tokens * 2 + 20)


@st.composite
def blocks(draw: st.DrawFn, n_neurons: int, n_slots: Sequence[int]) -> NDArray[Any]:
    """Of at most `n_neurons` neurons, in every format and of one magnitude, with zeros and ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(0, n_neurons)), draw(st.sampled_from(n_slots)))
    values = rng.standard_normal(shape) * 10.0 ** draw(st.integers(-45, 37))
    if draw(st.booleans()):
        for special in (np.nan, np.inf, -np.inf):
            values[rng.random(shape) < 0.1] = special
    if draw(st.booleans()):
        values[rng.random(shape) < 0.5] = 0.0
        values[rng.random(shape) < 0.1] = -0.0
    if draw(st.booleans()):
        values = np.round(values)
    with np.errstate(over="ignore"):
        return encode(values.astype(np.float32), draw(st.sampled_from(FORMATS)))


def make_values(rng: np.random.Generator, shape: tuple[int, int], tied: bool, special: bool) -> NDArray[np.float32]:
    values = rng.standard_normal(shape).astype(np.float32)
    if tied:
        values = np.maximum(np.round(values), -1) * np.float32(rng.choice([1, -0.0]))
    if special:
        for number in (np.nan, np.inf, -np.inf, -0.0, -3.4028235e38, 1e-45):
            values[rng.random(shape) < 0.1] = number
    return values


def make_weights(
    seed: int, n_neurons: int, n_tokens: int, dtypes: tuple[Any, Any], special: bool, draw_d: Callable[..., Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Write vectors, unembedding and gain in small whole numbers: every product is exact, and many are alike.

    `draw_d` draws their width from a generator.
    """
    rng = np.random.default_rng(seed)
    d = int(draw_d(rng))
    write_vectors = rng.integers(-2, 3, (d, n_neurons)).T.astype(np.float32)
    unembedding = rng.integers(-2, 3, (n_tokens, d)).astype(np.float32)
    if special:
        for number in (np.nan, np.inf, -np.inf, -0.0):
            write_vectors[rng.random(n_neurons) < 0.05, 0] = number
            unembedding[rng.random(n_tokens) < 0.05, d - 1] = number
    gain = (2.0 ** rng.integers(-2, 3, d)).astype(np.float32)
    return encode(write_vectors, dtypes[0]), encode(unembedding, dtypes[1]), gain

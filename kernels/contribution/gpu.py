"""Contributions on a GPU; takes tensors of any device that Triton runs on. Checks are made by `api`.

A program makes a tile of the product and works on it in registers. Sums by group have one program for each part of a group and
each tile of neurons, which takes the part's targets in order, and parts are added in order: how a group is cut depends on sizes
alone, so that every run gives the same bits.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from actstore.kernels.contribution.entries import Entries
from actstore.kernels.contribution.gpu_pairs import PAIRS, Pairs
from actstore.kernels.contribution.gpu_products import COLUMNS, NEURONS, Factors, factors, multiply
from actstore.kernels.contribution.products import as_tensor
from actstore.kernels.contribution.sums import ContributionSums, TopNeurons
from actstore.kernels.contribution.targets import Targets
from actstore.kernels.floats import FloatArray, as_array, on_gpu
from actstore.kernels.gpu import FORMATS, INFINITY, MAGNITUDE, as_bits, jit, launch, upload, widen

TOKENS = 1024  # whose scores are in memory for all neurons while their largest are looked for


def contribution(activations: Tensor | FloatArray, write_vectors: Tensor, targets: Targets) -> Tensor:
    """The scores [neuron, token] float32, on the device of `write_vectors`; see `api.contribution`."""
    device = write_vectors.device
    values = _move(activations, device)
    bits = as_bits(values)
    n_neurons, n_tokens = values.shape
    scores = torch.empty((n_neurons, n_tokens), dtype=torch.float32, device=device)
    if scores.numel():
        launch(
            _weigh,
            triton.cdiv(n_neurons, NEURONS) * triton.cdiv(n_tokens, COLUMNS),
            activations=bits,
            activation_neuron_stride=bits.stride(0),
            activation_token_stride=bits.stride(1),
            n_tokens=n_tokens,
            rows=_upload(targets.rows, device),
            scale=_upload(targets.scale, device),
            scores=scores,
            SOURCE=FORMATS[values.dtype],
            on=write_vectors,
            fuse=True,
            **factors(write_vectors, _directions(targets), _upload(targets.gain, device)),
        )
    return scores


def top_contribution(activations: Tensor | FloatArray, write_vectors: Tensor, targets: Targets, k: int) -> TopNeurons:
    """The k neurons with the largest scores at every token; see `api.top_contribution`."""
    n_tokens = targets.n_tokens
    best = TopNeurons(np.full((n_tokens, k), -np.inf, np.float32), np.full((n_tokens, k), -1, np.int64))
    for first in range(0, n_tokens, TOKENS):
        tokens = np.arange(first, min(first + TOKENS, n_tokens))
        scores = contribution(activations[:, first : first + TOKENS], write_vectors, targets.take(tokens)).T
        scores = torch.where(scores.isnan(), -torch.inf, scores) + 0.0  # a sort may tell -0 from 0
        values, neurons = scores.sort(dim=1, descending=True, stable=True)
        values, neurons = values[:, :k], neurons[:, :k].masked_fill(values[:, :k] == -torch.inf, -1)
        best.scores[tokens, : values.shape[1]] = values.cpu().numpy()
        best.neurons[tokens, : values.shape[1]] = neurons.cpu().numpy()
    return best


def sum_contributions(
    activations: Tensor | FloatArray, write_vectors: Tensor, targets: Targets, entries: Entries, n_groups: int
) -> ContributionSums:
    """The sums over the tokens of `entries`; see `api.sum_contributions`."""
    device = write_vectors.device
    values = _move(activations, device)
    bits = as_bits(values)
    n_tiles = triton.cdiv(len(values), NEURONS)
    pairs = Pairs.of(entries, n_tiles)
    shape = (pairs.n_parts, len(values))
    total, magnitude = (torch.empty(shape, dtype=torch.float64, device=device) for _ in range(2))
    non_finite = torch.empty(shape, dtype=torch.int64, device=device)
    if total.numel():
        launch(
            _add,
            n_tiles * pairs.n_parts,
            activations=bits,
            activation_neuron_stride=bits.stride(0),
            activation_token_stride=bits.stride(1),
            scale=_upload(targets.scale, device),
            n_parts=pairs.n_parts,
            **pairs.on(device),
            total=total,
            magnitude=magnitude,
            non_finite=non_finite,
            SOURCE=FORMATS[values.dtype],
            on=write_vectors,
            fuse=True,
            **factors(write_vectors, _directions(targets), _upload(targets.gain, device), PAIRS),
        )
    count = np.bincount(entries.groups, minlength=n_groups)
    sums = (pairs.add(to_host(array), n_groups) for array in (total, magnitude, non_finite))
    return ContributionSums(next(sums), next(sums), count, next(sums))


def to_host(tensor: Tensor) -> NDArray[Any]:
    """The tensor as a numpy array; waits for the device."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def _move(activations: Tensor | FloatArray, device: torch.device) -> Tensor:
    tensor = activations if on_gpu(activations) else as_tensor(as_array(activations, "activations"))
    return tensor.to(device)


def _upload(array: NDArray[np.generic] | None, device: torch.device) -> Tensor | None:
    return None if array is None else upload(array, device)


def _directions(targets: Targets) -> Tensor:
    directions = targets.directions
    return directions if isinstance(directions, Tensor) else as_tensor(as_array(directions, "directions"))


@jit
def _load_activations(
    activations: tl.tensor,
    neuron_stride: tl.tensor,
    token_stride: tl.tensor,
    neurons: tl.tensor,
    n_neurons: tl.tensor,
    tokens: tl.tensor,
    valid: tl.tensor,
    scale: tl.tensor,
    SOURCE: tl.constexpr,
) -> tl.tensor:
    """Activations [neuron, token] times their tokens' scale, float32; 0 beyond them.

    activations: [neuron, token] the bits of SOURCE as integers, with any strides. neurons: [NEURONS] int64. tokens:
    [any] int64, not read where not `valid`, [any] bool. scale: [token] float32, or None for 1.
    """
    pointers = activations + neurons[:, None] * neuron_stride + tokens[None, :] * token_stride
    raw = tl.load(pointers, mask=(neurons < n_neurons)[:, None] & valid[None, :], other=0)  # [NEURONS, tokens]
    values = widen(raw, SOURCE).to(tl.float32, bitcast=True)
    if scale is not None:
        values *= tl.load(scale + tokens, mask=valid, other=0.0)[None, :]
    return values


@jit
def _weigh(
    activations: tl.tensor,
    activation_neuron_stride: tl.tensor,
    activation_token_stride: tl.tensor,
    n_tokens: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    scores: tl.tensor,
    factors: Factors,
    SOURCE: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PRODUCTS: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Fill a tile of the scores.

    Grid: [tile of NEURONS neurons × tile of COLUMNS tokens], neurons fastest, so that neighbours share directions.

    activations: [neuron, token] the bits of SOURCE as integers, with any strides. rows: [token] int64, or None: token t
    has row t. scale: [token] float32, or None for 1. scores: [neuron, token] float32, contiguous. factors and the rest:
    see `multiply`.
    """
    n_neurons = factors.n_neurons
    n_tiles = tl.cdiv(n_neurons, NEURONS)
    program = tl.program_id(0).to(tl.int64)
    neurons = program % n_tiles * NEURONS + tl.arange(0, NEURONS)  # [NEURONS]
    tokens = program // n_tiles * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    valid = tokens < n_tokens
    targets = tokens  # [COLUMNS]
    if rows is not None:
        targets = tl.load(rows + tokens, mask=valid, other=0)
    product = multiply(
        factors, neurons, targets, valid, LEFT, RIGHT, PRODUCTS, NEURONS, COLUMNS, DEPTH
    )  # [NEURONS, COLUMNS]
    values = _load_activations(
        activations, activation_neuron_stride, activation_token_stride, neurons, n_neurons, tokens, valid, scale, SOURCE
    )
    pointers = scores + neurons[:, None] * n_tokens + tokens[None, :]
    tl.store(pointers, values * product, mask=(neurons < n_neurons)[:, None] & valid[None, :])


@jit
def _add(
    activations: tl.tensor,
    activation_neuron_stride: tl.tensor,
    activation_token_stride: tl.tensor,
    scale: tl.tensor,
    n_parts: tl.tensor,
    firsts: tl.tensor,
    rows: tl.tensor,
    starts: tl.tensor,
    stops: tl.tensor,
    tokens: tl.tensor,
    total: tl.tensor,
    magnitude: tl.tensor,
    non_finite: tl.tensor,
    factors: Factors,
    SOURCE: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PRODUCTS: tl.constexpr,
    NEURONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Fill the sums over one part of a group for a tile of neurons.

    Grid: [tile of NEURONS neurons × part], parts fastest. A program alone writes its part's sums, and takes the part's
    pairs, COLUMNS at a time, and their tokens in order: the same bits in every run.

    activations: [neuron, token] the bits of SOURCE as integers, with any strides. scale: [token] float32, or None for
    1. firsts, rows, starts, stops, tokens: int64, as in `Pairs`. total, magnitude: [part, neuron] float64 and non_finite:
    [part, neuron] int64, contiguous and written whole. factors and the rest: see `multiply`.

    The product of a pair is the same for all of its tokens: activations are added up first, in float64, then
    multiplied.
    """
    program = tl.program_id(0).to(tl.int64)
    part = program % n_parts
    n_neurons = factors.n_neurons
    neurons = program // n_parts * NEURONS + tl.arange(0, NEURONS)  # [NEURONS]
    signed, absolute = tl.zeros([NEURONS], tl.float64), tl.zeros([NEURONS], tl.float64)  # [NEURONS]
    n_lost = tl.zeros([NEURONS], tl.int64)
    last_pair = tl.load(firsts + part + 1)
    for tile_start in range(tl.load(firsts + part), last_pair, COLUMNS):
        pair = tile_start + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
        valid = pair < last_pair
        targets = tl.load(rows + pair, mask=valid, other=0)
        product = multiply(
            factors, neurons, targets, valid, LEFT, RIGHT, PRODUCTS, NEURONS, COLUMNS, DEPTH
        )  # [NEURONS, COLUMNS]
        start = tl.load(starts + pair, mask=valid, other=0)  # [COLUMNS]
        stop = tl.load(stops + pair, mask=valid, other=0)
        activation, magnitudes = (
            tl.zeros([NEURONS, COLUMNS], tl.float64),
            tl.zeros([NEURONS, COLUMNS], tl.float64),
        )  # [NEURONS, COLUMNS]
        # As many rounds as the pair with the most tokens has; the others' columns are masked.
        for i in range(tl.max(stop - start, axis=0)):
            has_token = start + i < stop  # [COLUMNS]
            token = tl.load(tokens + start + i, mask=has_token, other=0)  # [COLUMNS]
            values = _load_activations(
                activations,
                activation_neuron_stride,
                activation_token_stride,
                neurons,
                n_neurons,
                token,
                has_token,
                scale,
                SOURCE,
            )
            finite = (values.to(tl.int32, bitcast=True) & MAGNITUDE) < INFINITY
            values = tl.where(finite, values, 0.0).to(tl.float64)
            activation += values
            magnitudes += tl.abs(values)
            n_lost += tl.sum((~finite).to(tl.int32), axis=1)
        exact = product.to(tl.float64)
        signed += tl.sum(activation * exact, axis=1)
        absolute += tl.sum(magnitudes * tl.abs(exact), axis=1)
    pointers = part * n_neurons + neurons
    tl.store(total + pointers, signed, mask=neurons < n_neurons)
    tl.store(magnitude + pointers, absolute, mask=neurons < n_neurons)
    tl.store(non_finite + pointers, n_lost, mask=neurons < n_neurons)

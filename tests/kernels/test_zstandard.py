"""Against the libraries that read the frames: whatever the bytes, they come back; codes are those of the specification."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Zstd, blosc
from numpy.typing import NDArray

from actstore.kernels.zstandard import api, cpu, huffman, sequences
from actstore.kernels.zstandard.entropy import new_table, share_states


def encoded(chunk: NDArray[np.generic], *, shuffle: bool = False, most: int = 1 << 40) -> bytes:
    """The Blosc frame of a chunk; the buffer beyond it is not written."""
    out = np.full(api.buffer_nbytes(chunk) + 64, 0xA5, np.uint8)
    n = api.write_chunk(chunk, most, out, shuffle=shuffle)
    assert (out[api.buffer_nbytes(chunk) :] == 0xA5).all()
    return out[:n].tobytes()


def frame(data: NDArray[np.uint8]) -> bytes | None:
    """The zstandard frame of a stream of bytes, None where it is to be stored as it is."""
    out = np.zeros(2 * len(data) + 2048, np.uint8)
    end = cpu.write_frame(data, 0, len(data), cpu.new_scratch(len(data)), out, 0)
    return None if end < 0 else out[:end].tobytes()


def bytes_of(kind: str, n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """`n` bytes of some kind."""
    if kind == "steps":
        return np.clip(np.rint(rng.laplace(0, rng.uniform(0.5, 20), n)), -127, 127).astype(np.int8).view(np.uint8)
    if kind == "two":
        return np.where(rng.random(n) < 0.5, 0, 255).astype(np.uint8)
    if kind == "flat":
        return (np.arange(n) % rng.integers(2, 200)).astype(np.uint8)
    if kind == "powers":  # the rarest values of a code that would be longer than is allowed
        return np.minimum(rng.geometric(0.5, n) - 1, 255).astype(np.uint8)
    if kind == "padded":
        return np.where(np.arange(n) < rng.integers(0, n), rng.integers(0, 40, n), 128).astype(np.uint8)
    if kind == "runs":
        return np.repeat(rng.integers(0, 4, n), rng.integers(1, 90, n))[:n].astype(np.uint8)
    if kind == "zeros":
        return np.where(rng.random(n) < rng.uniform(0, 0.2), rng.integers(0, 256, n), 0).astype(np.uint8)
    if kind == "constant":
        return np.full(n, rng.integers(0, 256), np.uint8)
    return rng.integers(0, 256, n, np.uint8)


KINDS = ["steps", "two", "flat", "powers", "padded", "runs", "zeros", "constant", "random"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [128, 129, 255, 256, 257, 1000, 16_384, 65_791, 65_792, 131_072])
def test_every_stream_is_read_by_zstandard(kind: str, n: int) -> None:
    for seed in range(4):
        data = bytes_of(kind, n, np.random.default_rng(seed))
        stream = frame(data)
        if stream is None:
            assert kind in ("random", "flat", "steps", "two") or n < 300, "it is worth a frame"
        else:
            assert len(stream) < n
            assert bytes(Zstd().decode(stream)) == data.tobytes()


@given(st.binary(min_size=128, max_size=700), st.integers(1, 12))
@settings(max_examples=300)
def test_any_bytes_come_back(data: bytes, times: int) -> None:
    stream = np.repeat(np.frombuffer(data, np.uint8), times)
    if (written := frame(stream)) is not None:
        assert bytes(Zstd().decode(written)) == stream.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 128), (32, 1024), (17, 16_384), (3, 192)])
@pytest.mark.parametrize(("dtype", "shuffle"), [("u1", False), ("u2", True), ("u2", False), ("f4", True)])
def test_every_chunk_is_read_by_blosc(kind: str, n_rows: int, n_columns: int, dtype: str, shuffle: bool) -> None:
    rng = np.random.default_rng(n_columns)
    itemsize = np.dtype(dtype).itemsize
    chunk = bytes_of(kind, n_rows * n_columns * itemsize, rng).view(dtype).reshape(n_rows, n_columns)
    data = encoded(chunk, shuffle=shuffle)
    assert blosc.decompress(data) == chunk.tobytes()
    assert encoded(chunk, shuffle=shuffle) == data
    assert encoded(chunk, shuffle=shuffle, most=len(data)) == data
    assert encoded(chunk, shuffle=shuffle, most=len(data) - 1) == b""


def test_activations_take_no_more_than_by_the_general_encoder() -> None:
    rng = np.random.default_rng(0)
    steps = np.clip(np.rint(rng.laplace(0, 9, (32, 16_384))), -127, 127).astype(np.int8)
    values = (rng.standard_normal((32, 16_384)) * rng.gamma(1, 1, (32, 1))).astype(np.float16)
    sparse = np.where(rng.random((32, 16_384)) < 0.05, values, np.float16(0))
    for chunk, shuffle, other in ((steps, False, 0), (values, True, 2), (sparse, False, 0)):
        cname = b"lz4" if shuffle else b"zstd"
        general = blosc.compress(chunk, cname, 5 if shuffle else 1, other, chunk.shape[1] * chunk.itemsize)
        assert len(encoded(chunk, shuffle=shuffle)) < 1.005 * len(general)


def huffman_cost(counts: NDArray[np.int64]) -> int:
    """Bits of all bytes by a Huffman code whose lengths are not bounded."""
    heap = sorted(int(count) for count in counts if count)
    cost = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=256), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_codes_are_those_of_huffman_where_they_may_be(numbers: list[int], seed: int) -> None:
    totals = np.zeros(256, np.int64)
    totals[np.random.default_rng(seed).permutation(256)[: len(numbers)]] = numbers
    if (totals > 0).sum() < 2:
        return
    lengths = np.zeros(256, np.int64)
    longest = huffman.assign_lengths(totals, lengths)
    assert ((lengths > 0) == (totals > 0)).all()
    assert longest == lengths.max() <= huffman.MOST_BITS
    assert (0.5 ** lengths[lengths > 0]).sum() == 1
    cost, best = int((totals * lengths).sum()), huffman_cost(totals)
    assert cost == best if longest < huffman.MOST_BITS else best <= cost <= 1.03 * best


def test_the_rarest_get_codes_that_are_not_too_long() -> None:
    totals = np.zeros(256, np.int64)
    totals[:40] = np.minimum(2 ** np.arange(40), 1 << 12)
    lengths = np.zeros(256, np.int64)
    assert huffman.assign_lengths(totals, lengths) == huffman.MOST_BITS
    assert (0.5 ** lengths[lengths > 0]).sum() == 1


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=53), st.sampled_from([6, 8]))
def test_every_symbol_gets_a_state(numbers: list[int], log: int) -> None:
    counts, table = np.zeros(64, np.int64), new_table()
    counts[: len(numbers)] = numbers
    if (counts > 0).sum() < 2:
        return
    share_states(counts, len(numbers), log, table.shares)
    assert table.shares[: len(numbers)].sum() == 1 << log
    assert ((table.shares[: len(numbers)] > 0) == (counts[: len(numbers)] > 0)).all()


@pytest.mark.parametrize("length", [*range(3, 200), 1000, 2050, 65_538, 131_071])
def test_lengths_and_their_codes_agree(length: int) -> None:
    code = sequences.match_code(length)
    assert 0 <= length - sequences._MATCH_BASES[code] < 1 << sequences._MATCH_BITS[code]
    code = sequences.literal_code(length - 3)
    assert 0 <= length - 3 - sequences._LITERAL_BASES[code] < 1 << sequences._LITERAL_BITS[code]


def test_chunks_of_other_shapes_are_refused() -> None:
    out = np.empty(1 << 20, np.uint8)
    for chunk in (np.zeros((4, 64), np.uint8), np.zeros((4, 512), np.uint8)[:, ::2], np.zeros((1, 1 << 18), np.uint8)):
        with pytest.raises(ValueError, match="a chunk must be contiguous rows of 128 to 131072 bytes"):
            api.write_chunk(chunk, 100, out, shuffle=False)
    with pytest.raises(ValueError, match="out must have"):
        api.write_chunk(np.zeros((4, 512), np.uint8), 100, out[:100], shuffle=False)

"""Checksums of rows: every changed bit of what is read, and every row in another's place, is noticed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from actstore.store.errors import FormatError
from actstore.store.files.shards import Shard, encode_shard, shard_seed
from actstore.store.layout import FAST, SMALL, Compression, ShardGrid, shard_grid
from actstore.store.storage.pieces import MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

IDENTITY, KEY, BLOCK = "8d" * 16, "captures/corpus/values/mlp.post/3", 17
SEED = shard_seed(IDENTITY, KEY, BLOCK)

# Rows of 512 bytes and of 4, several chunks across, padding rows, a chunk that is stored uncompressed.
SHAPES = {
    "rows": (33, 256, "float16"),
    "signs": (33, 256, "uint8"),
    "narrow": (33, 64, "int8"),
    "scales": (40, 1, "float32"),
    "across": (3, 40_000, "float16"),
}


def make_values(kind: str, *, compressible: bool) -> NDArray[Any]:
    rows, columns, name = SHAPES[kind]
    dtype, rng = np.dtype(name), np.random.default_rng(4)
    if compressible:
        return rng.integers(0, 3, (rows, columns)).astype(dtype)
    return rng.integers(0, 256, (rows, columns * dtype.itemsize), dtype=np.uint8).view(dtype)


def open_shard(data: bytes | bytearray, values: NDArray[Any], seed: int | None = SEED, place: str = "") -> Shard:
    return Shard(MemorySource(bytes(data)), shard_grid(*values.shape), values.dtype, "the shard", seed, place)


def encode(values: NDArray[Any], compression: Compression = FAST, seed: int | None = SEED) -> bytes:
    return encode_shard(values, shard_grid(*values.shape), compression, seed)


def frames(data: bytes, grid: ShardGrid) -> list[tuple[int, int]]:
    """(offset, bytes) of every inner chunk, as Zarr's index has them."""
    n = grid.grid[0] * grid.grid[1]
    return [(int(o), int(s)) for o, s in np.frombuffer(data[-16 * n - 4 : -4], "<u8").reshape(n, 2)]


def with_index(body: bytes, entries: list[tuple[int, int]]) -> bytes:
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return body + index + struct.pack("<I", google_crc32c.value(index))


@pytest.mark.parametrize("compressible", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("compression", [FAST, SMALL], ids=["fast", "small"])
def test_what_is_written_is_read(kind: str, compressible: bool, compression: Compression) -> None:
    values = make_values(kind, compressible=compressible)
    shard = open_shard(encode(values, compression), values)
    assert shard.rows().tobytes() == values.tobytes()
    assert b"".join(shard.row(row).tobytes() for row in range(len(values))) == values.tobytes()


def test_bits_that_compare_equal_are_told_apart() -> None:
    """The checksum is of bytes: of a NaN's payload and of the sign of zero too."""
    values = np.zeros((2, 128), np.float32)
    values[0, 5] = np.nan
    for change in (np.uint32(0x7FC00001), np.uint32(0x80000000)):
        other = values.copy()
        other.view(np.uint32)[0, 5] = change
        assert encode(other)[:4] != encode(values)[:4]
        assert encode(other)[4:8] == encode(values)[4:8]


@pytest.mark.parametrize("kind", SHAPES)
def test_the_checksums_are_what_the_formats_page_says(kind: str) -> None:
    values = make_values(kind, compressible=False)
    grid = shard_grid(*values.shape)
    data, across = encode(values), grid.grid[1]
    seed = google_crc32c.value(f'["{IDENTITY}", "{KEY}", {BLOCK}]'.encode())
    for number, (offset, nbytes) in enumerate(frames(data, grid)):
        i, j = divmod(number, across)
        chunk = np.frombuffer(blosc.decompress(data[offset : offset + nbytes]), values.dtype)
        chunk = chunk.reshape(grid.chunk_rows, grid.chunk_columns)
        if kind in ("narrow", "scales"):
            expected = [google_crc32c.extend(seed ^ (i * across + j), chunk.tobytes())]
        else:
            rows = range(i * grid.chunk_rows, (i + 1) * grid.chunk_rows)
            expected = [
                google_crc32c.extend(seed ^ (row * across + j), c.tobytes()) for row, c in zip(rows, chunk, strict=True)
            ]
        table = data[offset - 4 * len(expected) : offset]
        assert struct.unpack(f"<{len(expected)}I", table) == tuple(expected)


def readings(shard: Callable[[], Shard], n: int) -> list[NDArray[Any] | str]:
    """Every row by itself, then all at once, each with a shard opened anew; the message of an error."""
    found: list[NDArray[Any] | str] = []
    for row in [*range(n), None]:
        try:
            found.append(shard().rows() if row is None else shard().row(row))
        except FormatError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("compressible", [True, False])
@pytest.mark.parametrize("kind", ["rows", "narrow", "scales"])
def test_no_flipped_bit_is_read(kind: str, compressible: bool) -> None:
    """Whatever byte of the file it is in: table, header, offsets, compressed values, index."""
    values = make_values(kind, compressible=compressible)[:5]
    data, noticed = encode(values), 0
    for at in range(0, len(data), 1 if len(data) < 600 else 5):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        *rows, whole = readings(lambda d=damaged: open_shard(d, values), len(values))  # type: ignore[misc]
        for found, expected in zip([*rows, whole], [*values, values], strict=True):
            if isinstance(found, str):
                noticed += 1
                assert "store.verify()" in found
            else:
                assert found.tobytes() == expected.tobytes(), f"byte {at}"
    assert noticed > len(data) / 5


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "other",
    [("9d" * 16, KEY, BLOCK), (IDENTITY, KEY.replace("3", "4"), BLOCK), (IDENTITY, KEY, BLOCK + 1)],
    ids=["capture", "array", "block"],
)
def test_a_shard_in_anothers_place_is_not_read(kind: str, other: tuple[str, str, int]) -> None:
    values = make_values(kind, compressible=True)
    data = encode(values, seed=shard_seed(*other))
    assert all("checksum mismatch" in str(found) for found in readings(lambda: open_shard(data, values), len(values)))


@pytest.mark.parametrize("kind", ["rows", "narrow", "across"])
def test_chunks_that_changed_places_are_not_read(kind: str) -> None:
    """With their tables, and an index that is right about them."""
    values = make_values(kind, compressible=False)
    if kind != "across":
        values = np.concatenate([values[:32], values[:32]])  # the same rows twice: only their numbers differ
    grid = shard_grid(*values.shape)
    data = encode(values)
    (first, n), (second, m) = frames(data, grid)[:2]
    table = second - first - n
    body = data[: -16 * grid.grid[0] * grid.grid[1] - 4]
    swapped = body[second - table : second + m] + body[: first + n] + body[second + m :]
    shard = with_index(swapped, [(table, m), (2 * table + m, n), *frames(data, grid)[2:]])
    n_rows = grid.chunk_rows if kind == "across" else len(values)
    found = readings(lambda: open_shard(shard, values), n_rows)
    assert all("checksum mismatch" in str(message) for message in found)


def test_rows_that_changed_places_are_not_read() -> None:
    """An uncompressed chunk, two rows swapped, and their checksums too."""
    values = make_values("rows", compressible=False)
    n = values.shape[1] * 2
    for tables in (False, True):
        data = bytearray(encode(values))
        offset, _ = frames(bytes(data), shard_grid(*values.shape))[0]
        one, other = (slice(offset + 16 + row * n, offset + 16 + (row + 1) * n) for row in (1, 4))
        data[one], data[other] = data[other], data[one]
        if tables:
            data[4:8], data[16:20] = data[16:20], data[4:8]
        found = readings(lambda d=data: open_shard(d, values), 6)  # type: ignore[misc]
        assert [isinstance(row, str) for row in found] == [False, True, False, False, True, False, True]


def test_an_error_names_place_and_neuron_and_what_to_do() -> None:
    values = make_values("rows", compressible=False)
    data, place = bytearray(encode(values)), "capture 'corpus', layer 3 (mlp.post), block 17"
    data[frames(bytes(data), shard_grid(*values.shape))[0][0] + 16 + 2 * 512] ^= 1
    expected = f"{place}, neuron 2: checksum mismatch in the shard. Run `store.verify()` to find every damaged block, "
    for read in (lambda shard: shard.row(2), lambda shard: shard.rows()):
        with pytest.raises(FormatError) as failed:
            read(open_shard(data, values, place=place))
        assert str(failed.value).startswith(expected)
    narrow = make_values("scales", compressible=False)
    with pytest.raises(FormatError, match="block 17, neurons 20 to 39: checksum mismatch"):
        open_shard(_second_chunk_damaged(narrow), narrow, place=place).row(25)
    data[-1] ^= 1
    with pytest.raises(
        FormatError, match=r"^capture 'corpus', layer 3 \(mlp.post\), block 17: the shard is damaged: its in"
    ):
        open_shard(data, values, place=place)


def _second_chunk_damaged(values: NDArray[Any]) -> bytes:
    data = bytearray(encode(values))
    data[frames(bytes(data), shard_grid(*values.shape))[1][0] - 1] ^= 1
    return bytes(data)


@pytest.mark.parametrize("entry", [(2**63, 2**63), (2**64 - 8, 40), (0, 2**40), (5, 24)])
def test_an_index_that_points_elsewhere_is_not_followed(entry: tuple[int, int]) -> None:
    values = make_values("rows", compressible=True)
    data, grid = encode(values), shard_grid(*values.shape)
    entries = frames(data, grid)
    body = data[: -16 * len(entries) - 4]
    assert open_shard(with_index(body, entries), values).rows().tobytes() == values.tobytes()
    with pytest.raises(FormatError, match="its chunks do not fill it"):
        open_shard(with_index(body, [entry, *entries[1:]]), values)


def test_without_a_seed_there_are_no_tables() -> None:
    """A capture of an earlier version has none, and is written and read byte by byte as before."""
    assert shard_seed("", KEY, BLOCK) is None
    values = make_values("rows", compressible=True)
    plain, checked = encode(values, seed=None), encode(values)
    grid = shard_grid(*values.shape)
    assert len(checked) - len(plain) == 4 * grid.padded_rows
    assert frames(plain, grid)[0][0] == 0
    for data, seed in ((plain, SEED), (checked, None)):
        with pytest.raises(FormatError, match="its chunks do not fill it"):
            open_shard(data, values, seed)


@pytest.mark.parametrize(
    ("columns", "itemsize", "shared"), [(64, 2, True), (127, 2, True), (128, 2, False), (1, 4, True), (64, 4, False)]
)
def test_narrow_rows_share_a_checksum(columns: int, itemsize: int, shared: bool) -> None:
    grid = shard_grid(64, columns)
    assert grid.rows_per_checksum(itemsize) == (grid.chunk_rows if shared else 1)


@pytest.mark.parametrize("seed", [None, SEED], ids=["unchecked", "checked"])
def test_one_row_reads_a_small_part_of_its_chunk(seed: int | None) -> None:
    """Even where the library puts two rows into one block: 65,536 bytes are the fewest that it takes of LZ4."""
    values = np.random.default_rng(4).integers(0, 9, (32, 16_384)).astype(np.float16)
    shard, sizes = open_shard(encode(values, seed=seed), values, seed), []
    read = shard._source.read

    def count(start: int, stop: int) -> Any:
        sizes.append(stop - start)
        return read(start, stop)

    shard._source.read = count  # type: ignore[method-assign]
    assert shard.row(17).tobytes() == values[17].tobytes()
    assert len(sizes) == 2, "the head of the chunk with its checksums, and the row's block"
    assert sum(sizes) < values.nbytes / 8

import struct

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore.kernels.compaction.api import compact
from actstore.kernels.compaction.rows import CompactedRows
from actstore.store.errors import FormatError
from actstore.store.files.arrays import BlockArray, BlockArraySpec, create_block_array
from actstore.store.files.compression import compression_of
from actstore.store.files.shards import Shard, checksum, encode_shard, shard_seed
from actstore.store.layout import FAST, SMALL, shard_grid, shard_key, token_grid
from actstore.store.storage.folder import Folder
from actstore.store.storage.pieces import FileSource, MemorySource, PartSource

DTYPES = ["float32", "float16", "uint16", "int8"]
FILLS = {"float32": np.nan, "float16": np.nan, "uint16": 0x7FC0, "int8": -128}


def make_values(rows, columns, dtype, kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "constant":
        return np.full((rows, columns), 3, dtype)
    if kind == "incompressible":
        raw = rng.integers(0, 256, (rows, columns * np.dtype(dtype).itemsize), dtype=np.uint8)
        return raw.view(dtype)
    values = (rng.standard_normal((rows, columns)) * 20).astype(dtype)
    if kind == "holes" and np.dtype(dtype).kind == "f":
        values[:, ::3] = np.nan
        values[0] = np.inf
    return values


KINDS = ["random", "constant", "holes", "incompressible"]
shapes = st.tuples(st.integers(1, 200), st.integers(1, 12).map(lambda n: 64 * n))
# 40,000 columns and their neighbours take several chunks a row, 16,448 = 64 · 257 divides badly.
wide = st.tuples(st.integers(1, 40), st.sampled_from([16_384, 16_448, 32_768, 40_000, 39_936]))


COMPRESSIONS = [
    FAST,
    SMALL,
    *(
        compression_of(name, k, is_sparse=sparse)
        for name in ("huffman", "lz4:1", "zstd:3", "none")
        for k, sparse in ((2, 0), (2, 1))
    ),
]
compressions = st.sampled_from(COMPRESSIONS)


@given(st.one_of(shapes, wide), st.sampled_from(DTYPES), st.sampled_from(KINDS), st.integers(0, 9), compressions)
@settings(max_examples=100)
def test_every_row_comes_back(shape, dtype, kind, seed, compression):
    values = make_values(*shape, dtype, kind, seed)
    grid = shard_grid(*shape)
    data = encode_shard(values, grid, compression)
    shard = Shard(MemorySource(data), grid, values.dtype, "shard")
    rows = shard.rows()
    assert rows.dtype == values.dtype
    assert rows.tobytes() == values.tobytes()
    for row in {0, shape[0] // 2, shape[0] - 1}:
        assert shard.row(row).tobytes() == values[row].tobytes()


@pytest.mark.parametrize("shape", [(33, 192), (40, 16_448), (3, 40_000)])
def test_rows_that_are_made_when_they_are_read_give_the_same_shard(shape):
    values = make_values(*shape, "float16", "holes")
    values[:, np.arange(shape[1]) % 16 > 0] = 0
    values[:, -5:] = np.nan  # as where no token is
    common = np.where(np.isnan(values[0]), values[0], 0).astype(np.float16)
    rows = CompactedRows(compact(values, common, shape[1] // 8), values.dtype)
    grid, compression = shard_grid(*shape), compression_of("huffman", 2, is_sparse=True)
    assert rows.nbytes < values.nbytes
    assert encode_shard(rows, grid, compression, 7) == encode_shard(values, grid, compression, 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", [FAST, SMALL, *COMPRESSIONS[2:4]], ids=["fast", "small", "split", "whole"])
@pytest.mark.parametrize("shape", [(1, 64), (33, 192), (40, 16_448), (3, 40_000), (200, 64)])
def test_single_rows_are_rows_of_the_whole(shape, compression, kind, dtype):
    values = make_values(*shape, dtype, kind)
    data = MemorySource(encode_shard(values, shard_grid(*shape), compression))
    shard = Shard(data, shard_grid(*shape), values.dtype, "shard")
    assert np.stack([shard.row(row) for row in range(shape[0])]).tobytes() == values.tobytes()


@given(
    rows=st.integers(1, 70),
    columns=st.sampled_from([64, 320, 16_448, 40_000]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    compression=compressions,
    identity=st.sampled_from(["", "8d" * 16]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_zarr_reads_the_same(tmp_path, rows, columns, dtype, kind, compression, identity):
    folder = Folder(tmp_path, read_only=False)
    values = make_values(rows, columns * 3, dtype, kind)
    attributes = {"value_dtype": dtype}
    spec = BlockArraySpec("a/values", rows, columns, values.dtype, FILLS[dtype], "token", attributes, compression)
    create_block_array(folder, spec, n_blocks=3)
    for block in (0, 2):
        part = values[:, block * columns : (block + 1) * columns]
        seed = shard_seed(identity, "a/values", block)
        folder.write(shard_key("a/values", block), encode_shard(part, shard_grid(rows, columns), compression, seed))
    folder.delete(shard_key("a/values", 1))
    array = zarr.open_array(str(tmp_path), path="a/values", mode="r")
    assert array.metadata.dimension_names == ("neuron", "token")
    expected = values.copy()
    expected[:, columns : 2 * columns] = FILLS[dtype]  # a block that is not there never reads as zeros
    np.testing.assert_array_equal(array[...], expected)
    ours = BlockArray(folder, "a/values", identity=identity)
    np.testing.assert_array_equal(ours.shard(2).rows(), values[:, 2 * columns :])


def read_everything(data, grid, dtype):
    shard = Shard(MemorySource(data), grid, dtype, "the shard")
    for row in range(0, grid.rows, 7):
        shard.row(row)
    return shard.rows()


@given(
    shape=st.sampled_from([(1, 64), (33, 128), (40, 16_448)]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    where=st.floats(0, 1, exclude_max=True),
    in_header=st.booleans(),
    flip=st.integers(1, 255),
    compression=compressions,
)
@settings(max_examples=250)
def test_a_flipped_byte_is_an_error_or_found_by_the_checksum(shape, dtype, kind, where, in_header, flip, compression):
    values, grid = make_values(*shape, dtype, kind), shard_grid(*shape)
    data = encode_shard(values, grid, compression)
    # Half of the flips go where a decoder is led astray: the header of a chunk and its table of blocks.
    at = int(where * min(len(data), 80)) if in_header else int(where * len(data))
    damaged = bytearray(data)
    damaged[at] ^= flip
    assert checksum(bytes(damaged)) != checksum(data)
    try:
        read_everything(bytes(damaged), grid, values.dtype)
    except FormatError as error:
        assert str(error).startswith("the shard is damaged: ")  # noqa: PT017 - reading on is as good
        assert "store.verify()" in str(error)  # noqa: PT017


@pytest.mark.parametrize("compression", [FAST, SMALL, *COMPRESSIONS[2:4]], ids=["fast", "small", "split", "whole"])
@pytest.mark.parametrize("kind", ["random", "incompressible"])
def test_every_byte_of_a_chunk_header_may_be_anything(kind, compression):
    values, grid = make_values(33, 192, "float16", kind), shard_grid(33, 192)
    data = encode_shard(values, grid, compression)
    for at in range(24):
        for value in range(0, 256, 3):
            damaged = bytearray(data)
            damaged[at] = value
            try:
                assert read_everything(bytes(damaged), grid, values.dtype).shape == (33, 192)
            except FormatError:
                continue


@pytest.mark.parametrize("offset", [-(2**31), -5, 0, 15, "end", 2**31 - 1])
def test_a_block_outside_its_chunk_is_an_error(offset):
    """One row is decoded alone, from where the chunk's table says that it lies: never from anywhere else in memory."""
    values, grid = make_values(32, 1024, "float32", "random").round(), shard_grid(32, 1024)
    data = bytearray(encode_shard(values, grid, SMALL))
    nbytes, blocksize, cbytes = struct.unpack_from("<III", data, 4)
    assert (nbytes, blocksize) == (32 * 4096, 4096), "a row of the chunk should be a block of its own"
    struct.pack_into("<i", data, 16 + 4 * 2, cbytes if offset == "end" else offset)
    shard = Shard(MemorySource(bytes(data)), grid, values.dtype, "the shard")
    np.testing.assert_array_equal(shard.row(3), values[3])
    with pytest.raises(FormatError, match="a chunk's blocks lie outside it"):
        shard.row(2)


@given(st.floats(0, 1, exclude_max=True), st.sampled_from(KINDS))
@settings(max_examples=60)
def test_a_truncated_shard_is_an_error(share, kind):
    values, grid = make_values(33, 192, "float16", kind), shard_grid(33, 192)
    data = encode_shard(values, grid)
    with pytest.raises(FormatError, match="the shard is damaged"):
        Shard(MemorySource(data[: int(share * len(data))]), grid, values.dtype, "the shard")


def test_a_shard_with_bytes_too_many_is_an_error():
    values, grid = make_values(5, 64, "int8", "random"), shard_grid(5, 64)
    data = encode_shard(values, grid)
    with pytest.raises(FormatError, match="chunks do not fill it"):
        Shard(MemorySource(b"\0" + data), grid, values.dtype, "the shard")


def test_a_shard_of_another_shape_is_an_error():
    values = make_values(33, 192, "float32", "random")
    data = encode_shard(values, shard_grid(33, 192))
    for grid in (shard_grid(33, 256), shard_grid(65, 192), shard_grid(17, 192)):
        with pytest.raises(FormatError):
            Shard(MemorySource(data), grid, values.dtype, "the shard").rows()


@given(st.integers(1, 5000), st.integers(1, 3000))
@settings(max_examples=300)
def test_grids_cover_their_shard(rows, parts):
    grid = shard_grid(rows, 64 * parts)
    assert grid.columns % grid.chunk_columns == 0
    assert grid.chunk_columns <= 16_384
    assert 0 <= grid.padded_rows - rows < grid.chunk_rows <= 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "width"), [(64, 20), (128, 300), (192, 1028), (64, 77)])
@pytest.mark.parametrize("kind", ["random", "incompressible"])
def test_rows_are_put_into_any_order_and_checked_on_the_way(dtype, n_tokens, width, kind, tmp_path):
    """All and some; of chunks that are compressed and that lie as they are, with a checksum per row and per chunk."""
    values, grid = make_values(n_tokens, width, dtype, kind), token_grid(width, n_tokens, np.dtype(dtype).itemsize)
    data = encode_shard(values, grid, FAST, 5)
    (tmp_path / "shard").write_bytes(data)
    (tmp_path / "bundle").write_bytes(b"other" + data + b"more")
    rng = np.random.default_rng(0)
    bundle = PartSource(FileSource(tmp_path / "bundle"), 5, len(data), data[-30:])
    for source in (MemorySource(data), FileSource(tmp_path / "shard"), bundle):
        shard = Shard(source, grid, np.dtype(dtype), "shard", 5, row_name="token")
        for share, column in ((1, 0), (0.3, 4), (0, 8)):
            out = np.zeros((n_tokens + 3, width + 8), dtype)
            target = np.where(rng.random(n_tokens) < share, rng.permutation(len(out))[:n_tokens], -1)
            expected = out.copy()
            expected[target[target >= 0], column : column + width] = values[target >= 0]
            shard.scatter(target, out, column)
            assert out.tobytes() == expected.tobytes()
    for byte in range(0, len(data), max(1, len(data) // 37)):
        damaged = bytearray(data)
        damaged[byte] ^= 4
        (tmp_path / "shard").write_bytes(damaged)
        said = []
        for source in (MemorySource(bytes(damaged)), FileSource(tmp_path / "shard")):
            out = np.zeros((n_tokens, width), dtype)
            try:  # what decides nothing of a value, such as a frame's own flags, may be changed without being seen
                Shard(source, grid, np.dtype(dtype), "shard", 5).scatter(np.arange(n_tokens), out, 0)
            except FormatError as error:
                said.append(str(error))
                continue
            said.append("")
            assert out.tobytes() == values.tobytes()
        assert said[0] == said[1]


@pytest.mark.parametrize("damage", ["row", "cut"])
def test_a_file_of_copied_and_compressed_chunks_names_the_first_damage(damage, tmp_path):
    values = make_values(1024, 512, "float32", "incompressible")
    values[256:512] = 1.5  # the second of four chunks
    grid, path, target = token_grid(512, 1024, 4), tmp_path / "shard", np.arange(1024)
    data = encode_shard(values, grid, FAST, 5)
    assert grid.grid == (4, 1)
    assert len(data) < 0.8 * values.nbytes
    path.write_bytes(data)
    shard, out = Shard(FileSource(path), grid, values.dtype, "shard", 5, "block 0", "token"), np.zeros_like(values)
    shard.scatter(target, out, 0)
    assert out.tobytes() == values.tobytes()
    at = data.index(values[700].tobytes())
    if damage == "row":
        path.write_bytes(data[: at + 9] + bytes([data[at + 9] ^ 1]) + data[at + 10 :])
    else:
        path.write_bytes(data[:at])
    opened = FileSource(path)
    opened.nbytes = len(data)
    shard._source = opened
    expected = (
        "block 0, token 700: checksum mismatch in shard" if damage == "row" else "block 0: shard is damaged: it ends at"
    )
    with pytest.raises(FormatError, match=expected):
        shard.scatter(target, out, 0)
    target[700:] = -1  # nobody asks for the damaged row
    target[512:700] = -1
    shard.scatter(target, out, 0)


def test_rows_are_put_only_where_they_have_room():
    values, grid = make_values(64, 20, "float32", "random"), token_grid(20, 64, 4)
    shard = Shard(MemorySource(encode_shard(values, grid)), grid, np.dtype("float32"), "shard")
    out, target = np.zeros((64, 24), "float32"), np.arange(64)
    for arguments in (
        (target + 1, out, 0), (target - 2, out, 0), (target[1:], out, 0), (target, out, 5), (target, out, -1),
        (target, out.astype("float16"), 0), (target, out[:, ::-1], 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"go into|there is one target"):
            shard.scatter(*arguments)

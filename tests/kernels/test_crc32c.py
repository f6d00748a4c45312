from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from actstore.kernels.crc32c import api, cpu, naive


def test_naive_is_the_checksum_of_the_standard() -> None:
    assert naive.extend(0, b"123456789") == 0xE3069283  # RFC 3720, B.4, has the same polynomial's
    assert naive.extend(naive.extend(0, b"1234"), b"56789") == 0xE3069283


@pytest.mark.parametrize("n", [0, 1, 7, 8, 63, 100, 4095, 4096, 4099, 100_001])
def test_a_file_has_the_same_checksum_in_pieces_of_any_length(n: int) -> None:
    data = np.random.default_rng(n).integers(0, 256, n, np.uint8).tobytes()
    expected = naive.extend(7, data) if n < 200 else google_crc32c.extend(7, data)
    assert api.extend(7, data) == api.extend(7, memoryview(data)) == expected
    if cpu.has_instruction():
        assert cpu.extend(np.uint32(7), np.frombuffer(data, np.uint8)) == expected


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (3, 64), (4, 1000), (5, 1003), (32, 16_384)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_rows_have_the_checksums_of_their_bytes(n_rows: int, n_columns: int, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    chunk = rng.integers(0, 256, (n_rows, n_columns * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    starts = rng.integers(0, 1 << 32, n_rows, np.uint32)
    expected = [google_crc32c.extend(int(start), row.tobytes()) for start, row in zip(starts, chunk, strict=True)]
    assert api.row_checksums(chunk, starts).tolist() == expected


def test_without_the_instruction_the_library_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    chunk, starts = rng.integers(0, 256, (6, 5000), np.uint8), rng.integers(0, 1 << 32, 6, np.uint32)
    expected = api.row_checksums(chunk, starts).tolist(), api.extend(3, chunk.tobytes())
    monkeypatch.setattr(api, "_has_instruction", False)
    assert (api.row_checksums(chunk, starts).tolist(), api.extend(3, chunk.tobytes())) == expected
    assert api.extend(3, memoryview(chunk.tobytes())) == expected[1]


def test_rows_that_are_not_contiguous_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous rows, with one start for each"):
        api.row_checksums(np.zeros((4, 10), np.uint8)[:, ::2], np.zeros(4, np.uint32))
    with pytest.raises(ValueError, match="contiguous rows, with one start for each"):
        api.row_checksums(np.zeros((4, 10), np.uint8), np.zeros(3, np.uint32))


def aligned(shape: tuple[int, int], dtype: type[np.generic]) -> np.ndarray:
    """Of sevens, from a line of the memory on."""
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    memory = np.full(nbytes + 64, 7, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:nbytes].view(dtype).reshape(shape)


@pytest.mark.parametrize("n_columns", [0, 1, 4, 63, 100, 1536])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("n_rows", [1, 3, 63, 100])
@pytest.mark.parametrize("has_instruction", [True, False])
def test_scattered_rows_are_in_their_places_and_wrong_ones_are_named(
    n_rows: int, n_columns: int, dtype: type[np.generic], has_instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the rows, into another order, from a column on, by words and by lines; what lies around stays."""
    if not has_instruction:
        monkeypatch.setattr(api, "_has_instruction", False)
    rng = np.random.default_rng(n_columns)
    chunk = rng.integers(0, 256, (n_rows, n_columns * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    wanted = np.sort(rng.permutation(n_rows)[: -(-2 * n_rows // 3)])
    starts = rng.integers(0, 1 << 32, n_rows, np.uint32)
    pairs = zip(starts.tolist(), chunk, strict=True)
    table = np.array([google_crc32c.extend(start, row.tobytes()) for start, row in pairs], np.uint32)
    for column, more in ((0, 0), (0, 128), (3, 16), (8, 16), (64, 128)):
        out = aligned((n_rows + 5, n_columns + more), dtype)
        target = np.full(n_rows, -1)
        target[wanted] = rng.permutation(len(out))[: len(wanted)]
        expected = out.copy()
        expected[target[wanted], column : column + n_columns] = chunk[wanted]
        assert api.scatter_rows(chunk, target, starts, table, out, column) is None
        assert out.tobytes() == expected.tobytes()
        wrong = table.copy()
        wrong[wanted[-1:]] ^= 1
        wrong[target < 0] ^= 1  # which nobody asks for
        assert api.scatter_rows(chunk, target, starts, wrong, out, column) == wanted[-1]
        wrong[wanted[0]] = table[wanted[0]] ^ 4
        assert api.scatter_rows(chunk, target, starts, wrong, out, column) == wanted[0]


def test_scattered_rows_stay_within_what_there_is() -> None:
    chunk, numbers = np.zeros((4, 16), np.uint8), np.zeros(4, np.uint32)
    for target, column, out, message in (
        ([0, 4, 1, 2], 0, (4, 16), "below 4, or -1, found 4"),
        ([0], 1, (4, 16), r"column 1 do not go into \[4, 16\]"),
        ([0], -1, (4, 32), r"column -1 do not go into"),
        ([0, 1, 2, 3, -1], 0, (4, 16), "5 targets, of rows of"),
    ):
        with pytest.raises(ValueError, match=message):
            api.scatter_rows(chunk, np.array(target), numbers, numbers, np.zeros(out, np.uint8), column)
    with pytest.raises(ValueError, match="contiguous arrays of one dtype"):
        api.scatter_rows(chunk, np.zeros(4, int), numbers, numbers, np.zeros((4, 16), np.int16), 0)
    with pytest.raises(ValueError, match="contiguous arrays of one dtype"):
        api.scatter_rows(chunk, np.zeros(4, int), numbers, numbers, np.zeros((4, 32), np.uint8)[:, ::2], 0)


HEIGHT = 5


def write_frames(path: Path, chunks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A file of chunks [band, row, column] as they are, each in a Blosc frame behind its checksums; where each begins."""
    data, offsets = b"", []
    for chunk, of_chunk in zip(chunks, starts.reshape(-1, HEIGHT), strict=True):
        data += b"other"
        offsets.append(len(data))
        data += api.row_checksums(chunk, of_chunk).tobytes() + blosc.compress(chunk, b"lz4", 0, 0)
    path.write_bytes(data)
    return np.array(offsets)


@pytest.mark.skipif(
    not api._reads_files, reason="files are read by a compiled loop where the processor has the instruction"
)
@pytest.mark.parametrize(("n_columns", "column", "more"), [(64, 0, 0), (64, 64, 64), (20, 4, 12)])
def test_chunks_are_scattered_from_a_file(tmp_path: Path, n_columns: int, column: int, more: int) -> None:
    rng = np.random.default_rng(3)
    chunks = rng.integers(0, 256, (4, HEIGHT, 2 * n_columns), np.uint8).view(np.float16)
    starts = rng.integers(0, 1 << 32, 4 * HEIGHT, np.uint32)
    offsets, bands = write_frames(tmp_path / "file", chunks, starts), np.array([0, 2, 3])
    target = rng.permutation(30)[: 4 * HEIGHT]
    target[[1, 11]] = -1
    row = (np.dtype(np.float16), n_columns)
    wanted = np.array([band * HEIGHT + r for band in bands for r in range(HEIGHT) if target[band * HEIGHT + r] >= 0])

    def scattered(more_starts: int = 0) -> tuple[tuple[int, int | None], np.ndarray]:
        out = aligned((30, n_columns + more), np.float16)
        with (tmp_path / "file").open("rb") as file:
            found = api.scatter_file(
                file.fileno(), offsets[bands], bands, HEIGHT, row, target, starts, out, column + more_starts
            )
        return found, out

    expected = aligned((30, n_columns + more), np.float16)
    expected[target[wanted], column : column + n_columns] = chunks.reshape(-1, n_columns)[wanted]
    found, out = scattered()
    assert (found, out.tobytes()) == ((3, None), expected.tobytes())
    untouched = aligned((30, n_columns + more), np.float16).tobytes()
    found, out = scattered(more + 1)  # no such column
    assert (found, out.tobytes()) == ((0, None), untouched)
    data = (tmp_path / "file").read_bytes()
    head = 4 * HEIGHT
    for at, answer in (
        (offsets[2] + head + 16 + 3 * 2 * n_columns, (1, 3)),  # a value of row 3
        (offsets[3] + head + 2, (2, None)),  # the flags, the sizes and the size of the frame, of what is no such chunk
        (offsets[0] + head + 4, (0, None)),
        (offsets[0] + head + 12, (0, None)),
        (offsets[3] + 4, (2, 1)),  # the checksum of row 1
        (offsets[0] + 4, (3, None)),  # of a row that is not wanted
    ):
        (tmp_path / "file").write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        assert scattered()[0] == answer, at
    (tmp_path / "file").write_bytes(data[:-1])
    assert scattered()[0] == (2, None)

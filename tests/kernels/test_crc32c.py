import google_crc32c
import numpy as np
import pytest

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


@pytest.mark.parametrize("n_columns", [0, 1, 4, 63, 100, 1536])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("n_rows", [1, 3, 63, 100])
def test_copied_rows_are_in_their_places_with_their_checksums(
    n_rows: int, n_columns: int, dtype: type[np.generic]
) -> None:
    """Some of the rows, into another order, from a column on; what lies around stays."""
    rng = np.random.default_rng(n_columns)
    chunk = rng.integers(0, 256, (n_rows, n_columns * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    rows = rng.permutation(n_rows)[: -(-2 * n_rows // 3)]
    for column in (0, 3, 8):
        out = np.full((n_rows + 5, n_columns + 16), 7, dtype)
        targets = rng.permutation(len(out))[: len(rows)]
        starts = rng.integers(0, 1 << 32, len(rows), np.uint32)
        expected = out.copy()
        expected[targets, column : column + n_columns] = chunk[rows]
        found = api.copy_rows(chunk, rows, starts, out, targets * out.strides[0] + column * out.itemsize)
        assert out.tobytes() == expected.tobytes()
        assert found.tolist() == [
            google_crc32c.extend(int(start), chunk[row].tobytes()) for start, row in zip(starts, rows, strict=True)
        ]


def test_copied_rows_stay_within_what_there_is() -> None:
    chunk, out, one = np.zeros((4, 16), np.uint8), np.zeros((4, 16), np.uint8), np.zeros(1, np.uint32)
    for rows, places, message in (
        ([4], [0], "rows are those of 4, found 4 to 4"),
        ([-1], [0], "rows are those of 4, found -1"),
        ([0], [49], "from 49 to 49 on lie outside of 64"),
        ([0], [-8], "from -8 to -8 on lie outside of 64"),
        ([0, 1], [0, 16], "with one start and one place for each"),
    ):
        with pytest.raises(ValueError, match=message):
            api.copy_rows(chunk, np.array(rows), one, out, np.array(places))

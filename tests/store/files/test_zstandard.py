from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd

from actstore.store.files.zstandard import declared_nbytes, decompress


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 1000, 65_535, 65_536, 65_791, 65_792, 1 << 20])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_frame_says_what_it_becomes(n: int, checksum: bool) -> None:
    for data in (bytes(n), np.random.default_rng(0).bytes(n)):
        frame = bytes(Zstd(level=1, checksum=checksum).encode(data))
        assert declared_nbytes(frame) == n
        assert decompress(frame, n) == data
        with pytest.raises(ValueError, match=f"decompresses to {n:,} bytes, expected {n - 1:,} at most"):
            decompress(frame, n - 1)


def test_a_frame_that_says_terabytes_is_not_decompressed() -> None:
    frame = bytes(Zstd().encode(bytes(100_000)))
    huge = frame[:4] + b"\xe0" + struct.pack("<Q", 1 << 42) + frame[9:]
    with pytest.raises(ValueError, match=r"4,398,046,511,104 bytes, expected 1,000 at most"):
        decompress(huge, 1000)


def test_a_frame_that_becomes_more_than_it_says_is_refused() -> None:
    frame = bytearray(Zstd().encode(bytes(100_000)))
    at = bytes(frame).index(struct.pack("<I", 100_000))
    frame[at : at + 4] = struct.pack("<I", 1000)
    with pytest.raises(ValueError, match="Zstd decompression error"):
        decompress(bytes(frame), 1 << 20)


@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_refused_or_decompressed(data: bytes, is_frame: bool) -> None:
    try:
        assert len(decompress((b"\x28\xb5\x2f\xfd" if is_frame else b"") + data, 1 << 16)) <= 1 << 16
    except ValueError as error:
        assert str(error)  # noqa: PT017 - few of them are frames

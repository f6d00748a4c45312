"""How a capture is compressed changes its bytes and nothing that is read from it; who resumes it finds it in the record."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from actstore.engine.capture.api import capture
from actstore.engine.capture.run import RunOptions
from actstore.store import layout
from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.compression import check_compression, compression_of
from actstore.store.layout import FAST
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 300, "block_tokens": 192}


@pytest.fixture(scope="module")
def plain(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    for precision in ("exact", "int8", "sparse"):
        capture(str(tiny_model), corpus, folder / precision, precision=precision, **SETTINGS)
    return {precision: folder / precision for precision in ("exact", "int8", "sparse")}


@pytest.mark.parametrize("precision", ["exact", "int8", "sparse"])
@pytest.mark.parametrize("compression", ["none", "lz4:9", "zstd"])
def test_values_and_identity_do_not_depend_on_it(
    tiny_model: Path, corpus: Path, tmp_path: Path, plain: dict[str, Path], precision: str, compression: str
) -> None:
    done = capture(str(tiny_model), corpus, tmp_path / "s", precision=precision, compression=compression, **SETTINGS)
    other = Store(plain[precision]).capture()
    assert (done.record.compression, other.record.compression) == (
        compression,
        "lz4:5" if precision == "exact" else "huffman",
    )
    assert done.record.identity == other.record.identity
    assert "compression" not in done.record.settings
    spec, codec = next(block_arrays(done.record)), compression.partition(":")[0]
    written = zarr.open_array(tmp_path / "s" / spec.key, mode="r")
    metadata = written.metadata.to_dict()["codecs"][0]["configuration"]["codecs"][1]["configuration"]
    assert metadata["cname"] == {"none": "lz4"}.get(codec, codec)
    assert metadata["clevel"] == {"none": 0, "lz4:9": 9, "zstd": 1}[compression]
    for layer in done.record.layers("mlp.post"):
        for block in done.blocks:
            expected = other.raw_block(layer, block)
            assert done.raw_block(layer, block).tobytes() == expected.tobytes()
        key = layout.values_key("corpus", "mlp.post", layer)
        for store in (tmp_path / "s", plain[precision]):
            by_zarr = np.asarray(zarr.open_array(store / key, mode="r"))
            np.testing.assert_array_equal(by_zarr[:, : expected.shape[1]], other.raw_block(layer, 0))


def test_a_capture_is_resumed_with_what_it_was_begun_with(
    tiny_model: Path, corpus: Path, tmp_path: Path, plain: dict[str, Path]
) -> None:
    def shards(store: Path) -> dict[str, bytes]:
        return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("c/0/*")}

    store = tmp_path / "s"
    shutil.copytree(plain["int8"], store)
    commits = sorted((store / "captures/corpus/blocks").glob("?.json"))
    commits[-1].unlink()
    resume = RunOptions(resume=True)
    with pytest.raises(InvalidInputError, match="compression is huffman there and zstd now"):
        capture(str(tiny_model), corpus, store, options=resume, compression="zstd")
    capture(str(tiny_model), corpus, store, options=resume, compression="huffman")
    assert shards(store) == shards(plain["int8"])


@pytest.mark.parametrize("text", ["", "lz5", "huffman:3", "none:1", "zstd:0", "zstd:10", "zstd:", "ZSTD"])
def test_what_names_no_compression_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"`compression` is huffman, none, lz4 or zstd.*as in zstd:3: found"):
        check_compression(text)
    with pytest.raises(FormatError, match=r"unknown.*Update actstore"):
        compression_of(text, 1)


def test_signs_have_it_and_scales_do_not(plain: dict[str, Path]) -> None:
    record = Store(plain["int8"]).capture().record
    specs = {spec.dimension: spec.compression for spec in block_arrays(record)}
    assert specs["token"].is_huffman
    assert specs["block"] == FAST
    assert record.gate_sign == () or specs["token_byte"].is_huffman

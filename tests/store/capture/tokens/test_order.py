"""Captures whose values lie token by token: every reader gives what it gives of the other order, plain Zarr included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from planted_stores import WIDTHS

import actstore
from actstore.store.capture.tokens.order import order_of_sites
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files import token_shards
from actstore.store.files.arrays import BlockArray
from actstore.store.files.shards import Shard
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session", params=["exact", "half", "int8", "sparse"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, planting: Callable[..., Any]
) -> Path:
    """A store with the same capture in both orders."""

    def holes(values: np.ndarray, layer: int) -> np.ndarray:
        values[1::3, ::7] = np.nan
        return values

    path = tmp_path_factory.mktemp("orders") / "store"
    for name, order in (("by-neuron", "neuron"), ("by-token", "token")):
        planting(path, name, precision=request.param, order=order, values=holes)
    return path


@pytest.mark.parametrize(
    ("text", "by_token"),
    [
        (None, ["resid.pre", "attn.out"]),
        ("mlp.post=token", ["resid.pre", "attn.out", "mlp.post"]),
        ("attn.out=neuron", ["resid.pre"]),
        ("neuron", []),
        ("neuron,sae.features=token", ["sae.features"]),
        ("token", ["mlp.post", "mlp.gate", "resid.pre", "attn.out", "sae.features"]),
    ],
)
def test_the_stream_lies_token_by_token_unless_told_otherwise(text: str | None, by_token: list[str]) -> None:
    sites = ("mlp.post", "mlp.gate", "resid.pre", "attn.out", "sae.features")
    assert order_of_sites(text, sites) == dict.fromkeys(by_token, "token")


def test_readers_give_the_same(both: Path) -> None:
    store = Store(both)
    ours, theirs = store.capture("by-token"), store.capture("by-neuron")
    assert (ours.record.order, theirs.record.order) == ({"mlp.post": "token"}, {})
    for layer, width in enumerate(WIDTHS):
        for neuron in range(0, width, 7):
            np.testing.assert_array_equal(ours.activations(layer, neuron), theirs.activations(layer, neuron))
            np.testing.assert_array_equal(ours.block_row(layer, neuron, 1), theirs.block_row(layer, neuron, 1))
        values, tokens = np.stack([theirs.activations(layer, i) for i in range(width)]), theirs.slots()
        for i in range(0, len(tokens), 9):
            for capture in (ours, theirs):
                np.testing.assert_array_equal(capture.token_activations(layer, int(tokens[i])), values[:, i])
        for block in ours.blocks:
            for read in ("raw_block", "block_values"):
                found = getattr(ours, read)(layer, block)
                np.testing.assert_array_equal(found, getattr(theirs, read)(layer, block))
                assert found.flags.c_contiguous
    for column in ("mean", "max"):
        assert ours.neurons()[column].to_pylist() == theirs.neurons()[column].to_pylist()


def test_neighbours_of_a_neuron_are_kept_when_its_block_is_read(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes through the neurons of a layer would read all of it for each; and with no room for a second one, does."""
    n_read, rows = 0, Shard.rows

    def counted(self: Shard) -> np.ndarray:
        nonlocal n_read
        n_read += self._grid.columns == WIDTHS[1]
        return rows(self)

    monkeypatch.setattr(Shard, "rows", counted)
    theirs = Store(both).capture("by-neuron")
    for room, per_block in ((token_shards.BAND_NBYTES, 1), (1, WIDTHS[1])):
        monkeypatch.setattr(token_shards, "BAND_NBYTES", room)
        ours, n_read = Store(both).capture("by-token"), 0
        for neuron in (*range(WIDTHS[1] - 1, -1, -1),):
            np.testing.assert_array_equal(ours.activations(1, neuron), theirs.activations(1, neuron))
        assert n_read == per_block * len(ours.blocks)


def test_a_token_that_is_not_there_is_named(both: Path) -> None:
    capture = Store(both).capture("by-token")
    for token, message in ((-1, "Block -1 .* is not committed"), (10**6, "Block 15625 .* is not committed")):
        with pytest.raises(NotFoundError, match=message):
            capture.token_activations(0, token)
    padding = 2 * 64 + int(capture.used_slots[2])
    with pytest.raises(NotFoundError, match=f"Slot {padding} of capture 'by-token' is padding"):
        capture.token_activations(0, padding)


def test_plain_zarr_reads_the_same(both: Path) -> None:
    """[neuron, token] in either order: only how a chunk lies differs."""
    for layer in range(len(WIDTHS)):
        keys = [f"captures/{name}/values/mlp.post/{layer}" for name in ("by-token", "by-neuron")]
        ours, theirs = (zarr.open_array(both / key, mode="r") for key in keys)
        assert ours.metadata.dimension_names == theirs.metadata.dimension_names == ("neuron", "token")  # type: ignore[union-attr]
        np.testing.assert_array_equal(ours[:], theirs[:])
        assert ours.chunks == (WIDTHS[layer], 64)


def test_a_store_with_it_is_verified_and_copied(both: Path, tmp_path: Path) -> None:
    assert actstore.open(both).verify() == []
    actstore.copy(str(both), str(tmp_path / "copy"))
    copy = actstore.open(tmp_path / "copy")
    assert copy.verify() == []
    np.testing.assert_array_equal(
        copy.capture("by-token").block_values(1, 0), Store(both).capture("by-neuron").block_values(1, 0)
    )


@pytest.mark.parametrize("bundled", [False, True])
def test_damage_names_the_token(tmp_path: Path, planting: Callable[..., Any], bundled: bool) -> None:
    """Or, of rows as narrow as these, the tokens of a chunk: one checksum covers them."""
    planting(tmp_path / "store", order="token", bundled=bundled)
    store = actstore.open(tmp_path / "store")
    array = BlockArray(store.folder, "captures/corpus/values/mlp.post/1")
    assert (array.order, array.block_shape, array.grid.chunk_rows) == ("token", (WIDTHS[1], 64), 64)
    key = "bundles/1" if bundled else "values/mlp.post/1/c/0/1"
    path = tmp_path / "store/captures/corpus" / key
    whole = path.read_bytes()
    row = store.capture().raw_block(1, 1)[:, 5].tobytes()
    at = whole.index(row)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(FormatError, match=r"layer 1 \(mlp\.post\), block 1, tokens 0 to 63: checksum mismatch"):
        actstore.open(tmp_path / "store").capture().block_values(1, 1)
    damaged = actstore.open(tmp_path / "store").verify()
    assert [(one.capture, one.block) for one in damaged] == [("corpus", 1)]


def test_a_record_that_says_another_order_than_the_array_is_damage(
    tmp_path: Path, planting: Callable[..., Any]
) -> None:
    planting(tmp_path / "by-token", order="token")
    planting(tmp_path / "by-neuron")
    key = "captures/corpus/values/mlp.post/1/zarr.json"
    (tmp_path / "by-token" / key).write_bytes((tmp_path / "by-neuron" / key).read_bytes())
    with pytest.raises(FormatError, match="neuron by neuron, expected 40 × 64 float32, token by token"):
        actstore.open(tmp_path / "by-token").capture().activations(1, 0)
    (damage,) = actstore.open(tmp_path / "by-token").verify()
    assert "expected 40 × 64 float32, token by token" in damage.what

"""In which order a capture lies on disk changes its bytes and nothing that is read from it, by site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import actstore
from actstore.engine.capture.api import capture
from actstore.engine.capture.run import RunOptions
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

SITES = ("mlp.post", "resid.post")
SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 300, "block_tokens": 192, "sites": SITES}


@pytest.fixture(scope="module")
def plain(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("plain") / "store"
    for precision in ("exact", "int8"):
        capture(str(tiny_model), corpus, path, name=precision, precision=precision, order="neuron", **SETTINGS)
    return Store(path)


@pytest.mark.parametrize(
    ("precision", "bundle", "order"),
    [("exact", False, "neuron, resid.post=token"), ("int8", True, None)],
    ids=["named", "default"],
)
def test_values_are_the_same_and_resumed_repaired_and_recomputed(
    tiny_model: Path, corpus: Path, tmp_path: Path, plain: Store, precision: str, bundle: bool, order: str | None
) -> None:
    """The residual stream lies token by token; a resumed capture, and a repaired one, have the bytes of the first."""
    store = tmp_path / "store"
    begin = {"precision": precision, "bundle": bundle, **SETTINGS}
    done = capture(str(tiny_model), corpus, store, order=order, **begin)
    other = plain.capture(precision)
    assert (done.record.order, other.record.order) == ({"resid.post": "token"}, {})
    assert "order" not in done.record.settings
    for site in SITES:
        for layer in done.record.layers(site):
            for block in done.blocks:
                np.testing.assert_array_equal(done.raw_block(layer, block, site), other.raw_block(layer, block, site))
            np.testing.assert_array_equal(done.activations(layer, 3, site), other.activations(layer, 3, site))
    assert actstore.open(store).verify(refill=1, model=str(tiny_model)) == []

    blocks = store / "captures/corpus" / ("bundles" if bundle else "values/resid.post/1/c/0")
    whole = {path.name: path.read_bytes() for path in blocks.iterdir()}
    (store / "captures/corpus/blocks/1.json").unlink()
    resume = RunOptions(resume=True)
    with pytest.raises(InvalidInputError, match=r"order is resid\.post=token there and token now"):
        capture(str(tiny_model), corpus, store, options=resume, order="token", **begin)
    capture(str(tiny_model), corpus, store, options=resume, **begin)
    assert {path.name: path.read_bytes() for path in blocks.iterdir()} == whole

    (blocks / "0").write_bytes(whole["0"][:-1])
    report = actstore.open(store).repair(model=str(tiny_model))
    assert actstore.open(store).verify() == [], report
    assert (blocks / "0").read_bytes() == whole["0"]


def test_what_names_no_order_is_refused(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    for order in ("", "tokens", "attn.out=token", "resid.post=", "token,"):
        with pytest.raises(InvalidInputError, match=r"`order` is neuron or token, or of one site SITE=token.*: found"):
            capture(str(tiny_model), corpus, tmp_path / "store", order=order, **SETTINGS)
    assert not (tmp_path / "store").exists()

"""Windows that share prefixes: every prefix is read once, with the results of a pass over whole windows."""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.capture.block_filler import BlockFiller
from actstore.engine.capture.buffers import BufferPool, staged_arrays
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.graphs.probes import prefixes, stepping
from actstore.engine.graphs.probes.plan import ProbeSettings
from actstore.engine.graphs.probes.prefixes import PrefixFiller, prefix_tree
from actstore.engine.graphs.probes.rounds import probe
from actstore.engine.graphs.probes.stepping import Steps, hook_points_of, keeps_everything, narrow_attention
from actstore.engine.models.load import load_model
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.models.load import LoadedModel
    from actstore.store.reader import Capture
    from tests.engine.conftest import Captured  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def masked(captured: Captured, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """A capture of masked windows, many of which share a prefix."""
    folder = tmp_path_factory.mktemp("masked") / "store"
    shutil.copytree(captured().folder.location, folder)
    settings = ProbeSettings(n_exemplars=6, n_substitutes=0)
    probe(str(tiny_model), folder, neurons=[(0, 3), (1, 0)], settings=settings, precision="exact")
    return Store(folder).capture("probes-mask")


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12))
def test_a_tree_has_every_beginning_once(windows: list[list[int]]) -> None:
    flat = np.array(list(itertools.chain.from_iterable(windows)), np.int32)
    tree = prefix_tree(flat, np.array([len(w) for w in windows]))
    beginnings = [tuple(w[: i + 1]) for w in windows for i in range(len(w))]
    assert tree.n_nodes == len(set(beginnings))
    spelled: list[tuple[int, ...]] = []
    before: list[tuple[int, ...]] = [()]
    for ids, parents in zip(tree.ids, tree.parents, strict=True):
        before = [(*before[parent], token) for token, parent in zip(ids.tolist(), parents.tolist(), strict=True)]
        spelled += before
    assert [spelled[node] for node in tree.nodes.tolist()] == beginnings


def fill(filler: BlockFiller | PrefixFiller, capture: Capture) -> list[dict[str, np.ndarray]]:
    plans = (capture.plan.block(block) for block in capture.blocks)
    blocks = []
    for filled in filler.fill(plans, CaptureProgress()):
        blocks.append({key: array.copy() for key, array in filled.arrays.items()})
        filled.release()
    return blocks


@pytest.mark.parametrize("too_large", [False, True])
def test_a_block_read_as_a_tree_is_what_whole_windows_give(
    model: LoadedModel, masked: Capture, monkeypatch: pytest.MonkeyPatch, too_large: bool
) -> None:
    if too_large:
        monkeypatch.setattr(prefixes, "LARGEST", 1)
    record = masked.record
    assert PrefixFiller.fits(model, record)

    def buffers() -> BufferPool[dict[str, np.ndarray]]:
        return BufferPool(lambda: {k: np.full(shape, 77, dtype) for k, shape, dtype in staged_arrays(record)}, 1)

    whole = fill(BlockFiller(model, record, buffers()), masked)
    with narrow_attention(model):
        result = fill(PrefixFiller(model, record, buffers()), masked)
    tree = prefix_tree(masked.plan.block(0).inputs, masked.plan.block(0).windows["n_inputs"])
    assert tree.n_nodes < 0.8 * len(tree.nodes), "there is something to share"
    for one, other in zip(whole, result, strict=True):
        for key in one:
            np.testing.assert_allclose(other[key], one[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("room", [0, 3, 9])
def test_steps_are_what_one_pass_over_the_windows_gives(model: LoadedModel, room: int) -> None:
    ids = torch.randint(4, 60, (5, 9), generator=torch.Generator().manual_seed(0))
    seen: dict[int, list[torch.Tensor]] = {}
    steps = Steps(model, room, lambda layer, _s, values, _r: seen.setdefault(layer, []).append(values.clone()))
    calls, own = [], stepping.decode_attention

    with narrow_attention(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "decode_attention", lambda *a, **k: calls.append(1) or own(*a, **k))
        assert model.model.config._attn_implementation == stepping.ATTENTION
        steps.step(ids[:, :2])
        for position in range(2, 8):
            logits = steps.step(ids[:, position : position + 1])
        rows = torch.tensor([3, 3, 0])
        again = steps.step(ids[rows, 8:9], rows)
    assert calls, "the narrow kernel was used"
    assert model.model.config._attn_implementation == "sdpa"
    with torch.inference_mode():
        expected = model.model(ids).logits
    torch.testing.assert_close(logits, expected[:, 7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, expected[rows, 8], atol=1e-4, rtol=1e-4)
    whole: dict[int, torch.Tensor] = {}
    model.forward(ids, sink=lambda layer, _s, values, _r: whole.update({layer: values.clone()}))
    for layer, values in whole.items():
        torch.testing.assert_close(seen[layer][3], values.reshape(5, 9, -1)[:, 4], atol=1e-5, rtol=1e-4)


def test_a_model_in_half_precision_keeps_the_librarys_attention(tiny_model: Path) -> None:
    half = load_model(tiny_model, device="cpu", dtype="bfloat16")
    with narrow_attention(half):
        assert half.model.config._attn_implementation == "sdpa"
    assert keeps_everything(half)
    assert hook_points_of(half) is not None

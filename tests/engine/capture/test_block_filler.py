"""What ends up in a store, against what hooks of one's own see over the same batches."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from actstore.engine.capture.api import RunOptions
from actstore.engine.capture.api import capture as run_capture
from actstore.engine.capture.block_filler import batches_of
from actstore.engine.capture.packing import HostPacker, routed_columns
from actstore.engine.models.names import SITES
from actstore.kernels.pack.api import Columns
from actstore.kernels.pack.statistics import HISTOGRAM_EDGES
from actstore.store import layout
from actstore.store.capture.writer import CaptureWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.reader import Capture


@pytest.fixture(scope="module")
def plain(
    captured: Any, plain_run: Callable[[Capture], dict[tuple[str, int], Tensor]]
) -> dict[tuple[str, int], Tensor]:
    """Plain hooks over the plan that every capture with default settings has."""
    return plain_run(captured())


def bits(values: Tensor) -> NDArray[Any]:
    """Values as unsigned integers, so that equality is equality of bits; shape [neuron, slot]."""
    integers = {4: torch.int32, 2: torch.int16}[values.element_size()]
    return values.T.contiguous().view(integers).numpy()


def stored_bits(capture: Capture, layer: int, site: str = "mlp.post") -> NDArray[Any]:
    """Everything stored of a layer, as bits; shape [neuron, slot]."""
    raw = np.concatenate([capture.raw_block(layer, block, site) for block in capture.blocks], axis=1)
    return raw.view({4: np.int32, 2: np.int16, 1: np.int8}[raw.dtype.itemsize])


def used_slots(capture: Capture) -> NDArray[np.bool_]:
    used: NDArray[np.bool_] = capture.plan.array("tokens/modality") != layout.PADDING
    return used


def counted_slots(capture: Capture) -> NDArray[np.bool_]:
    modality = capture.plan.array("tokens/modality")
    counted: NDArray[np.bool_] = (modality != layout.PADDING) & (modality != layout.SPECIAL)
    return counted


def test_the_plan_under_test_has_all_that_can_go_wrong(captured: Any) -> None:
    capture = captured()
    windows = capture.plan.table("windows")
    assert capture.record.plan.n_blocks >= 3
    assert len(set(windows["n_inputs"].to_pylist())) > 5, "windows of different lengths"
    padded = [b.attention_mask is not None for i in capture.blocks for b in batches_of(capture.plan.block(i), 3, 256)]
    assert any(padded)
    assert not all(padded)
    assert (~used_slots(capture)).any()
    assert (capture.plan.array("tokens/modality") == layout.SPECIAL).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_is_a_plain_hooks_values_bit_for_bit(captured: Any, plain_run: Any, dtype: str) -> None:
    capture = captured(dtype=dtype)
    assert capture.record.value_dtype == dtype
    expected, used = plain_run(capture), used_slots(capture)
    for layer in (0, 1):
        np.testing.assert_array_equal(
            stored_bits(capture, layer)[:, used], bits(expected["mlp.post", layer])[:, used], strict=True
        )
        values = np.concatenate([capture.block_values(layer, block) for block in capture.blocks], axis=1)
        assert np.isnan(values[:, ~used]).all(), "padding slots hold no value"
        np.testing.assert_array_equal(values[:, used], expected["mlp.post", layer].float().T.numpy()[:, used])


def test_every_site_is_what_a_plain_hook_sees_there(captured: Any, plain: dict[tuple[str, int], Tensor]) -> None:
    capture = captured(sites=tuple(SITES))
    used = used_slots(capture)
    for site in SITES:
        for layer in (0, 1):
            np.testing.assert_array_equal(
                stored_bits(capture, layer, site)[:, used],
                bits(plain[site, layer])[:, used],
                f"{site} of layer {layer}",
            )


def test_half_is_each_value_rounded_to_float16(captured: Any, plain: dict[tuple[str, int], Tensor]) -> None:
    capture = captured(precision="half")
    used = used_slots(capture)
    for layer in (0, 1):
        np.testing.assert_array_equal(
            stored_bits(capture, layer)[:, used], bits(plain["mlp.post", layer].half())[:, used]
        )


def test_int8_is_within_half_of_the_recorded_step_everywhere(
    captured: Any, plain: dict[tuple[str, int], Tensor]
) -> None:
    capture = captured(precision="int8")
    slots, used = capture.record.plan.block_slots, used_slots(capture)
    for layer in (0, 1):
        for block in capture.blocks:
            here = np.arange(block * slots, (block + 1) * slots)[used[block * slots : (block + 1) * slots]]
            exact = plain["mlp.post", layer].numpy()[here].T
            stored = capture.block_values(layer, block)[:, : len(here)]
            scale = capture.block_parameter("scale", layer, block)[:, None]
            assert (np.abs(exact - stored) <= scale / 2).all()
            # The bound is worth something: the step is no larger than it must be.
            np.testing.assert_allclose(scale[:, 0], np.abs(exact).max(axis=1) / 127, rtol=1e-4)
            assert np.isnan(capture.block_values(layer, block)[:, len(here) :]).all()


def test_sparse_loses_only_what_it_says(captured: Any, plain: dict[tuple[str, int], Tensor]) -> None:
    capture = captured(precision="sparse", keep=0.1)
    slots, used = capture.record.plan.block_slots, used_slots(capture)
    for layer in (0, 1):
        for block in capture.blocks:
            here = np.arange(block * slots, (block + 1) * slots)[used[block * slots : (block + 1) * slots]]
            exact = np.ascontiguousarray(plain["mlp.post", layer].numpy()[here].T)
            stored = np.ascontiguousarray(capture.raw_block(layer, block)[:, : len(here)])
            threshold = capture.block_parameter("threshold", layer, block)[:, None]
            dropped = np.abs(exact) <= threshold
            np.testing.assert_array_equal(stored.view(np.int32)[~dropped], exact.view(np.int32)[~dropped])
            assert (stored.view(np.int32)[dropped] == 0).all()
            np.testing.assert_array_equal(
                capture.block_parameter("dropped", layer, block), (dropped & (exact != 0)).sum(axis=1)
            )
            n_kept, n_ties = (~dropped).sum(axis=1), (np.abs(exact) == threshold).sum(axis=1)
            assert (n_kept <= np.ceil(0.1 * len(here))).all()
            assert (n_kept + n_ties > 0.1 * len(here)).all(), "no more is dropped than must be"


@pytest.mark.parametrize("settings", [{"precision": "none"}, {"precision": "half"}, {"precision": "int8"}])
def test_statistics_do_not_depend_on_the_precision(captured: Any, settings: dict[str, Any]) -> None:
    exact, other = captured().statistics(), captured(**settings).statistics()
    for key, statistics in exact.sites.items():
        for name, array in statistics.arrays().items():
            np.testing.assert_array_equal(array, other.sites[key].arrays()[name], name)


def test_statistics_only_stores_no_value(captured: Any) -> None:
    capture = captured(precision="none")
    assert not [key for key, _ in capture.folder.sizes() if "/values/" in key]


def test_gate_signs_are_the_signs_of_a_plain_gate(captured: Any, plain: dict[tuple[str, int], Tensor]) -> None:
    capture, used = captured(), used_slots(captured())
    for layer in (0, 1):
        signs = np.concatenate([capture.gate_signs(layer, block) for block in capture.blocks], axis=1)
        np.testing.assert_array_equal(signs[:, used], (plain["mlp.gate", layer] > 0).numpy().T[:, used])
        assert not signs[:, ~used].any()


def test_statistics_are_numpys_over_the_counted_tokens(captured: Any, plain: dict[tuple[str, int], Tensor]) -> None:
    capture = captured()
    counted, statistics = counted_slots(capture), capture.statistics()
    labels = label_of_slots(capture)
    for layer in (0, 1):
        values = plain["mlp.post", layer].numpy()[counted].T.astype(np.float64)
        found = statistics.sites["mlp.post", layer]
        assert set(found.count.tolist()) == {int(counted.sum())}
        assert not found.non_finite.any()
        np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.m2 / found.count, values.var(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(found.minimum, values.min(axis=1).astype(np.float32))
        np.testing.assert_array_equal(found.maximum, values.max(axis=1).astype(np.float32))
        for neuron in range(24):
            histogram = np.histogram(values[neuron], HISTOGRAM_EDGES.astype(np.float64))[0]
            np.testing.assert_array_equal(found.histogram[neuron], histogram)
        gates = plain["mlp.gate", layer].numpy()[counted].T > 0
        for label in range(len(capture.record.plan.labels)):
            here = labels[counted] == label
            np.testing.assert_array_equal(found.positives[label], (values[:, here] > 0).sum(axis=1))
            np.testing.assert_array_equal(statistics.gate_positives[layer][label], gates[:, here].sum(axis=1))
            assert statistics.label_tokens[label] == here.sum()
        np.testing.assert_array_equal(found.positives[-1], (values > 0).sum(axis=1))
        np.testing.assert_array_equal(statistics.gate_positives[layer][-1], gates.sum(axis=1))
    assert statistics.label_tokens[-1] == counted.sum()


def label_of_slots(capture: Capture) -> NDArray[np.int64]:
    """The label of each slot's document by way of the documents table, -1 in padding."""
    window, windows = capture.plan.array("tokens/window"), capture.plan.table("windows")
    languages = np.array(capture.documents()["language"].to_pylist())
    document = windows["document"].to_numpy()[window]
    ids = {value: i for i, (_, value) in enumerate(capture.record.plan.labels)}
    return np.where(window < 0, -1, np.array([ids[value] for value in languages])[document])


def test_exemplars_are_the_largest_window_maxima(captured: Any, plain: dict[tuple[str, int], Tensor]) -> None:
    capture = captured(exemplars=5)
    counted, window = counted_slots(capture), capture.plan.array("tokens/window")
    for layer in (0, 1):
        found = capture.statistics().sites["mlp.post", layer]
        for neuron in (0, 7, 23):
            values = np.where(counted, plain["mlp.post", layer].numpy()[:, neuron], -np.inf)
            order = np.lexsort((np.arange(len(values)), -values))
            _, first = np.unique(window[order], return_index=True)
            best = [slot for slot in order[np.sort(first)] if counted[slot]][:5]
            np.testing.assert_array_equal(found.exemplar_tokens[neuron], best)
            np.testing.assert_array_equal(found.exemplar_values[neuron], values[best])


def test_a_subset_of_layers_is_captured_as_in_the_whole(captured: Any) -> None:
    part, whole = captured(layers=(1,)), captured()
    assert part.record.sites == {"mlp.post": {"1": 24}}
    np.testing.assert_array_equal(stored_bits(part, 1), stored_bits(whole, 1))
    for block in part.blocks:
        np.testing.assert_array_equal(part.gate_signs(1, block), whole.gate_signs(1, block))


def test_position_last_stores_one_value_a_window(captured: Any, plain_run: Any) -> None:
    capture = captured(positions="last")
    windows = capture.plan.table("windows").to_pydict()
    assert set(windows["n_slots"]) == {1}
    assert capture.record.plan.n_tokens == len(windows["window"])
    used = used_slots(capture)
    np.testing.assert_array_equal(stored_bits(capture, 1)[:, used], bits(plain_run(capture)["mlp.post", 1])[:, used])


def test_overlap_gives_a_token_the_context_before_it(captured: Any, plain_run: Any) -> None:
    capture = captured(overlap=8)
    used = used_slots(capture)
    np.testing.assert_array_equal(stored_bits(capture, 0)[:, used], bits(plain_run(capture)["mlp.post", 0])[:, used])
    later = capture.plan.array("tokens/position")[used]
    assert capture.record.plan.n_tokens == len(later)


# Experts


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("mixtral")
    config = MixtralConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, bos_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_an_expert_has_values_exactly_where_it_was_routed_to(
    mixtral: Path, corpus: Path, tmp_path: Path, precision: str
) -> None:
    options = RunOptions(memory=400_000)
    capture = run_capture(
        str(mixtral), corpus, tmp_path / "s", options=options, context=32, max_tokens=400, precision=precision
    )
    routed, values = route_plainly(mixtral, capture)
    assert len(capture.store.model.layers) == 8
    used = used_slots(capture)
    for spec in capture.store.model.layers:
        assert spec.expert is not None
        here, value = routed[spec.block, spec.expert], values[spec.block, spec.expert]
        assert 0 < here.sum() < used.sum()
        stored = np.concatenate([capture.block_values(spec.layer, b) for b in capture.blocks], axis=1)
        np.testing.assert_array_equal(~np.isnan(stored), np.broadcast_to(here, stored.shape))
        tolerance = 1e-6 if precision == "exact" else 1e-2
        np.testing.assert_allclose(stored[:, here], value[here].T, rtol=1e-4, atol=tolerance)
        counted = here & counted_slots(capture)
        found = capture.statistics().sites["mlp.post", spec.layer]
        assert set(found.count.tolist()) == {int(counted.sum())}
        np.testing.assert_allclose(found.mean, value[counted].mean(axis=0), rtol=1e-4, atol=1e-7)
        if precision == "exact":
            signs = np.concatenate([capture.gate_signs(spec.layer, b) for b in capture.blocks], axis=1)
            assert not signs[:, ~here].any()
            assert signs[:, here].any()


def route_plainly(
    folder: Path, capture: Capture
) -> tuple[dict[tuple[int, int], NDArray[np.bool_]], dict[tuple[int, int], NDArray[np.float32]]]:
    """(block, expert) → where it was routed to [slot], and its values there [slot, neuron], by its weights alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for i, block in enumerate(model.model.layers):

        def keep(module: Any, args: Any, kwargs: Any, i: int = i) -> None:
            hidden, index = (*args, *kwargs.values())[:2]
            seen[i] = hidden.reshape(-1, hidden.shape[-1]), index

        block.mlp.experts.register_forward_pre_hook(keep, with_kwargs=True)
    n_slots = capture.record.plan.n_blocks * capture.record.plan.block_slots
    keys = [(block, expert) for block in range(2) for expert in range(4)]
    routed = {key: np.zeros(n_slots, bool) for key in keys}
    values = {key: np.zeros((n_slots, 24), np.float32) for key in keys}
    for block in capture.blocks:
        plan = capture.plan.block(block)
        for batch in batches_of(plan, 0, capture.record.plan.block_slots):
            model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            slots = batch.columns.slots + block * capture.record.plan.block_slots
            for i, expert in keys:
                hidden, index = seen[i]
                experts = model.model.layers[i].mlp.experts
                gate, up = (hidden @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
                post = (torch.nn.functional.silu(gate) * up).numpy()
                routed[i, expert][slots] = (index == expert).any(dim=-1).numpy()[batch.columns.rows]
                values[i, expert][slots] = post[batch.columns.rows]
    return routed, values


def test_routed_columns_take_the_kept_tokens_that_were_routed_in_any_order() -> None:
    columns = Columns(
        rows=np.array([1, 2, 5, 6, 7]), slots=np.array([10, 11, 12, 13, 14]), segments=np.array([0, 2, 5]),
        labels=np.array([[0], [1]]), counted=np.array([True, False, True, True, True]), first_token=100,
    )  # fmt: skip
    routed = routed_columns(columns, np.array([7, 0, 2, 5]))
    assert routed.rows.tolist() == [2, 3, 0]
    assert routed.slots.tolist() == [11, 12, 14]
    assert routed.segments.tolist() == [0, 1, 3]
    assert routed.counted.tolist() == [False, True, True]
    nothing = routed_columns(columns, np.empty(0, np.int64))
    assert (len(nothing.rows), nothing.segments.tolist()) == (0, [0, 0, 0])


def test_a_batch_is_padded_on_the_right_and_masked_only_where_padded(captured: Any) -> None:
    capture = captured()
    for block in capture.blocks:
        plan = capture.plan.block(block)
        for batch, where in zip(batches_of(plan, 3, 256), plan.batches(), strict=True):
            lengths = plan.windows["n_inputs"][where]
            assert batch.input_ids.shape == (len(lengths), lengths.max())
            if batch.attention_mask is None:
                assert len(set(lengths.tolist())) == 1
            else:
                np.testing.assert_array_equal(batch.attention_mask.sum(dim=1).numpy(), lengths)
                assert (batch.attention_mask.diff(dim=1) <= 0).all()
                assert not batch.input_ids[batch.attention_mask == 0].any()
            assert (batch.columns.labels[:, -1] == 3).all()


def test_a_blocks_statistics_are_let_go_before_the_next_block_begins(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What adds them up has others, a third of the size."""
    submitted: list[weakref.ref[CaptureStatistics]] = []
    n_alive: list[int] = []
    submit, begin = CaptureWriter.submit, HostPacker.begin

    def noted(writer: CaptureWriter, *arguments: Any) -> None:
        submitted.append(weakref.ref(arguments[2]))
        submit(writer, *arguments)

    def counted(packer: HostPacker, plan: BlockPlan) -> None:
        n_alive.append(sum(reference() is not None for reference in submitted))
        begin(packer, plan)

    monkeypatch.setattr(CaptureWriter, "submit", noted)
    monkeypatch.setattr(HostPacker, "begin", counted)
    run_capture(str(tiny_model), str(corpus), tmp_path / "store", block_tokens=128, max_tokens=512)
    assert len(submitted) > 2
    assert n_alive == [0] * len(submitted)

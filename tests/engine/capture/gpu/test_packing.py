"""Packing on a device against packing on the host: the same forward passes, the same bits.

On a GPU where there is one, else on CPU tensors through Triton's interpreter, where streams are absent and copies plain.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import actstore
from actstore.engine.capture.api import RunOptions
from actstore.engine.capture.api import capture as run_capture
from actstore.engine.capture.block_filler import BlockFiller, batches_of, packer_for
from actstore.engine.capture.buffers import BufferPool, Buffers, staged_arrays
from actstore.engine.capture.packing import HostPacker, routed_columns
from actstore.engine.models.load import load_model
from actstore.kernels.pack.columns import Columns
from actstore.store import layout

DevicePacker = pytest.importorskip("actstore.engine.capture.gpu.packing", exc_type=ImportError).DevicePacker
outgoing = pytest.importorskip("actstore.engine.capture.gpu.outgoing", exc_type=ImportError)
gpu_columns = pytest.importorskip("actstore.kernels.pack.gpu_columns", exc_type=ImportError)
octets_on, routed_on = gpu_columns.octets_on, gpu_columns.routed_on
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.capture.packing import FilledBlock, Packer
    from actstore.engine.models.load import LoadedModel
    from actstore.kernels.pack.statistics import Statistics
    from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
    from actstore.store.files.records import CaptureRecord
    from actstore.store.reader import Capture

N_BLOCKS = 3  # a third is filled into the memory of the first


class Taken:
    """Takes filled blocks as the writer does, which deals with a block while the next one is computed."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.blocks: dict[int, tuple[Buffers, CaptureStatistics]] = {}
        self._last: FilledBlock | None = None

    def take(self, filled: Iterator[FilledBlock]) -> None:
        for block in filled:
            if self._last is not None:
                self._check(self._last)
                self._last.release()
            self._last = block
            arrays = {key: np.array(array) for key, array in block.arrays.items()}
            self.blocks[block.block] = arrays, block.statistics.narrowed()

    def end(self) -> None:
        self.take(self.packer.drain())
        if self._last is not None:
            self._check(self._last)

    def _check(self, block: FilledBlock) -> None:
        """What was taken is still there: the block is written while the next one is filled."""
        arrays, statistics = self.blocks[block.block]
        assert_same_arrays(block.arrays, arrays)
        assert_same_statistics(block.statistics.narrowed(), statistics)


class UndefinedBuffers(BufferPool[Buffers]):
    """Two sets of buffers in which no fill value and no zero is found when they are acquired."""

    def __init__(self, record: CaptureRecord) -> None:
        super().__init__(lambda: {k: np.empty(shape, dtype) for k, shape, dtype in staged_arrays(record)}, 2)

    def acquire(self) -> Buffers:
        buffers = super().acquire()
        for array in buffers.values():
            array.fill(77)
        return buffers


def fill(model: LoadedModel, capture: Capture, packers: list[Packer], n_blocks: int) -> list[Taken]:
    """What every packer makes of the same forward passes over the first `n_blocks` of a capture."""
    record, taken = capture.record, [Taken(packer) for packer in packers]
    sites = [*record.sites, *({"mlp.gate"} - set(record.sites) if record.gate_sign else ())]
    layers = sorted({layer for site in record.sites for layer in record.layers(site)})
    for block in capture.blocks[:n_blocks]:
        plan = capture.plan.block(block)
        for packer in packers:
            packer.begin(plan)
        for batch in batches_of(plan, len(record.plan.labels), record.plan.block_slots):
            for packer in packers:
                packer.batch(batch.columns)

            def sink(layer: int, site: str, values: Tensor, rows: Tensor | None, batch: Any = batch) -> None:
                for packer in packers:
                    packer.pack(layer, site, values, batch.columns, rows)

            model.forward(batch.input_ids, batch.attention_mask, sites=sites, layers=layers, sink=sink)
        for each in taken:
            each.take(each.packer.finish())
    for each in taken:
        each.end()
    return taken


def assert_same_arrays(found: Mapping[str, Any], expected: Buffers) -> None:
    assert found.keys() == expected.keys()
    for key, rows in found.items():
        array = np.asarray(rows)
        assert array.dtype == expected[key].dtype
        assert array.shape == expected[key].shape
        np.testing.assert_array_equal(
            np.ascontiguousarray(array).view(np.uint8), np.ascontiguousarray(expected[key]).view(np.uint8), key
        )


def assert_same_statistics(found: CaptureStatistics, expected: CaptureStatistics) -> None:
    np.testing.assert_array_equal(found.label_tokens, expected.label_tokens, strict=True)
    for layer, positives in found.gate_positives.items():
        np.testing.assert_array_equal(positives, expected.gate_positives[layer], strict=True)
    assert found.sites.keys() == expected.sites.keys()
    for key, statistics in found.sites.items():
        assert_same(statistics, expected.sites[key])


def assert_same(found: Statistics, expected: Statistics) -> None:
    for name, array in found.arrays().items():
        if array.dtype == np.float64:  # a sum, whose order may differ
            np.testing.assert_allclose(array, expected.arrays()[name], rtol=1e-9, atol=1e-15, err_msg=name)
        else:
            np.testing.assert_array_equal(array, expected.arrays()[name], name, strict=True)


def compare(
    capture: Capture,
    model: LoadedModel,
    n_span_slots: int | None = None,
    n_blocks: int = 1,
) -> DevicePacker:
    """The device's packer, after its blocks were found to be the host's; for a span as large as given, or whole blocks."""
    record = capture.record
    experts = {spec.layer for spec in model.spec.layers if spec.expert is not None}
    host = HostPacker(record, UndefinedBuffers(record), experts)
    device = DevicePacker(record, DEVICE, UndefinedBuffers(record))
    if n_span_slots is not None:
        nbytes = sum(shape[0] * shape[1] * dtype.itemsize for _, shape, dtype in staged_arrays(record))
        device._memory = 2 * n_span_slots * nbytes // record.plan.block_slots
    by_host, by_device = fill(model, capture, [host, device], n_blocks)
    assert list(by_device.blocks) == list(by_host.blocks) == list(capture.blocks[:n_blocks])
    for block, (arrays, statistics) in by_device.blocks.items():
        assert_same_arrays(arrays, by_host.blocks[block][0])
        assert_same_statistics(statistics, by_host.blocks[block][1])
    return device


# By folder: an environment may lie in the checkout.
OURS = tuple(f"{Path(actstore.__file__).parent / layer}/" for layer in ("kernels", "store", "engine"))


def called_by_us(name: str, original: Any, calls: list[str]) -> Any:
    """A method of tensors that notes where it is called from, if that is our code; `upload` waits for nothing."""

    def call(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
        caller = sys._getframe(1).f_code
        passes_on = caller.co_name in ("upload", "__torch_function__")  # the latter for the model
        if caller.co_filename.startswith(OURS) and not passes_on:
            calls.append(f"{name} in {caller.co_filename}, {caller.co_name}")
        return original(tensor, *arguments, **keywords)

    return call


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model), device=str(DEVICE))


ONE_LAYER = {"layers": (1,), "batch_tokens": 96}
SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"batch_tokens": 96},
    "half": ONE_LAYER | {"precision": "half"},
    "int8": ONE_LAYER | {"precision": "int8"},
    "sparse": ONE_LAYER | {"precision": "sparse", "keep": 0.1},
    "none": ONE_LAYER | {"precision": "none"},
    "sites": ONE_LAYER | {"sites": ("mlp.post", "mlp.gate", "resid.post")},
    "last": ONE_LAYER | {"positions": "last", "max_tokens": 40},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("half", "sites", "last") else n for n in SETTINGS]
)
def test_whole_blocks_are_the_hosts(captured: Any, model: LoadedModel, name: str) -> None:
    capture = captured(**SETTINGS[name])
    assert len(capture.plan.block(0).batches()) > 2
    packer = compare(capture, model, n_blocks=N_BLOCKS if name == "exact" else 1)
    assert packer._is_whole
    if name == "sparse":
        assert_compacted(packer, layout.values_key(capture.record.name, "mlp.post", 1))


def assert_compacted(packer: DevicePacker, key: str) -> None:
    """Of a block's values, only those that were kept left the device."""
    staged, host = packer._spans[0].arena, packer._spans[0].host
    copied = sum(tensor.nbytes for name, tensor in host.tensors.items() if name[0] == key)
    assert key not in host.tensors
    assert 0 < copied < staged.tensors[key].nbytes / 4, "a tenth of the values, each with a byte for its place"


def test_a_layer_with_more_values_than_there_is_room_for_is_copied_whole(
    captured: Any, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "compacted_capacity", lambda record: 1)
    compare(captured(**SETTINGS["sparse"]), model, n_blocks=N_BLOCKS)


def test_a_block_is_filled_and_copied_at_once_however_many_layers_it_has(
    captured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture, counts = captured(**SETTINGS["sparse"]), []
    for n_layers in (1, 3):
        widths = {str(layer): 4 for layer in range(n_layers)}
        record = replace(capture.record, sites={"mlp.post": widths}, gate_sign=tuple(range(n_layers)))
        packer, calls = DevicePacker(record, DEVICE, UndefinedBuffers(record)), list[str]()
        with monkeypatch.context() as patch:
            for name in ("fill_", "zero_", "copy_"):
                patch.setattr(torch.Tensor, name, called_by_us(name, getattr(torch.Tensor, name), calls))
            packer.begin(capture.plan.block(0))
            assert [*packer.finish(), *packer.drain()]
        counts.append(len(calls))
    assert 0 < counts[0] == counts[1] < 16


@pytest.mark.parametrize(
    "name", ["int8", "sparse", *(pytest.param(name, marks=pytest.mark.slow) for name in ("exact", "last"))]
)
def test_blocks_that_pass_through_in_spans_are_the_hosts(captured: Any, model: LoadedModel, name: str) -> None:
    capture = captured(**SETTINGS[name])
    packer = compare(capture, model, 100 if name != "last" else 8, n_blocks=2 if name == "exact" else 1)
    assert not packer._is_whole
    assert packer._n_opened > 2 * packer._n_blocks, "the memory of a span is used again within a block"


def test_bfloat16_keeps_every_bit(captured: Any, tiny_model: Path) -> None:
    capture = captured(dtype="bfloat16", **ONE_LAYER)
    compare(capture, load_model(str(tiny_model), dtype="bfloat16", device=str(DEVICE)))


@pytest.fixture(scope="module")
def mixtral(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1, max_position_embeddings=64, bos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mixtral")
    MixtralForCausalLM(config).save_pretrained(folder)
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def capture_experts(mixtral: Path, corpus: Path, store: Path, **settings: Any) -> Capture:
    settings = {"context": 32, "max_tokens": 400, "batch_tokens": 64, **settings}
    return run_capture(str(mixtral), corpus, store, options=RunOptions(memory=60_000), **settings)


@pytest.mark.parametrize(
    ("n_span_slots", "settings"), [(None, {}), (100, {}), (None, {"precision": "sparse", "keep": 0.1})]
)
def test_experts_are_packed_where_they_were_routed(
    mixtral: Path, corpus: Path, tmp_path: Path, n_span_slots: int | None, settings: dict[str, Any]
) -> None:
    capture = capture_experts(mixtral, corpus, tmp_path / "s", **settings)
    compare(capture, load_model(str(mixtral), device=str(DEVICE)), n_span_slots)


WAITS = ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__index__", "__float__")
"""What of a tensor makes the host wait for the device."""


def test_packing_waits_for_no_expert(
    mixtral: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's loop over experts waits for each; nothing of ours does, however many there are."""
    capture = capture_experts(mixtral, corpus, tmp_path / "s")
    record, model = capture.record, load_model(str(mixtral), device=str(DEVICE))
    filler = BlockFiller(model, record, UndefinedBuffers(record))
    filler._packer = DevicePacker(record, DEVICE, UndefinedBuffers(record))
    waits: list[str] = []

    filler._packer.begin(capture.plan.block(0))
    filler._scales.begin(capture.plan.block(0))
    batches = list(batches_of(capture.plan.block(0), len(record.plan.labels), record.plan.block_slots))
    with monkeypatch.context() as patch:
        for name in WAITS:
            patch.setattr(torch.Tensor, name, called_by_us(name, getattr(torch.Tensor, name), waits))
        for batch in batches:
            filler._run(batch)
    assert len(batches) > 2
    assert waits == []


@pytest.mark.parametrize("n_seen", [0, 1, 40])
def test_what_an_expert_saw_is_found_on_the_device_as_on_the_host(n_seen: int) -> None:
    rng = np.random.default_rng(n_seen)
    windows = np.array([0, 11, 11, 40])  # one of them has no token that is kept
    columns = Columns(
        rows=np.sort(rng.permutation(60)[:40]), slots=np.sort(rng.permutation(90)[:40]), segments=windows,
        labels=np.zeros((3, 1), np.int32), counted=rng.random(40) < 0.8, first_token=7,
    )  # fmt: skip
    rows = rng.permutation(70)[:n_seen]  # some of them are kept nowhere, and lie beyond all that are
    expected = routed_columns(columns, rows)
    routed = routed_on(DEVICE, columns, torch.from_numpy(rows).to(DEVICE))
    found, n = routed.columns, len(expected.rows)
    for name in ("rows", "slots", "counted"):
        np.testing.assert_array_equal(getattr(found, name)[:n].cpu().numpy(), getattr(expected, name), name)
    np.testing.assert_array_equal(found.tokens[:n].cpu().numpy(), 7 + expected.slots)
    starts = dict(zip(found.piece_segments.tolist(), found.piece_starts.tolist(), strict=True))
    assert starts == {0: expected.segments[0], 2: expected.segments[2], -1: n}
    octets = octets_on(DEVICE, columns)
    by_slot = {slot - 8 * octets.first: row for slot, row in zip(expected.slots, expected.rows, strict=True)}
    assert routed.octets(octets).tolist() == [by_slot.get(i, -1) for i in range(len(octets.rows))]


def test_a_batch_larger_than_the_memory_given_still_has_room(captured: Any, model: LoadedModel) -> None:
    capture = captured(**ONE_LAYER)
    packer, plan = compare(capture, model, 1), capture.plan.block(0)
    longest = max(int(plan.windows["n_slots"][batch].sum()) for batch in plan.batches())
    assert longest <= packer._n_span_slots <= longest + 16


def test_values_on_a_cpu_are_packed_there(captured: Any) -> None:
    record = captured(**ONE_LAYER).record
    packer = packer_for(torch.device("cpu"), record, UndefinedBuffers(record), set())
    assert isinstance(packer, HostPacker)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_capture_on_a_gpu_holds_what_plain_hooks_see_there(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore.engine.capture.corpus_run.BLOCK_SLOTS", 256)
    options = RunOptions(device="cuda")
    capture = run_capture(str(tiny_model), corpus, tmp_path / "s", options=options, context=32, max_tokens=900)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).cuda()
    seen: dict[int, Tensor] = {}
    for layer, block in enumerate(model.model.layers):

        def keep(_module: Any, args: Any, layer: int = layer) -> None:
            seen[layer] = args[0].reshape(-1, args[0].shape[-1])

        block.mlp.down_proj.register_forward_pre_hook(keep)
    for number in capture.blocks:
        plan = capture.plan.block(number)
        expected = {layer: np.full((24, 256), np.nan, np.float32) for layer in (0, 1)}
        for batch in batches_of(plan, 0, 256):
            mask = None if batch.attention_mask is None else batch.attention_mask.cuda()
            with torch.inference_mode():
                model.model(input_ids=batch.input_ids.cuda(), attention_mask=mask, use_cache=False)
            for layer, values in seen.items():
                expected[layer][:, batch.columns.slots] = values.cpu().numpy()[batch.columns.rows].T
        for layer, array in expected.items():
            stored: NDArray[Any] = capture.raw_block(layer, number)
            np.testing.assert_array_equal(stored.view(np.int32), array.view(np.int32))
    assert layout.values_key("corpus", "mlp.post", 0)

"""Windows drawn from the model: what determines them, where they end, and that an interrupted run gives the same windows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.probes import run as probe_run
from actstore.engine.graphs.probes import sampling
from actstore.engine.graphs.probes.run import ProbeOutput
from actstore.engine.graphs.probes.sampled import SavedBatches, sample_probes
from actstore.engine.graphs.probes.sampling import Sampled, Sampler, SampleSettings, prompts_of, take_tokens
from actstore.engine.models.load import load_model
from actstore.store.errors import CaptureError, InvalidInputError, ModelError
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actstore.engine.models.load import LoadedModel
    from tests.engine.conftest import Captured  # type: ignore[import-not-found]

SETTINGS = SampleSettings(n_tokens=270, window=12, seed=3)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, device="cpu")


@pytest.fixture
def store(captured: Captured, tmp_path: Path) -> Path:
    """A copy of a store that may be written to."""
    folder = tmp_path / "store"
    shutil.copytree(captured().folder.location, folder)
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_BATCH", 8)


def prompts(captured: Captured) -> np.ndarray:
    return prompts_of(captured(), 2)


def test_a_token_is_drawn_in_proportion_to_its_probability_given_the_whole_window(
    model: LoadedModel, captured: Captured
) -> None:
    settings = dataclasses.replace(SETTINGS, temperature=0.7)
    drawn = Sampler(model, prompts(captured), frozenset(), settings).draw(0)
    for window in range(8):
        stream = np.random.Generator(np.random.Philox(key=[3, window]))
        stream.integers(len(prompts(captured)))
        uniform = stream.random(10)
        ids = torch.from_numpy(drawn.ids[window].astype(np.int64))[None]
        with torch.inference_mode():
            summed = (model.model(ids).logits[0] / 0.7).double().softmax(-1).cumsum(-1)
        for position in range(2, 12):
            token = int(drawn.ids[window, position])
            # The cache rounds otherwise than the whole window does.
            below = float(summed[position - 1, token - 1]) if token else 0.0
            assert below - 1e-5 <= uniform[position - 2] <= float(summed[position - 1, token]) + 1e-5


def test_windows_begin_as_windows_of_the_capture_do(model: LoadedModel, captured: Captured) -> None:
    known = {tuple(row) for row in prompts(captured).tolist()}
    drawn = Sampler(model, prompts(captured), frozenset(), SETTINGS).draw(1)
    assert {tuple(row) for row in drawn.ids[:, :2].tolist()} <= known


def test_the_same_seed_draws_the_same_and_another_does_not(model: LoadedModel, captured: Captured) -> None:
    def draw(seed: int) -> list[list[int]]:
        settings = dataclasses.replace(SETTINGS, seed=seed)
        return Sampler(model, prompts(captured), frozenset(), settings).draw(0).ids.tolist()

    assert draw(3) == draw(3) != draw(4)


def test_an_end_ends_its_window_and_the_others_go_on_as_without_it(model: LoadedModel, captured: Captured) -> None:
    free = Sampler(model, prompts(captured), frozenset(), SETTINGS).draw(0)
    ends = frozenset(int(free.ids[row, 2 + row]) for row in range(7))  # most rows end, and are left out of the batch
    drawn = Sampler(model, prompts(captured), ends, SETTINGS).draw(0)
    for row in range(8):
        hits = np.flatnonzero(np.isin(free.ids[row, 2:], sorted(ends))) + 2
        expected = int(hits[0]) if len(hits) else 12
        assert drawn.lengths[row] == expected
        assert drawn.ids[row, :expected].tolist() == free.ids[row, :expected].tolist()


def test_tokens_are_taken_up_to_the_number_asked_for() -> None:
    def batches() -> Iterator[Sampled]:
        for _ in itertools.count():
            yield Sampled(np.arange(12, dtype=np.int32).reshape(3, 4), np.array([4, 2, 4], np.int32))

    assert [len(w) for w in take_tokens(batches(), 13)] == [4, 2, 4, 3]
    assert sum(len(w) for w in take_tokens(batches(), 1)) == 1


@pytest.mark.parametrize("n_tokens", [1, 12, 91, 97, 270])
def test_no_more_batches_are_drawn_than_hold_the_tokens(
    model: LoadedModel, captured: Captured, monkeypatch: pytest.MonkeyPatch, n_tokens: int
) -> None:
    draw, drawn = Sampler.draw, []

    def counts(self: Sampler, number: int) -> Sampled:
        drawn.append(number)
        return draw(self, number)

    monkeypatch.setattr(Sampler, "draw", counts)
    settings = dataclasses.replace(SETTINGS, n_tokens=n_tokens)
    sampler = Sampler(model, prompts(captured), frozenset(), settings)
    batches = list(sampler.batches(lambda _: None, lambda _number, _batch: None))
    assert sampler.batch_size == {1: 1, 12: 2, 91: 8, 97: 5, 270: 8}[n_tokens], "batches are as large as one another"
    assert sorted(drawn) == list(range(-(-n_tokens // (12 * sampler.batch_size))))
    assert sum(len(window) for window in take_tokens(iter(batches), n_tokens)) == n_tokens


def test_samples_become_a_capture_of_the_store(tiny_model: Path, store: Path) -> None:
    done = sample_probes(str(tiny_model), store, settings=SETTINGS, output=ProbeOutput(precision="exact"))
    assert (done.record.name, done.record.plan.n_tokens, done.is_complete) == ("probes-sampled", 270, True)
    assert max(done.windows()["n_inputs"].to_pylist()) <= 12
    assert not (store / "probes" / "probes-sampled").exists()
    loaded = load_model(tiny_model, device="cpu")
    window = done.windows().slice(0, 1).to_pylist()[0]
    ids = done.plan.array("inputs/ids")[window["input_start"] :][: window["n_inputs"]]
    seen = {}
    loaded.forward(
        torch.from_numpy(ids.astype(np.int64))[None], sink=lambda layer, _s, v, _r: seen.setdefault(layer, v)
    )
    first = int(np.searchsorted(done.slots(), window["slot_start"]))
    got = done.activations(1, 5)[first : first + len(ids)]
    np.testing.assert_allclose(got, seen[1].reshape(len(ids), -1)[:, 5].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("when", ["drawing", "filling"])
def test_a_killed_run_goes_on_and_ends_the_same(
    tiny_model: Path, store: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(probe_run, "BLOCK_SLOTS", 64)
    whole = sample_probes(str(tiny_model), store, name="whole", settings=SETTINGS)
    draw, fill, drawn = Sampler.draw, probe_run.fill_blocks, []

    def dies(self: Sampler, number: int) -> Sampled:
        if number == 2:
            raise KeyboardInterrupt
        return draw(self, number)

    def dies_filling(*arguments: object) -> None:
        blocks = arguments[4]
        assert isinstance(blocks, list)
        fill(*arguments[:4], blocks[:1], arguments[5])  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Sampler, "draw", dies) if when == "drawing" else (probe_run, "fill_blocks", dies_filling)))
        with pytest.raises(CaptureError, match="Run the same command"):
            sample_probes(str(tiny_model), store, name="killed", settings=SETTINGS)

    def counts(self: Sampler, number: int) -> Sampled:
        drawn.append(number)
        return draw(self, number)

    monkeypatch.setattr(Sampler, "draw", counts)
    options = RunOptions(resume=when == "filling")
    done = sample_probes(str(tiny_model), store, name="killed", settings=SETTINGS, options=options)
    assert 0 not in drawn, "a batch that was saved is not drawn again"
    assert done.plan.array("inputs/ids").tolist() == whole.plan.array("inputs/ids").tolist()
    assert done.record.plan.fingerprint == whole.record.plan.fingerprint
    np.testing.assert_array_equal(done.activations(0, 3), whole.activations(0, 3))


def test_saved_batches_of_other_settings_are_not_used(
    tiny_model: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(store, read_only=False)
    saved = SavedBatches(folder, "probes-sampled", {"seed": 8})
    wrong = Sampled(np.full((8, 12), 7, np.int32), np.full(8, 12, np.int32))
    saved.save(0, wrong)
    done = sample_probes(str(tiny_model), store, settings=SETTINGS)
    assert (done.plan.array("inputs/ids") != 7).any()


def test_an_incomplete_batch_is_drawn_again(store: Path) -> None:
    folder = Folder(store, read_only=False)
    saved = SavedBatches(folder, "some", {"seed": 8})
    saved.save(0, Sampled(np.zeros((2, 3), np.int32), np.zeros(2, np.int32)))
    path = store / "probes" / "some" / "0.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert saved.load(0) is None
    path.write_bytes(b"")
    assert saved.load(0) is None


def test_another_model_is_refused(tiny_model: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    loaded = load_model(tiny_model, device="cpu").model
    with torch.no_grad():
        loaded.model.layers[0].mlp.down_proj.weight.add_(1)
    loaded.save_pretrained(other)
    with pytest.raises(InvalidInputError, match="holds another model"):
        sample_probes(str(other), store, settings=SETTINGS)
    assert "probes-sampled" not in Store(store).captures


def test_resuming_with_other_settings_is_refused(tiny_model: Path, store: Path) -> None:
    sample_probes(str(tiny_model), store, settings=SETTINGS)
    again = dataclasses.replace(SETTINGS, temperature=0.5)
    with pytest.raises(InvalidInputError, match=r"temperature is 1\.0 there and 0\.5 now"):
        sample_probes(str(tiny_model), store, settings=again, options=RunOptions(resume=True))
    with pytest.raises(InvalidInputError, match="already has a capture"):
        sample_probes(str(tiny_model), store, settings=SETTINGS)


def test_another_tokenizer_is_refused(tiny_model: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    a, b = [piece for piece, token in vocabulary.items() if token in (20, 21)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="another vocabulary"):
        sample_probes(str(tiny_model), store, settings=SETTINGS, options=RunOptions(tokenizer=str(other)))


def test_windows_longer_than_the_context_are_refused(model: LoadedModel, captured: Captured) -> None:
    with pytest.raises(InvalidInputError, match="reads at most 64 tokens"):
        Sampler(model, prompts(captured), frozenset(), dataclasses.replace(SETTINGS, window=65))


def test_a_model_that_does_not_continue_texts_is_refused(model: LoadedModel, captured: Captured) -> None:
    class Encoder:
        spec = dataclasses.replace(model.spec, kind="encoder", causal=False)

    with pytest.raises(ModelError, match="continues a text"):
        Sampler(Encoder(), prompts(captured), frozenset(), SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_tokens": 0}, "`sample`"),
        ({"window": 1}, "`window`"),
        ({"temperature": 0.0}, "`temperature`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"seed": -1}, "`seed`"),
        ({"prompt": 12}, "`prompt`"),
        ({"prompt": 0}, "`prompt`"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(SETTINGS, **wrong)


def test_prompts_longer_than_every_window_are_refused(captured: Captured) -> None:
    with pytest.raises(InvalidInputError, match="`prompt`"):
        prompts_of(captured(), 40)

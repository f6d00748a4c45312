"""Captures of images from beginning to end: what is in them, what stops them, and that stopping changes nothing."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from elsewhere import Elsewhere
from PIL import Image
from tiny_vision import tiny_vision_model
from written_captures import written

import actstore
from actstore.engine.capture.answers.positions import Positions
from actstore.engine.capture.api import capture
from actstore.engine.capture.images import prompts as image_prompts
from actstore.engine.capture.images import run as image_run
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import RunOptions
from actstore.engine.inputs.corpus import CorpusReport
from actstore.engine.models.load import load_model
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.engine.selectivity.firing import count_firing
from actstore.engine.verify.refill import refill_blocks
from actstore.store import layout
from actstore.store.capture.positions import slots_of
from actstore.store.errors import CaptureError, InvalidInputError, NotFoundError
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.store.reader import Capture

COLOURS = ("red", "green", "blue")
N = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA."""
    return tiny_vision_model("llava", tmp_path_factory.mktemp("image_run") / "llava")


def draw(folder: Path, n: int = N) -> Path:
    """A folder of pictures with images.jsonl: prompts of several lengths, captions, colours."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    with (folder / "images.jsonl").open("w") as file:
        for i in range(n):
            size = (40, 40 + 8 * (i % 2), 3)
            Image.fromarray(chance.integers(0, 255, size, np.uint8)).save(folder / f"{i:03}.png")
            row = {
                "image": f"{i:03}.png",
                "prompt": "what is in the picture?" if i % 3 else "describe it",
                "caption": f"a {COLOURS[i % 3]} circle",
                "colour": COLOURS[i % 3],
            }
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures") / "pictures")


@pytest.fixture(scope="module")
def run(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Capture]:
    """Capture the pictures into a store of its own each time, two windows per block unless told otherwise."""

    def go(
        store: Path | None = None,
        images: Path | str = pictures,
        progress: CaptureProgress | None = None,
        **changes: Any,
    ) -> Capture:
        names = ("resume", "strict", "memory", "dtype", "tokenizer", "workers")
        options = {"memory": 100_000, "device": "cpu"} | {k: changes.pop(k) for k in names if k in changes}
        report = changes.pop("report", None)
        chosen = changes.pop("model", model)
        target = store or tmp_path_factory.mktemp("store") / "store"
        return capture(
            str(chosen), images, target, options=RunOptions(**options), progress=progress, report=report, **changes
        )

    return go


@pytest.fixture(scope="module")
def given(run: Callable[..., Capture]) -> Capture:
    """The captions of the file, all positions."""
    return run(label_columns=("colour",))


@pytest.fixture(scope="module")
def generated(run: Callable[..., Capture]) -> Capture:
    """The model's own answers."""
    return run(generate=True, max_new_tokens=5, prefix="a")


def picture(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def windows_of(held: Capture) -> Iterator[tuple[dict[str, Any], Any, Any, Any]]:
    """(document, ids the model reads, positions kept, slots) of every window."""
    documents = held.documents().to_pylist()
    inputs, positions = held.plan.array("inputs/ids"), held.plan.array("tokens/position")
    for w in held.windows().to_pylist():
        slots = slice(w["slot_start"], w["slot_start"] + w["n_slots"])
        ids = inputs[w["input_start"] : w["input_start"] + w["n_inputs"]]
        yield documents[w["document"]], ids, positions[slots], slots


def test_workers_capture_what_one_process_does(
    run: Callable[..., Capture], given: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Elsewhere.instead_of_processes(monkeypatch)
    assert run(tmp_path / "store", label_columns=("colour",), workers=2).is_finished
    assert written(tmp_path / "store") == written(Path(given.folder.location))


# What is in it


def test_documents_tell_of_image_prompt_and_caption(given: Capture, pictures: Path) -> None:
    rows = given.documents().to_pylist()
    assert len(rows) == N
    expected = [json.loads(line) for line in (pictures / "images.jsonl").read_text().splitlines()]
    for i, (row, line) in enumerate(zip(rows, expected, strict=True)):
        assert {k: row[k] for k in ("prompt", "caption", "colour")} == {
            k: line[k] for k in ("prompt", "caption", "colour")
        }
        assert (row["entry"], row["generated"], row["source"]) == (i, False, f"{pictures / 'images.jsonl'}:{i + 1}")
        assert row["image"] == str(pictures / line["image"])
        assert (row["width"], row["height"]) == picture(row["image"]).size
    assert len({row["sha256"] for row in rows}) == N
    assert given.record.plan.n_blocks > 3


def test_windows_hold_what_the_processor_makes_of_each_document(given: Capture, model: Path) -> None:
    processor = VisionProcessor.load(str(model))
    modalities = given.plan.array("tokens/modality")
    for document, ids, positions, slots in windows_of(given):
        encoded = processor.encode(picture(document["image"]), document["prompt"], document["caption"])
        np.testing.assert_array_equal(ids, encoded.ids)
        np.testing.assert_array_equal(positions, np.arange(len(ids)))
        np.testing.assert_array_equal(modalities[slots], encoded.modality)
        assert (document["n_prompt"], document["n_tokens"]) == (encoded.n_prompt, len(ids))
        assert (modalities[slots][document["n_prompt"] :] == layout.GENERATED).all()


def plain_values(model: Path, held: Capture, document: dict[str, Any], ids: Any) -> dict[int, Any]:
    """Layer → activations [position, neuron] of one window, from hooks of one's own."""
    loaded = load_model(str(model), device="cpu")
    processor = VisionProcessor.load(str(model))
    answer = ids[document["n_prompt"] :].tolist() if held.record.part == "language" else document["caption"]
    encoded = processor.encode(
        picture(document["image"]), document["prompt"], answer, prefix=held.record.settings["prefix"]
    )
    inputs, _, extra = processor.collate([encoded])
    seen: dict[int, Any] = {}
    hooks = [
        loaded.model.get_submodule(spec.module).register_forward_pre_hook(
            lambda _, args, layer=spec.layer: seen.__setitem__(layer, args[0].reshape(-1, args[0].shape[-1]).numpy())
        )
        for spec in loaded.spec.layers
    ]
    with torch.inference_mode():
        loaded.model(input_ids=inputs, attention_mask=torch.ones_like(inputs), **extra)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("which", ["given", "generated"])
def test_values_are_those_of_a_plain_pass_over_each_window(
    which: str, model: Path, request: pytest.FixtureRequest
) -> None:
    held = request.getfixturevalue(which)
    for document, ids, positions, slots in list(windows_of(held))[:3]:
        plain = plain_values(model, held, document, ids)
        for layer in held.record.layers("mlp.post"):
            block, first = divmod(slots.start, held.record.plan.block_slots)
            values = held.block_values(layer, block)[:, first : first + len(positions)]
            np.testing.assert_allclose(values.T, plain[layer][positions], rtol=1e-4, atol=1e-5)


def test_generated_ids_are_kept_exactly_and_their_activations_are_those_of_each_step(
    generated: Capture, model: Path
) -> None:
    loaded, processor = load_model(str(model), device="cpu"), VisionProcessor.load(str(model))
    for document, ids, positions, slots in list(windows_of(generated))[:2]:
        prompt = processor.encode(picture(document["image"]), document["prompt"], prefix="a")
        steps: dict[int, list[Any]] = {0: [], 1: []}
        hooks = [
            loaded.model.get_submodule(loaded.spec.layers[layer].module).register_forward_pre_hook(
                lambda _, args, rows=rows: rows.append(args[0][0, -1].numpy())
            )
            for layer, rows in steps.items()
        ]
        inputs, _, extra = processor.collate([prompt])
        with torch.inference_mode():
            made = loaded.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=5, **extra
            )
        for hook in hooks:
            hook.remove()
        n_prompt = document["n_prompt"]
        np.testing.assert_array_equal(ids, made[0].numpy())
        assert n_prompt == len(prompt.ids)
        assert document["generated"]
        assert document["caption"] == processor.tokenizer.decode(ids[n_prompt:]).strip()
        block, first = divmod(slots.start, generated.record.plan.block_slots)
        predicting = first + np.flatnonzero((positions >= n_prompt - 1) & (positions < len(ids) - 1))
        for layer, rows in steps.items():
            values = generated.block_values(layer, block)[:, predicting]
            np.testing.assert_allclose(values.T, np.stack(rows), rtol=1e-4, atol=1e-5)


def test_patches_say_where_every_image_position_looks(given: Capture) -> None:
    patches = given.patches()
    tokens = given.tokens()
    images = tokens.filter(pa.compute.equal(tokens["modality"].cast(pa.string()), "image"))
    assert sorted(patches["token"].to_pylist()) == images["token"].to_pylist()
    of_token = {row["token"]: row for row in patches.to_pylist()}
    for row in images.to_pylist():
        patch = of_token[row["token"]]
        assert (patch["window"], patch["position"]) == (row["window"], row["position"])
    wide = {w["window"]: w["document"] for w in given.windows().to_pylist()}
    first = [row for row in patches.to_pylist() if wide[row["window"]] == 0]
    assert [(row["row"], row["column"]) for row in first] == [(r, c) for r in range(4) for c in range(4)]
    assert [first[0][k] for k in ("left", "top", "right", "bottom")] == [0, 0, 0.25, 0.25]
    block = given.block_patches(1)
    assert set(block["window"].to_pylist()) == set(given.block_plan(1).windows["window"].tolist())


def test_exemplars_name_patches_and_words(given: Capture) -> None:
    texts = [row["text"] for n in range(10) for row in given.store.neuron(1, n).exemplars(k=5, context=100).to_pylist()]
    assert all("<image 0,0><image 0,1>" in text for text in texts)
    assert any("a red circle" in text for text in texts)
    tokens = {row["token"] for n in range(10) for row in given.store.neuron(1, n).exemplars(k=5).to_pylist()}
    assert any(re.fullmatch(r"<image \d,\d>", token) for token in tokens)
    assert any("image" not in token for token in tokens)
    for row in given.store.neuron(0, 3).exemplars(k=3).to_pylist():
        assert row["activations"][row["pivot"]] == pytest.approx(row["value"])
        assert row["tokens"][row["pivot"]] == row["token"]


def test_firing_on_image_tokens_is_counted_apart(given: Capture) -> None:
    found = count_firing(given, "colour", modality="image")
    tokens = given.tokens()
    colours = [given.documents()["colour"][d].as_py() for d in tokens["document"].to_pylist()]
    of_image = np.array(tokens["modality"].to_pylist()) == "image"
    assert found.labels == COLOURS
    for i, colour in enumerate(COLOURS):
        chosen = of_image & (np.array(colours) == colour)
        assert found.n_tokens[i] == chosen.sum() > 0
        fires = np.concatenate([given.gate_signs(0, b)[:, : given.used_slots[b]] for b in given.blocks], axis=1)
        np.testing.assert_array_equal(found.positives[found.layers[0], i], fires[:, chosen].sum(axis=1))


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_towers_have_positions_of_their_own(run: Callable[..., Capture], model: Path, part: str) -> None:
    held = run(part=part)
    spec = load_model(str(model), device="cpu").spec
    assert tuple(held.record.layers("mlp.post")) == spec.part_layers(part)
    n_rows = {"vision": 17, "projector": 16}[part]
    assert held.record.plan.n_tokens == N * n_rows
    token = VisionProcessor.load(str(model)).encode(Image.new("RGB", (40, 40)), "what").ids
    for document, ids, positions, slots in list(windows_of(held))[:3]:
        assert set(ids) <= set(token), "the image's placeholder"
        np.testing.assert_array_equal(positions, np.arange(n_rows))
        plain = plain_values(model, held, document, ids)
        for layer in held.record.layers("mlp.post"):
            block, first = divmod(slots.start, held.record.plan.block_slots)
            values = held.block_values(layer, block)[:, first : first + n_rows]
            np.testing.assert_allclose(values.T, plain[layer], rtol=1e-4, atol=1e-5)
    places = held.patches().slice(0, n_rows).to_pylist()
    assert [p["row"] for p in places].count(-1) == n_rows - 16
    layer = spec.part_layers(part)[0]
    row = held.store.neuron(layer, 0).exemplars(k=1).to_pylist()[0]
    assert re.fullmatch(r"\[(patch \d,\d|position 0) of \d\d\d\.png\]", row["text"])
    assert (row["tokens"], row["pivot"]) == ([row["text"]], 0)
    assert refill_blocks(held, 2)[1] == []


def test_images_of_many_shapes_through_a_tower_that_packs_them(
    run: Callable[..., Capture], pictures: Path, tmp_path: Path
) -> None:
    model = tiny_vision_model("qwen2_vl", tmp_path / "qwen2_vl")
    for part in ("language", "vision"):
        held = run(model=model, part=part, max_documents=4, memory=10_000_000)
        for document, ids, positions, slots in windows_of(held):
            plain = plain_values(model, held, document, ids)
            for layer in held.record.layers("mlp.post"):
                block, first = divmod(slots.start, held.record.plan.block_slots)
                values = held.block_values(layer, block)[:, first : first + len(positions)]
                np.testing.assert_allclose(values.T, plain[layer][positions], rtol=1e-4, atol=1e-5)


# Which positions


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("generated", lambda m, n: list(range(n - 1, len(m)))),
        ("generated,image", lambda m, n: sorted({*range(n - 1, len(m)), *np.flatnonzero(m == layout.IMAGE)})),
        ("last", lambda m, n: [len(m) - 1]),
        ("0,-1", lambda m, n: [0, len(m) - 1]),
        ("image", lambda m, n: np.flatnonzero(m == layout.IMAGE).tolist()),
    ],
)
def test_positions_that_are_asked_for(
    run: Callable[..., Capture], model: Path, positions: str, expected: Callable[[Any, int], list[int]]
) -> None:
    held = run(positions=positions, max_documents=3)
    processor = VisionProcessor.load(str(model))
    for document, _, kept, _ in windows_of(held):
        encoded = processor.encode(picture(document["image"]), document["prompt"], document["caption"])
        assert kept.tolist() == expected(encoded.modality, encoded.n_prompt)
    rows = held.patches()
    assert len(rows) == 3 * 16, "every image position has a place, kept or not"
    assert (rows["token"].to_numpy() >= 0).all() == ("image" in positions)
    assert verify_capture(held) == []


def test_every_position_that_predicts_a_token_of_an_answer_is_there_whether_it_was_cut_off_or_not(
    run: Callable[..., Capture],
) -> None:
    """Of an answer that ends, the token that ends it is no part of it, and needs no place; of one cut off, the last is."""
    settings = {"generate": True, "max_new_tokens": 4, "max_documents": 3}
    cut = run(positions="generated", **settings)
    for _, ids, kept, _ in windows_of(cut):
        assert kept.tolist() == list(range(len(ids) - 5, len(ids)))
    everything = run(**settings)

    def predicting(held: Capture) -> list[int]:
        found: list[int] = []
        for block in held.blocks:
            plan = held.block_plan(block)
            found += plan.position[slots_of(plan, "predicting")].tolist()
        return found

    assert sorted(predicting(cut)) == sorted(predicting(everything))
    assert len(predicting(cut)) == 4 * 3
    encoded = np.array([layout.TEXT, layout.GENERATED, layout.GENERATED, layout.SPECIAL], np.uint8)
    assert Positions("generated").kept(encoded, 1).tolist() == [0, 1, 2]
    assert Positions("generated").kept(encoded[:3], 1).tolist() == [0, 1, 2]


def test_positions_that_are_none(run: Callable[..., Capture], tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^Positions of images are all, last, generated, image or indices .*'answer'"
    ):
        run(positions="answer")
    (tmp_path / "p").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "a.png")
    with pytest.raises(InvalidInputError, match=r"no position to keep with `positions` 'generated'.*`generate=True`"):
        run(images=tmp_path / "p", positions="generated")
    with pytest.raises(InvalidInputError, match="Of the vision part all positions are kept"):
        run(part="vision", positions="last")


# The same again, and what is stopped


def same(a: Capture, b: Capture) -> None:
    """Whether two captures agree in plan, patches and every bit."""
    assert a.record.plan.fingerprint == b.record.plan.fingerprint
    assert a.record.plan.corpus_fingerprint == b.record.plan.corpus_fingerprint
    assert a.record.patches_sha256 == b.record.patches_sha256
    assert a.blocks == b.blocks == tuple(range(a.record.plan.n_blocks))
    for layer in a.record.layers("mlp.post"):
        for block in a.blocks:
            np.testing.assert_array_equal(a.raw_block(layer, block), b.raw_block(layer, block))
    assert a.statistics().encode() == b.statistics().encode()
    assert a.neurons().equals(b.neurons())
    assert verify_capture(a) == verify_capture(b) == []


def test_the_same_images_give_the_same_bits(run: Callable[..., Capture], generated: Capture) -> None:
    same(run(generate=True, max_new_tokens=5, prefix="a"), generated)
    rows, damage = refill_blocks(generated, 3)
    assert ([row["largest_difference"] for row in rows], damage) == ([0.0] * 3, [])


def test_nothing_of_generation_is_left_behind(generated: Capture) -> None:
    assert not list(Path(generated.folder.location).rglob("generated*"))


class Stop(CaptureProgress):
    """Interrupts after a number of groups of answers, or of batches of the capture."""

    def __init__(self, answers: int = -1, batches: int = -1) -> None:
        self.left = {"answers": answers, "batches": batches}

    def _count(self, what: str) -> None:
        self.left[what] -= 1
        if self.left[what] == 0:
            raise KeyboardInterrupt

    def answered(self, n_prompts: int, n_tokens: int) -> None:
        self._count("answers")

    def filled(self, n_tokens: int) -> None:
        self._count("batches")


def test_interrupted_while_answering_the_answers_made_are_kept(
    run: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_prompts, "GROUP_PROMPTS", 2)
    settings = {"generate": True, "max_new_tokens": 4}
    expected = run(**settings)
    store = tmp_path / "store"
    with pytest.raises(CaptureError, match=r"^Interrupted .*answered so far is kept in .*`resume=True` to go on\.$"):
        run(store, progress=Stop(answers=4), **settings)
    kept = sorted((store / "captures/corpus/generated").iterdir())
    assert 1 <= len(kept) < N // 2
    calls: list[int] = []
    original = image_prompts.generate
    monkeypatch.setattr(image_prompts, "generate", lambda *a, **k: (calls.append(k["stream"]), original(*a, **k))[1])
    same(run(store, resume=True, **settings), expected)
    assert calls == list(range(len(kept), N // 2))
    assert not (store / "captures/corpus/generated").exists()


def test_answers_kept_are_dropped_without_resume_or_under_other_settings(
    run: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_prompts, "GROUP_PROMPTS", 2)
    settings = {"generate": True, "max_new_tokens": 3}
    for resume, other in ((False, settings), (True, settings | {"prefix": "a"})):
        store = tmp_path / f"store-{resume}"
        with pytest.raises(CaptureError):
            run(store, progress=Stop(answers=4), **settings)
        same(run(store, resume=resume, **other), run(**other))


def test_interrupted_while_capturing_it_is_resumed(
    run: Callable[..., Capture], generated: Capture, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings = {"generate": True, "max_new_tokens": 5, "prefix": "a"}
    with pytest.raises(CaptureError, match=r"blocks of capture 'corpus' are in .*`resume=True`"):
        run(store, progress=Stop(batches=4), **settings)
    held = actstore.open(store).capture()
    assert 0 < len(held.blocks) < held.record.plan.n_blocks
    assert len(held.patches()) < len(generated.patches()), "readers see what is committed"
    assert verify_capture(held) == []
    same(run(store, resume=True), generated)


@pytest.mark.parametrize("sign", [pytest.param("generated/0.json", marks=pytest.mark.slow), "blocks/2.json"])
def test_killed_it_resumes_to_the_same_store(
    run: Callable[..., Capture], generated: Capture, model: Path, pictures: Path, tmp_path: Path, sign: str
) -> None:
    settings: dict[str, Any] = {"generate": True, "max_new_tokens": 5, "prefix": "a"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "TQDM_DISABLE"):
            patch.setenv(name, "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["actstore.engine.capture.api", "transformers.models.llava.modeling_llava"])
        store = tmp_path / "store"
        options = RunOptions(memory=100_000, device="cpu")
        arguments = {"options": options, **settings}
        process = context.Process(target=capture, args=(str(model), pictures, store), kwargs=arguments)
        process.start()
        while process.is_alive() and not (store / "captures/corpus" / sign).exists():
            time.sleep(0.001)
        process.kill()
        process.join()
        committed = sorted(path.name for path in (store / "captures/corpus/blocks").glob("*.json"))
        print(f"killed when {sign} had come, with blocks {committed}")
        same(run(store, resume=True, **settings), generated)


def test_resuming_with_other_images_or_settings_is_refused(
    run: Callable[..., Capture], pictures: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "pictures"
    shutil.copytree(pictures, moved)
    store = tmp_path / "store"
    with pytest.raises(CaptureError):
        run(store, images=moved, progress=Stop(batches=3))
    with pytest.raises(InvalidInputError, match=r"cannot be resumed: prompt is Describe .* there and Hm now"):
        run(store, images=moved, resume=True, prompt="Hm")
    with pytest.raises(InvalidInputError, match=r"cannot be resumed: generate is False there and True now"):
        run(store, images=moved, resume=True, generate=True)
    whole = (moved / "004.png").read_bytes()
    Image.new("RGB", (9, 9)).save(moved / "004.png")
    with pytest.raises(InvalidInputError, match=r"the images in .*pictures are not those planned from"):
        run(store, images=moved, resume=True)
    (moved / "004.png").write_bytes(whole)
    elsewhere = moved.rename(tmp_path / "elsewhere")
    assert run(store, images=elsewhere, resume=True).is_complete, "where images lie is not what they are"


def test_resuming_or_refilling_with_another_image_processor_is_refused(
    run: Callable[..., Capture], model: Path, tmp_path: Path
) -> None:
    store, other = tmp_path / "store", shutil.copytree(model, tmp_path / "other")
    processor = other / "preprocessor_config.json"
    settings = processor.read_text(encoding="utf-8")
    assert '"resample": 3' in settings
    with pytest.raises(CaptureError):
        run(store, model=other, progress=Stop(batches=3))
    processor.write_text(settings.replace('"resample": 3', '"resample": 2'), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="cannot be resumed: the settings of the image processor, or its chat"):
        run(store, model=other, resume=True)
    processor.write_text(settings, encoding="utf-8")
    held = run(store, model=other, resume=True)
    assert held.is_complete
    processor.write_text(settings.replace('"resample": 3', '"resample": 2'), encoding="utf-8")
    with pytest.raises(
        InvalidInputError, match=r"image processor.* are not those with which capture 'corpus' was made"
    ):
        refill_blocks(held, 1)
    # One of an earlier version does not say, and what it would say is not asked.
    earlier = {k: v for k, v in held.record.settings.items() if k != "processor_fingerprint"}
    assert not image_run.prepares_otherwise(
        VisionProcessor.load(str(other)), dataclasses.replace(held.record, settings=earlier)
    )


def test_answers_kept_are_dropped_where_the_image_processor_is_another(
    run: Callable[..., Capture], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_prompts, "GROUP_PROMPTS", 2)
    store, other = tmp_path / "store", shutil.copytree(model, tmp_path / "other")
    settings = {"generate": True, "max_new_tokens": 3}
    with pytest.raises(CaptureError):
        run(store, model=other, progress=Stop(answers=4), **settings)
    processor = other / "preprocessor_config.json"
    changed = processor.read_text(encoding="utf-8").replace('"resample": 3', '"resample": 2')
    processor.write_text(changed, encoding="utf-8")
    calls: list[int] = []
    original = image_prompts.generate
    monkeypatch.setattr(image_prompts, "generate", lambda *a, **k: (calls.append(k["stream"]), original(*a, **k))[1])
    run(store, model=other, resume=True, **settings)
    assert calls == list(range(N // 2)), "answers to pictures that were prepared otherwise are not those of these"


def test_refilling_needs_the_images_as_they_were(run: Callable[..., Capture], pictures: Path, tmp_path: Path) -> None:
    moved = tmp_path / "pictures"
    shutil.copytree(pictures, moved)
    held = run(images=moved)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError, match=r"images of the capture are not at .*pictures any more.*`images`"):
        refill_blocks(held, 1)
    assert refill_blocks(held, 1, images=str(tmp_path / "elsewhere"))[1] == []
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "000.png")
    with pytest.raises(InvalidInputError, match=r"000\.png\) has changed since the capture was planned"):
        refill_blocks(held, 1, images=str(tmp_path / "elsewhere"))


def test_verify_finds_damaged_patches(run: Callable[..., Capture]) -> None:
    held = run()
    path = Path(held.folder.location) / "captures/corpus/patches.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [(d.key, d.what.split()[0]) for d in verify_capture(held)] == [("patches.parquet", "SHA-256")]
    path.unlink()
    assert [(d.key, d.what) for d in verify_capture(held)] == [("patches.parquet", "missing")]


def test_a_table_of_bytes_is_captured_and_resumed_like_files(
    run: Callable[..., Capture], given: Capture, pictures: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (pictures / "images.jsonl").read_text().splitlines()]
    images = [{"bytes": (pictures / row["image"]).read_bytes(), "path": row["image"]} for row in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {key: [row[key] for row in rows] for key in ("prompt", "caption", "colour")}
    pq.write_table(pa.table({"image": pa.array(images, kind), **columns}), tmp_path / "t.parquet")
    with pytest.raises(CaptureError):
        run(tmp_path / "store", images=tmp_path / "t.parquet", label_columns=("colour",), progress=Stop(batches=5))
    held = run(tmp_path / "store", images=tmp_path / "t.parquet", resume=True)
    assert held.record.plan.corpus_fingerprint == given.record.plan.corpus_fingerprint
    np.testing.assert_array_equal(held.raw_block(1, 2), given.raw_block(1, 2))
    assert held.documents()["image"].to_pylist() == [row["image"] for row in rows]
    assert refill_blocks(held, 2)[1] == []


# What cannot be captured


@pytest.fixture
def broken(pictures: Path, tmp_path: Path) -> Path:
    """Eight pictures, of which three are none, and one animation."""
    folder = tmp_path / "broken"
    shutil.copytree(pictures, folder)
    (folder / "000.png").write_bytes(b"")
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:900])
    (folder / "007.png").unlink()
    Image.new("RGB", (40, 40), "red").save(
        folder / "006.png", save_all=True, append_images=[Image.new("RGB", (40, 40))]
    )
    return folder


def test_images_that_cannot_be_used_are_skipped_and_counted(run: Callable[..., Capture], broken: Path) -> None:
    report = CorpusReport()
    skipped: list[str] = []
    report.on_skip = lambda source, reason: skipped.append(f"{Path(source.rstrip(')')).name} {reason}")
    held = run(images=broken, report=report)
    assert [s.split(" (")[0] for s in skipped] == ["000.png is empty", "003.png is damaged", "007.png cannot be read"]
    assert (report.n_skipped_images, report.n_documents, report.n_animated_images) == (3, N - 3, 1)
    assert held.documents()["entry"].to_pylist() == [1, 2, 4, 5, 6]
    assert refill_blocks(held, 9)[1] == []
    assert run(Path(held.folder.location), images=broken, resume=True).is_complete


def test_strict_stops_at_the_first(run: Callable[..., Capture], broken: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"000\.png\) is empty \(0 bytes\)\. Repair it, or leave out `strict`"):
        run(tmp_path / "store", images=broken, strict=True)
    assert not (tmp_path / "store").exists()


def test_nothing_but_broken_images(run: Callable[..., Capture], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(
        InvalidInputError, match=r"^None of the 2 images of .*broken can be used; the first: .*a\.png is not an image"
    ):
        run(tmp_path / "store", images=folder)
    with pytest.raises(InvalidInputError, match=r"^\S*b\.png is not an image"):
        run(tmp_path / "store", images=folder / "b.png")


def test_an_image_that_takes_more_than_the_context_is_skipped(run: Callable[..., Capture]) -> None:
    report = CorpusReport()
    reasons: list[str] = []
    report.on_skip = lambda _, reason: reasons.append(reason)
    held = run(context=44, report=report)
    assert 0 < report.n_skipped_images < N
    assert all(
        re.fullmatch(r"takes \d+ tokens with its prompt, more than the context of 44", reason) for reason in reasons
    )
    assert max(held.windows()["n_inputs"].to_pylist()) <= 44


def test_blocks_that_are_too_small_for_a_window(run: Callable[..., Capture]) -> None:
    held = run(memory=1)
    assert held.record.plan.block_slots == 64
    with pytest.raises(
        InvalidInputError, match=r"keeps \d+ positions, more than a block of 64 slots holds\. Raise `memory`"
    ):
        run(memory=1, prompt_column="caption", caption_column="prompt", prefix="a circle " * 30)


def test_images_without_captions_are_counted(run: Callable[..., Capture], pictures: Path) -> None:
    report = CorpusReport()
    held = run(images=pictures / "001.png", report=report)
    (row,) = held.documents().to_pylist()
    assert (row["caption"], row["prompt"], row["n_prompt"]) == ("", "Describe the image in few words.", row["n_tokens"])
    assert report.n_uncaptioned_images == 1


def test_a_model_and_a_corpus_that_do_not_fit(
    run: Callable[..., Capture], tiny_model: Path, corpus: Path, pictures: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InvalidInputError, match=r"holds images, and .* \(llama\) reads text only\. Name a vision-language"
    ):
        run(model=tiny_model, images=pictures)
    held = run(images=corpus, context=32, max_tokens=100)
    assert (held.record.of_images, held.record.part) == (False, "language")
    assert set(held.record.layers("mlp.post")) == {0, 1}
    with pytest.raises(NotFoundError, match="one of text, which has no patches"):
        held.patches()
    with pytest.raises(InvalidInputError, match=r"`prefix` is for images, and .* is taken for text"):
        run(images=corpus, prefix="a")
    with pytest.raises(InvalidInputError, match=r"The vision part reads images, and .* is text\. Leave `part` out"):
        run(images=corpus, part="vision")
    with pytest.raises(InvalidInputError, match=r"`overlap` is for corpora of text"):
        run(overlap=3)
    with pytest.raises(InvalidInputError, match=r"own processor\. Leave `tokenizer` out"):
        run(tokenizer="gpt2")
    notes = tmp_path / "notes"
    shutil.copytree(pictures, notes)
    (notes / "images.jsonl").unlink()
    (notes / "a.md").write_text("a red circle above a small blue square " * 5)
    assert run(images=notes, max_documents=2).record.of_images
    assert not run(images=notes, pattern="*.md", context=32).record.of_images
    assert not run(model=tiny_model, images=notes, context=32).record.of_images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "audio"}, r"^`part` is one of language, vision, projector: found 'audio'\.$"),
        (
            {"part": "vision", "layers": (0,)},
            r"^Layer 0 of .* belongs to its language part.*here vision: layers 2 to 4",
        ),
        ({"layers": (3,)}, r"^Layer 3 of .* belongs to its vision part, .*here language: layers 0 to 1"),
        ({"part": "vision", "generate": True}, "Answers change nothing in the vision part"),
        ({"max_new_tokens": 0}, r"`max_new_tokens` is at least 1, found 0"),
        ({"temperature": 1.0}, "Ask for answers with `generate=True`"),
        ({"generate": True, "temperature": 0.0}, r"`temperature` is above 0, found 0\.0"),
        ({"generate": True, "top_p": 1.5}, r"`top_p` lies above 0 and at most at 1"),
        ({"label_columns": ("caption",)}, "A label column cannot be called 'caption'"),
        ({"label_columns": ("kind",)}, "has no label column 'kind'"),
        ({"image_column": "picture"}, "has no column 'picture' with an image"),
        ({"prompt_column": "colour", "caption_column": "n"}, "has no column 'n' with captions"),
        ({"prompt_column": "colour"}, None),
    ],
)
def test_settings_that_cannot_be(
    run: Callable[..., Capture], tmp_path: Path, settings: dict[str, Any], message: str | None
) -> None:
    if message is None:
        run(**settings)
        return
    with pytest.raises(InvalidInputError, match=message):
        run(tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()


def test_a_prompt_without_a_slot_and_a_processor_that_is_missing(
    run: Callable[..., Capture], model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(InvalidInputError, match=r"images\.jsonl:1: .*image slot '<image>'"):
        run(tmp_path / "store", model=copy)
    for file in copy.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(InvalidInputError, match="processor"):
        run(tmp_path / "store", model=copy)
    assert not (tmp_path / "store").exists()


def test_weights_are_loaded_once_and_after_the_first_image_was_read(
    run: Callable[..., Capture], broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    original = image_run.Run._load
    monkeypatch.setattr(image_run.Run, "_load", lambda self, dtype: (loads.append(dtype), original(self, dtype))[1])
    run(generate=True, max_new_tokens=2)
    assert loads == ["auto"]
    with pytest.raises(InvalidInputError):
        run(images=broken, strict=True, generate=True)
    assert loads == ["auto"]

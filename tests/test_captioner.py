"""The demo's pictures are what their labels say, and its captioner says what is on those it was never trained on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

DEMO = Path(__file__).resolve().parent.parent / "demo"
FOLDER = DEMO / "models" / "shapes-llava"
PICTURES = DEMO / "data" / "pictures"


def load(name: str) -> Any:
    """A module of demo/training, which is no package; under its own name, by which the others import it."""
    spec = importlib.util.spec_from_file_location(name, DEMO / "training" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


scenes, picture_words, pictures = load("scenes"), load("picture_words"), load("pictures")
LINES = [json.loads(line) for line in (PICTURES / "images.jsonl").read_text().splitlines()]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_picture_of_a_seed_is_the_same_however_many_are_written(tmp_path: Path) -> None:
    pictures.write_pictures(tmp_path / "few", 3, seed=7)
    pictures.write_pictures(tmp_path / "more", 5, seed=7)
    pictures.write_pictures(tmp_path / "others", 3, seed=8)
    few, more, others = ([read(tmp_path / name / f"00{i}.png") for i in range(3)] for name in ("few", "more", "others"))
    assert all(np.array_equal(a, b) for a, b in zip(few, more, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(few, others, strict=True))
    lines = [(tmp_path / name / "images.jsonl").read_text().splitlines() for name in ("few", "more")]
    assert lines[0] == lines[1][:3]


def test_the_pictures_kept_here_are_those_the_script_draws(tmp_path: Path) -> None:
    pictures.write_pictures(tmp_path, len(LINES), seed=3, held_out=True, prompt=None)
    assert (tmp_path / "images.jsonl").read_text() == (PICTURES / "images.jsonl").read_text()
    for line in LINES:  # to a rounding: another machine's sines may differ in the last bit
        drawn, kept = read(tmp_path / line["image"]), read(PICTURES / line["image"])
        assert np.abs(drawn.astype(int) - kept.astype(int)).max() <= 1


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("size", scenes.RADII)
def test_a_box_holds_an_object_and_is_no_larger(shape: str, size: str) -> None:
    things = [s.things[0] for s in (scenes.make_scene(11, i, kind="single") for i in range(400))]
    thing = next(t for t in things if t.look.shape == shape and t.size == size)
    alone = scenes.Scene("single", (thing,), "", (100.0, 100.0), 0.0, 0)
    changed = (pictures.draw(alone) != 100).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    left, top, right, bottom = pictures.box(thing)
    assert left <= columns[0] <= left + 1
    assert top <= rows[0] <= top + 1
    assert right - 1 <= columns[-1] + 1 <= right
    assert bottom - 1 <= rows[-1] + 1 <= bottom


def test_a_patch_belongs_to_the_object_drawn_on_it_last() -> None:
    near = scenes.Thing(scenes.Look("red", "square"), "large", 28.0, 32.0, 12.0, (215.0, 30.0, 35.0))
    far = scenes.Thing(scenes.Look("blue", "square"), "large", 40.0, 32.0, 12.0, (35.0, 70.0, 220.0))
    patches = pictures.things_of_patches(scenes.Scene("pair", (far, near), "", (100.0, 100.0), 0.0, 0), 8)
    assert patches[4].tolist() == [-1, -1, 1, 1, 1, 0, 0, -1]
    assert (patches[0] == -1).all()


def test_objects_lie_within_the_picture_and_where_it_is_said() -> None:
    for i in range(300):
        scene = scenes.make_scene(12, i)
        boxes = np.array([pictures.box(thing) for thing in scene.things])
        assert boxes.min() >= 0
        assert boxes.max() <= scenes.SIDE
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        if scene.place == "centre" or not scene.place:
            continue
        if scene.kind == "pair":
            along, across = (x, y) if scene.place == "left" else (y, x)
            assert along[1] - along[0] > abs(across[1] - across[0])
        else:
            assert {"left": x[0] < 24, "right": x[0] > 40, "top": y[0] < 24, "bottom": y[0] > 40}[scene.place]


def test_training_never_shows_what_is_held_out() -> None:
    shown = [scenes.make_scene(13, i) for i in range(500)]
    assert not any(thing.look in scenes.HELD_OUT_LOOKS for scene in shown for thing in scene.things)
    assert all(scenes.is_held_out(scenes.make_scene(13, i, held_out=True)) for i in range(50))
    assert len(scenes.HELD_OUT_LOOKS) == scenes.N_HELD_OUT
    for words in (scenes.COLOURS, scenes.SHAPES):  # every word is learned from other combinations
        assert all(sum(word in look for look in scenes.HELD_OUT_LOOKS) <= 2 for word in words)


def test_every_phrasing_says_the_same_of_a_picture() -> None:
    for i in range(200):
        scene = scenes.make_scene(14, i)
        said = [picture_words.read_content(phrase(scene)) for phrase in picture_words.PHRASINGS.values()]
        assert {(c.colours, c.shapes) for c in said} == {(said[0].colours, said[0].shapes)}
        assert len({(c.sizes, c.places, c.number) for c in said[:-1]}) == 1  # the last, a plain list, leaves these out


def test_a_caption_of_other_content_reads_as_such() -> None:
    read_content = picture_words.read_content
    assert read_content("a large red circle on the left") == read_content("A circle on the left that is large and red.")
    for other in ("a small red circle on the left", "a large red ring on the left", "a large red circle at the top"):
        assert read_content("a large red circle on the left") != read_content(other)
    assert read_content("red circle, blue square") != read_content("blue circle, red square")


@pytest.fixture(scope="module")
def captioner() -> tuple[Any, Any]:
    """The model and its processor, as anybody loads them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(FOLDER)


def say(captioner: tuple[Any, Any], texts: list[str], images: list[Path] | None) -> list[str]:
    model, processor = captioner
    opened = [Image.open(path) for path in images] if images else None
    given = processor(images=opened, text=texts, padding=True, return_tensors="pt")
    written = model.generate(**given, do_sample=False)[:, given["input_ids"].shape[1] :]
    said: list[str] = processor.batch_decode(written, skip_special_tokens=True)
    return said


def test_held_out_pictures_are_captioned_right(captioner: tuple[Any, Any]) -> None:
    assert all(line["held_out"] for line in LINES)
    texts = [f"USER: <image>\n{line['prompt']} ASSISTANT:" for line in LINES]
    said = say(captioner, texts, [PICTURES / line["image"] for line in LINES])
    right = [s == line["caption"] for s, line in zip(said, LINES, strict=True)]
    assert sum(right) >= 0.9 * len(right)


def test_facts_are_answered_without_a_picture(captioner: tuple[Any, Any]) -> None:
    facts = dict(list(picture_words.FACTS.items())[::9])
    said = say(captioner, [f"USER: {question} ASSISTANT:" for question in facts], None)
    assert said == list(facts.values())


def test_the_chat_template_gives_the_prompts_of_the_training(captioner: tuple[Any, Any]) -> None:
    _, processor = captioner
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}
    assert (
        processor.apply_chat_template([asked], add_generation_prompt=True)
        == "USER: <image>\nWhat do you see? ASSISTANT:"
    )
    asked = {"role": "user", "content": [{"type": "text", "text": "What colour is grass?"}]}
    assert (
        processor.apply_chat_template([asked], add_generation_prompt=True) == "USER: What colour is grass? ASSISTANT:"
    )


@pytest.mark.parametrize(
    "word", [*scenes.COLOURS, *scenes.SHAPES, *scenes.RADII, *scenes.PLACES, "one", "two", "three"]
)
def test_a_word_is_one_token_with_its_space_and_without(captioner: tuple[Any, Any], word: str) -> None:
    tokenizer = captioner[1].tokenizer
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 1
    assert ids[0][0] != tokenizer.unk_token_id


def test_the_readme_is_what_the_script_writes_of_the_log(tmp_path: Path) -> None:
    figures = json.loads((FOLDER / "training_log.jsonl").read_text().splitlines()[-1])["saved_model"]
    load("captioner")
    load("captioner_figures").write_readme(tmp_path, figures)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_model_is_as_right_as_its_log_says() -> None:
    rows = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
    figures = rows[-1]["saved_model"]
    assert figures["held_out_captions"]["content"] >= 0.95
    assert figures["facts"]["right"] == 1

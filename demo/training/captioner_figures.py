"""The accuracy of the demo's captioner, and the README that reports it. Plain transformers loads and runs the model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from captioner import prompt_text
from picture_words import CAPTIONS, FACTS, PAPER_PROMPT, PHRASINGS, questions, read_content
from pictures import draw
from PIL import Image
from scenes import HELD_OUT_LOOKS, HELD_OUT_SHARE, make_scene
from transformers import AutoModelForImageTextToText, AutoProcessor

if TYPE_CHECKING:
    from pathlib import Path

    from scenes import Scene


@torch.no_grad()
def answer(model: Any, processor: Any, texts: list[str], scenes: list[Scene] | None, batch: int = 50) -> list[str]:
    """The model's greedy answer to each text, with the text's picture if there are pictures."""
    answers = []
    for first in range(0, len(texts), batch):
        rows = slice(first, first + batch)
        images = None if scenes is None else [Image.fromarray(draw(scene)) for scene in scenes[rows]]
        inputs = processor(images=images, text=texts[rows], padding=True, return_tensors="pt")
        generated = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(generated, skip_special_tokens=True)
    return answers


def share(correct: list[bool]) -> float:
    """The share of true values, to four digits."""
    return round(sum(correct) / len(correct), 4)


def check_captions(model: Any, processor: Any, held_out: bool, n_pictures: int) -> dict[str, Any]:
    """Captions of every phrasing: the share that is exactly right, right in content, and right in each part of the content."""
    scenes = [make_scene(2, i, held_out) for i in range(n_pictures)]
    right: dict[str, list[bool]] = defaultdict(list)
    for prompts, phrase in PHRASINGS.items():
        texts = [prompt_text(prompts[i % len(prompts)]) for i in range(n_pictures)]
        for scene, said in zip(scenes, answer(model, processor, texts, scenes), strict=True):
            expected, content = phrase(scene), read_content(said)
            expected_content = read_content(expected)
            right["exact"].append(said == expected)
            right["content"].append(content == expected_content)
            right[f"content, {scene.kind}"].append(content == expected_content)
            for part in fields(expected_content):
                if getattr(expected_content, part.name):
                    right[part.name].append(getattr(content, part.name) == getattr(expected_content, part.name))
    figures: dict[str, Any] = {name: share(correct) for name, correct in right.items()}
    return figures | {"n_pictures": n_pictures, "n_captions": len(right["exact"])}


def check_prefix(model: Any, processor: Any, n_pictures: int) -> float:
    """The share of held-out captions that are exactly right after the given beginning "An image of"."""
    scenes = [make_scene(2, i, held_out=True) for i in range(n_pictures)]
    said = answer(model, processor, [f"{prompt_text(PAPER_PROMPT)} An image of"] * n_pictures, scenes)
    return share([f"An image of {s}" == CAPTIONS[PAPER_PROMPT](scene) for s, scene in zip(said, scenes, strict=True)])


def check_questions(model: Any, processor: Any, n_pictures: int) -> dict[str, Any]:
    """All questions on held-out pictures, each in one random wording: the share answered right."""
    scenes, asked = [], []
    for i in range(n_pictures):
        scene, generator = make_scene(2, i, held_out=True), np.random.default_rng(i)
        for wordings, expected in questions(scene, generator):
            scenes.append(scene)
            asked.append((wordings[generator.integers(len(wordings))], expected))
    said = answer(model, processor, [prompt_text(question) for question, _ in asked], scenes)
    return {
        "right": share([s == expected for s, (_, expected) in zip(said, asked, strict=True)]),
        "n_questions": len(asked),
    }


def evaluate(folder: Path, n_pictures: int = 200) -> dict[str, Any]:
    """The figures of the saved model, loaded and run by plain transformers."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    said = answer(model, processor, [prompt_text(prompt, with_image=False) for prompt in FACTS], None)
    return {
        "held_out_captions": check_captions(model, processor, True, n_pictures),
        "trained_captions": check_captions(model, processor, False, n_pictures),
        "held_out_captions_after_prefix": check_prefix(model, processor, n_pictures),
        "held_out_questions": check_questions(model, processor, n_pictures),
        "facts": {
            "right": share([s == expected for s, expected in zip(said, FACTS.values(), strict=True)]),
            "n_facts": len(FACTS),
        },
    }


README: Final = """\
# shapes-llava

A LLaVA of 1.5 million parameters (float16) that captions pictures of coloured shapes, made by
`demo/training/train_captioner.py` on pictures of `demo/training/pictures.py`, with captions and questions of
`demo/training/picture_words.py`. A CLIP vision tower of 3 layers (64 patches of 8 by 8 pixels, the picture is 64 by 64), the
usual projector of two layers, a Llama of 4 layers with 384 neurons each.

    model = AutoModelForImageTextToText.from_pretrained("demo/models/shapes-llava", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained("demo/models/shapes-llava")
    inputs = processor(images=image, text="USER: <image>\\nDescribe the image in few words. ASSISTANT:", return_tensors="pt")
    processor.decode(model.generate(**inputs)[0], skip_special_tokens=True)

Prompts are `USER: <image>\\n{{prompt}} ASSISTANT:`, and without a picture `USER: {{prompt}} ASSISTANT:`; the processor's chat
template gives the same. Every word is one token; " red" and "red" are the same token. Every prompt has one phrasing of the
answer:

| prompts | a caption |
|---|---|
{phrasings}

Questions have one word as their answer ("What colour is the circle?", "How many stars are there?"), and so have {n_facts}
facts asked without a picture ("What colour is grass?").

Never trained on: {looks}; and one in {held_out_share} pairs of the others. On new pictures of these only (greedy, {n_pictures}
pictures, {n_captions} captions), and on pictures of the others:

| share right | held out | trained on |
|---|---|---|
{figures}

Held-out captions exactly right after the prefix "An image of": {prefix:.1%}; {n_questions} questions on held-out pictures:
{asked:.1%}; facts: {facts:.1%}. `python demo/training/train_captioner.py --evaluate` computes these again; the training's
log is `training_log.jsonl`.
"""


def write_readme(folder: Path, figures: dict[str, Any]) -> None:
    """Write the model's README: what it is, its prompts, its accuracy."""
    scene = make_scene(5, 2)
    held_out, trained = figures["held_out_captions"], figures["trained_captions"]
    text = README.format(
        phrasings="\n".join(f"| {' / '.join(prompts)} | {phrase(scene)} |" for prompts, phrase in PHRASINGS.items()),
        looks=", ".join(sorted(map(" ".join, HELD_OUT_LOOKS))), held_out_share=HELD_OUT_SHARE,
        n_pictures=held_out["n_pictures"], n_captions=held_out["n_captions"],
        figures="\n".join(f"| {name} | {held_out[name]:.1%} | {trained[name]:.1%} |" for name in trained if "n_" not in name),
        prefix=figures["held_out_captions_after_prefix"], n_questions=figures["held_out_questions"]["n_questions"],
        asked=figures["held_out_questions"]["right"], facts=figures["facts"]["right"], n_facts=figures["facts"]["n_facts"],
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")

"""Trains the embedded captioner: a small LLaVA that captions the pictures drawn by pictures.py.

    python demo/training/train_captioner.py --out demo/models/shapes-llava
    python demo/training/train_captioner.py --out demo/models/shapes-llava --evaluate

A step sees new pictures, each with two captions in different phrasings and three questions (picture_words.py), and facts
asked without a picture. The vision tower is also trained to tell the object on each patch, and the language model to name it
there (the embedded model: from step 3600 on, see its log). Eleven of the 72 combinations of colour and shape, and one in eight
pairs of the others, are never trained on. The log ends with the accuracy of the saved model (float16) on pictures of these,
loaded and run by plain transformers. `--evaluate` computes it again.

A run that was stopped resumes from its last state in build/: a step's batch depends on its number only. The learning rate falls
over the last half, so a state from before that can be resumed with fewer --steps than it was begun with.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from captioner import IMAGE, N_PATCHES, build_model, make_processor, save
from captioner_figures import evaluate, write_readme
from picture_lessons import N_CAPTIONS, Packer, PatchTeacher, Turn, as_pixels, draw_turns, look_of_patches
from picture_words import FACTS
from scenes import HELD_OUT_LOOKS, in_unnamed_colours, make_scene
from training import Schedule, Training, open_log, state_path, train

if TYPE_CHECKING:
    from scenes import Scene
    from training import Log
    from transformers import LlavaForConditionalGeneration, LlavaProcessor


class PatchWords(NamedTuple):
    """Token ids of the colours' and of the shapes' names, in the order of their lists."""

    colours: torch.Tensor
    shapes: torch.Tensor


N_PICTURES, N_NAMED, N_FACTS = 24, 12, 24
"""Pictures and facts per step. Pictures that are not named have colours without a name, and train everything but colours.

They and the disturbed words (picture_lessons.py) are the reason that held-out looks are captioned as well as others: without
them, 95 % of the captions of single objects were right for looks that had been trained on, and 65 % for others. After "blue"
the model named no shape that it had not seen in blue."""
WEIGHTS = {"patches": 0.3, "words": 0.2, "pictures": 1.0, "facts": 0.1}
"""Weights of the losses."""


def look_at(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of the vision tower and of the projector at the pictures' patches, each [picture, patch, width]."""
    seen = model.model.get_image_features(pixel_values=pixels)
    return seen.last_hidden_state[:, 1:], torch.stack(list(seen.pooler_output))


def read(
    model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor], patches: torch.Tensor | None
) -> torch.Tensor:
    """The language model's last hidden states, [row, position, width].

    `patches` is the projector's output, [picture, patch, width].
    """
    embedded = model.get_input_embeddings()(batch["ids"])
    if patches is not None:
        begin = first_patch(batch)
        embedded = torch.cat([embedded[:, :begin], patches.to(embedded.dtype), embedded[:, begin + N_PATCHES :]], dim=1)
    hidden: torch.Tensor = model.model.language_model(
        inputs_embeds=embedded, attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    return hidden


def first_patch(batch: dict[str, torch.Tensor]) -> int:
    """The position of the first patch in every row."""
    return int((batch["ids"][0] == IMAGE).nonzero()[0])


def predict(
    model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor], patches: torch.Tensor | None
) -> torch.Tensor:
    """The logits at the targets, [target, vocabulary], in the order of the batch."""
    logits: torch.Tensor = model.lm_head(read(model, batch, patches)[batch["targets"] >= 0])
    return logits.float()


def target_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean cross-entropy of the targets."""
    return torch.nn.functional.cross_entropy(logits, batch["targets"][batch["targets"] >= 0])


def name_patches(
    model: LlavaForConditionalGeneration,
    hidden: torch.Tensor,
    words: PatchWords,
    named: list[Scene],
    unnamed: list[Scene],
) -> torch.Tensor:
    """The mean cross-entropy of the words for the objects on the patches: their shapes, and in named scenes their colours.

    `hidden` is [picture, patch, width], the language model's at the patches. Captions alone do not determine what its
    last layers compute there; in large models of this family the unembedding gives the objects' names there.
    """
    words_at_patches = model.lm_head(hidden)
    picture, patch, colour, shape = look_of_patches(named + unnamed)
    logits = words_at_patches[picture, patch].float()
    is_named = picture < len(named)
    of_colours = torch.nn.functional.cross_entropy(logits[is_named], words.colours[colour[is_named]])
    return of_colours + torch.nn.functional.cross_entropy(logits, words.shapes[shape])


@torch.no_grad()
def quick_check(
    model: LlavaForConditionalGeneration, packer: Packer, held_out: bool, n_pictures: int
) -> dict[str, float]:
    """The share of captions and of questions, and by kind of picture, whose every token is the most probable one.

    That is the share that greedy decoding gives exactly.
    """
    scenes = [make_scene(10**6, i, held_out) for i in range(n_pictures)]
    right: dict[str, list[bool]] = defaultdict(list)
    for first in range(0, n_pictures, 32):
        rows = scenes[first : first + 32]
        turns = [draw_turns(scene, np.random.default_rng(first + i)) for i, scene in enumerate(rows)]
        batch = packer.pack(turns, N_PATCHES)
        asked = batch["targets"] >= 0
        hit = torch.ones_like(asked)
        hit[asked] = predict(model, batch, look_at(model, as_pixels(rows))[1]).argmax(-1) == batch["targets"][asked]
        for row, scene in enumerate(rows):
            for number in range(1, len(turns[row]) + 1):
                name = f"caption, {scene.kind}" if number <= N_CAPTIONS else "question"
                right[name].append(bool(hit[row][batch["numbers"][row] == number].all()))
    return {name: round(sum(r) / len(r), 4) for name, r in sorted(right.items())}


class Lessons:
    """The examples of a step, and the losses of the model on them."""

    def __init__(self, model: LlavaForConditionalGeneration, teacher: PatchTeacher, packer: Packer) -> None:
        self.model, self.teacher, self.packer = model, teacher, packer
        self.words = PatchWords(*(torch.tensor(ids) for ids in packer.kinds[:2]))
        self.facts = list(itertools.starmap(Turn, FACTS.items()))

    def add_gradients(self, step: int) -> dict[str, float]:
        """Add the gradients of a step's batch; returns its losses by name."""
        model, packer, facts = self.model, self.packer, self.facts
        generator = np.random.default_rng([1, step])
        scenes = [make_scene(1, step * N_PICTURES + i) for i in range(N_PICTURES)]
        named, unnamed = scenes[:N_NAMED], [in_unnamed_colours(scene, generator) for scene in scenes[N_NAMED:]]
        turns = [draw_turns(scene, generator, disturbed=True) for scene in named]
        turns += [draw_turns(scene, generator, colourless=True) for scene in unnamed]
        shown = packer.pack(turns, N_PATCHES, generator)
        told = packer.pack([[facts[i] for i in generator.choice(len(facts), N_FACTS, replace=False)]], 0)
        with torch.autocast("cpu", torch.bfloat16):
            seen, patches = look_at(model, as_pixels(named + unnamed))
            hidden = read(model, shown, patches)
            begin = first_patch(shown)
            losses = {
                "patches": self.teacher(seen, named, unnamed),
                "words": name_patches(model, hidden[:, begin : begin + N_PATCHES], self.words, named, unnamed),
                "pictures": target_loss(model.lm_head(hidden[shown["targets"] >= 0]).float(), shown),
                "facts": target_loss(predict(model, told, None), told),
            }
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        return {name: loss.item() for name, loss in losses.items()}


def learn(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, arguments: argparse.Namespace, log: Log
) -> None:
    """Train from the last saved state on; the model is saved with every state, so that a stopped run leaves a model."""
    model.set_attn_implementation("eager")  # a third less time than with the fused attention's backward pass
    teacher, packer = PatchTeacher(model.config.vision_config.hidden_size), Packer(processor.tokenizer)
    training = Training(model, Schedule(arguments.rate, arguments.steps, 100, arguments.steps // 2), teacher)

    def check() -> dict[str, float]:
        save(model, processor, arguments.out)
        return quick_check(model, packer, held_out=True, n_pictures=128)

    train(training, state_path(arguments.out), Lessons(model, teacher, packer).add_gradients, check, log)


def main() -> None:
    """Train, save as float16 safetensors, evaluate the saved model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "models" / "shapes-llava")
    parser.add_argument("--steps", type=int, default=2600, help="number of training steps")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--start", type=Path, help="start from the weights of the model in this folder")
    parser.add_argument("--evaluate", action="store_true", help="only compute the accuracy of the saved model")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        print(json.dumps(evaluate(arguments.out), indent=1))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    processor = make_processor()
    model = build_model(len(processor.tokenizer))
    if arguments.start is not None:
        model.load_state_dict(type(model).from_pretrained(arguments.start, dtype=torch.float32).state_dict())
    about = {
        "vocabulary": len(processor.tokenizer), "facts": len(FACTS), "held_out": sorted(map(" ".join, HELD_OUT_LOOKS)),
        "steps": arguments.steps, "pictures_per_step": N_PICTURES,
    }  # fmt: skip
    with open_log(arguments.out, model, **about) as log:
        learn(model, processor, arguments, log)
        save(model, processor, arguments.out)
        figures = evaluate(arguments.out)
        log({"saved_model": figures})
        write_readme(arguments.out, figures)


if __name__ == "__main__":
    main()

"""The training examples of the demo's captioner: turns about pictures, packed into rows, and the objects on each patch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from captioner import BOS, EOS, IMAGE, PAD, PATCH
from picture_words import PHRASINGS, colour_questions, plural, questions, shape_questions, true_looks
from pictures import draw, things_of_patches
from scenes import COLOURS, SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scenes import Scene
    from transformers import PreTrainedTokenizerFast

N_CAPTIONS, N_QUESTIONS = 2, 3
"""Captions and questions per picture and step."""
NOISE = 0.25
"""The share of colour and shape words that are replaced by others in the model's input, not in its targets."""


class Turn(NamedTuple):
    """A prompt and its answer; if `colourless`, words for colours are no targets."""

    prompt: str
    answer: str
    colourless: bool = False


def draw_turns(
    scene: Scene, generator: np.random.Generator, disturbed: bool = False, colourless: bool = False
) -> list[Turn]:
    """Random captions of different phrasings, and random questions; for a `colourless` scene no question that names a colour.

    If `disturbed`, some questions for the colour or the shape of a single object name it by another word, so that the picture
    decides the answer, and not which colours and shapes occurred together.
    """
    turns = []
    for i in generator.choice(len(PHRASINGS), N_CAPTIONS, replace=False):
        prompts, phrase = list(PHRASINGS.items())[i]
        turns.append(Turn(prompts[generator.integers(len(prompts))], phrase(scene), colourless))
    asked = questions(scene, generator)
    if colourless:
        asked = [(wordings, answer) for wordings, answer in asked if not names_colour(f"{wordings[0]} {answer}")]
    for i in generator.choice(len(asked), min(N_QUESTIONS, len(asked)), replace=False):
        wordings, answer = asked[i]
        if disturbed and len(true_looks(scene)) == 1 and generator.random() < NOISE:
            if answer in COLOURS:
                wordings = colour_questions(str(generator.choice(SHAPES)))
            elif answer in SHAPES:
                wordings = shape_questions(str(generator.choice(list(COLOURS))))
        turns.append(Turn(wordings[generator.integers(len(wordings))], answer))
    return turns


def names_colour(text: str) -> bool:
    """Whether one of the words is a colour's name."""
    return any(word.strip(".,?") in COLOURS for word in text.split())


class Packer:
    """Turns to tensors: all turns of a picture are one row, and each attends to the picture and itself only."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Encodings are cached, because most turns recur."""
        encode = tokenizer.backend_tokenizer.encode
        self.encode = functools.cache(lambda text: encode(text, add_special_tokens=False).ids)
        self.start = [BOS, *self.encode("USER:")]
        kinds = (tuple(COLOURS), SHAPES, tuple(plural(shape) for shape in SHAPES))
        self.kinds = [[self.encode(word)[0] for word in words] for words in kinds]
        self.colour_ids = {self.encode(word)[0] for word in (*COLOURS, "a", "an")}

    def disturb(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        """The ids with some words for a colour or a shape replaced by others of their kind.

        Otherwise the model learns that after "blue" no shape follows which it never saw in blue.
        """
        kind_of = {i: kind for kind in self.kinds for i in kind}
        return [
            kind_of[i][generator.integers(len(kind_of[i]))] if i in kind_of and generator.random() < NOISE else i
            for i in ids
        ]

    def pack(
        self, rows: list[list[Turn]], n_patches: int, generator: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """ids, positions, targets (-1 for none), turn numbers [row, position]; mask [row, 1, position, position].

        The mask is what is added to the attention's logits. Turn numbers count from 1; the start that a row's turns share
        is 0, padding is -1. With a generator, the answers are disturbed in the input, not in the targets.
        """
        start = self.start + [IMAGE] * n_patches
        packed = []
        for turns in rows:
            ids, positions, targets, numbers = list(start), list(range(len(start))), [-1] * len(start), [0] * len(start)
            for number, turn in enumerate(turns, 1):
                prompt = self.encode(turn.prompt) + self.encode("ASSISTANT:")
                answer = self.encode(turn.answer)
                ids += prompt + (self.disturb(answer, generator) if generator else answer)
                positions += range(len(start), len(start) + len(prompt) + len(answer))
                asked = [-1 if turn.colourless and i in self.colour_ids else i for i in answer]
                targets += [-1] * (len(prompt) - 1) + asked + [EOS]
                numbers += [number] * (len(prompt) + len(answer))
            packed.append((ids, positions, targets, numbers))
        length = max(len(ids) for ids, *_ in packed)
        filled = [
            torch.tensor([row[i] + [pad] * (length - len(row[i])) for row in packed])
            for i, pad in enumerate((PAD, 0, -1, -1))
        ]
        turn = filled[3]
        seen = (turn[:, None, :] == turn[:, :, None]) | (turn[:, None, :] == 0)
        seen &= torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, -1e9)
        return dict(zip(("ids", "positions", "targets", "numbers"), filled, strict=True)) | {"mask": mask[:, None]}


def as_pixels(scenes: Iterable[Scene]) -> torch.Tensor:
    """The drawn pictures as the processor gives them, float32 of shape [picture, colour, row, column]."""
    pictures = np.stack([draw(scene) for scene in scenes])
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


class PatchTeacher(torch.nn.Module):
    """Trains the vision tower to tell colour and shape of the object on each patch; not part of the model.

    A LLaVA's tower is pretrained; this one starts from random weights, and from captions alone it learns shapes slowly.
    """

    def __init__(self, width: int) -> None:
        """Two linear probes of the tower's output, which has `width` features."""
        super().__init__()
        self.colour = torch.nn.Linear(width, len(COLOURS))
        self.shape = torch.nn.Linear(width, len(SHAPES))

    def forward(self, seen: torch.Tensor, coloured: list[Scene], shaped: list[Scene]) -> torch.Tensor:
        """The mean cross-entropy of the colours of the first scenes seen plus that of the shapes of the last ones.

        `seen` is the tower's output, [picture, patch, width].
        """
        picture, patch, colour, _ = look_of_patches(coloured)
        loss = torch.nn.functional.cross_entropy(self.colour(seen[picture, patch]).float(), colour)
        picture, patch, _, shape = look_of_patches(shaped)
        features = seen[-len(shaped) :][picture, patch]
        return loss + torch.nn.functional.cross_entropy(self.shape(features).float(), shape)


def look_of_patches(scenes: list[Scene]) -> torch.Tensor:
    """For every patch with an object: numbers of the picture, the patch, the colour and the shape, one row each."""
    colours, shapes = list(COLOURS), list(SHAPES)
    looks = []
    for i, scene in enumerate(scenes):
        for patch, thing in enumerate(things_of_patches(scene, PATCH).ravel().tolist()):
            if thing >= 0:
                look = scene.things[thing].look
                looks.append((i, patch, colours.index(look.colour), shapes.index(look.shape)))
    return torch.tensor(looks).T

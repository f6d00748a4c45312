"""Text about the demo's pictures: captions in six phrasings, questions with answers, and facts asked without a picture.

Every prompt has one phrasing of the answer, so that the right caption is unique. The prompts of a phrasing, and the wordings of
a question, mean the same. `read_content` parses a caption in any phrasing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scenes import COLOURS, HELD_OUT_LOOKS, PLACES, RADII, SHAPES, Look, Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

NUMBERS: Final = ("zero", "one", "two", "three")
PAPER_PROMPT: Final = "Describe the image in few words."
"""The prompt of the paper on multi-modal neurons; its answer begins "An image of", as there."""

WHERE: Final = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "centre": "in the centre",
}  # fmt: skip
"""A single object's place → its wording."""
BESIDE: Final = {"left": "left of", "above": "above"}


def a(words: str) -> str:
    """The words with their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def noun_phrase(scene: Scene) -> str:
    """As in "a large red circle on the left", "two red circles", "a red circle left of a blue square"."""
    first = scene.things[0]
    looks = [" ".join(thing.look) for thing in scene.things]
    if scene.kind == "single":
        return f"a {first.size} {looks[0]} {WHERE[scene.place]}"
    if scene.kind == "several":
        return f"{NUMBERS[len(looks)]} {first.look.colour} {plural(first.look.shape)}"
    return f"{a(looks[0])} {BESIDE[scene.place]} {a(looks[1])}"


def there_is(scene: Scene) -> str:
    """A sentence of "There is" or "There are" and the noun phrase."""
    return f"There {'are' if scene.kind == 'several' else 'is'} {noun_phrase(scene)}."


def shapes_first(scene: Scene) -> str:
    """As in "A circle on the left that is large and red.": the shape before the colour."""
    first = scene.things[0].look
    if scene.kind == "single":
        return f"A {first.shape} {WHERE[scene.place]} that is {scene.things[0].size} and {first.colour}."
    if scene.kind == "several":
        return f"{NUMBERS[len(scene.things)].capitalize()} {plural(first.shape)} that are {first.colour}."
    second = scene.things[1].look
    return f"A {first.shape} that is {first.colour} {BESIDE[scene.place]} a {second.shape} that is {second.colour}."


def plain_list(scene: Scene) -> str:
    """As in "red circle, blue square"."""
    if scene.kind == "several":
        return noun_phrase(scene)
    return ", ".join(" ".join(thing.look) for thing in scene.things)


PHRASINGS: Final[dict[tuple[str, ...], Callable[[Scene], str]]] = {
    (PAPER_PROMPT, "Briefly describe the image.", "Write a short description of the image."):
        lambda scene: f"An image of {noun_phrase(scene)}.",
    ("What is in the picture?", "What does the picture contain?", "What is there in the picture?"): there_is,
    ("Caption this image.", "Write a caption.", "Give the image a caption."): noun_phrase,
    ("What do you see?", "Tell me what you see.", "What can you see here?"): lambda scene: f"I see {noun_phrase(scene)}.",
    ("Describe the shapes.", "Which shapes are there?", "What shapes does the image show?"): shapes_first,
    ("List the objects.", "Name the objects.", "Make a list of the objects."): plain_list,
}  # fmt: skip
"""The prompts of a phrasing → the caption."""

CAPTIONS: Final = {prompt: phrase for prompts, phrase in PHRASINGS.items() for prompt in prompts}


def true_looks(scene: Scene) -> list[Look]:
    """The looks of a scene, each once, in order."""
    return list(dict.fromkeys(thing.look for thing in scene.things))


def other_look(scene: Scene, generator: np.random.Generator) -> Look:
    """A look that the scene does not show, with one word of a look that it shows, and not held out."""
    shown = true_looks(scene)
    if len(shown) == 2 and generator.random() < 0.5:  # the colour of one with the shape of the other
        swapped = Look(shown[0].colour, shown[1].shape)
        if swapped not in shown and swapped not in HELD_OUT_LOOKS:
            return swapped
    while True:
        look = shown[int(generator.integers(len(shown)))]
        if generator.random() < 0.5:
            look = look._replace(colour=tuple(COLOURS)[int(generator.integers(len(COLOURS)))])
        else:
            look = look._replace(shape=SHAPES[int(generator.integers(len(SHAPES)))])
        if look not in shown and look not in HELD_OUT_LOOKS:
            return look


def questions(scene: Scene, generator: np.random.Generator) -> list[tuple[tuple[str, ...], str]]:
    """The questions about a scene that have one right answer: two or three wordings, and the answer."""
    looks = true_looks(scene)
    number = NUMBERS[len(scene.things)]
    false = other_look(scene, generator)
    asked: list[tuple[tuple[str, ...], str]] = [
        (("How many objects are there?", "Count the objects.", "What is the number of objects?"), number)
    ]
    for look in looks:
        if sum(look.shape == other.shape for other in looks) == 1:
            asked.append((colour_questions(look.shape), look.colour))
        if sum(look.colour == other.colour for other in looks) == 1:
            asked.append((shape_questions(look.colour), look.shape))
        asked.append((yes_or_no(look), "yes"))
    asked.append((yes_or_no(false), "no"))
    shape = looks[0].shape if false.shape in (look.shape for look in looks) else false.shape
    count = sum(thing.look.shape == shape for thing in scene.things)
    asked.append(((f"How many {plural(shape)} are there?", f"Count the {plural(shape)}."), NUMBERS[count]))
    if scene.kind != "several":
        for i, thing in enumerate(scene.things):
            if sum(thing.look.shape == other.shape for other in looks) == 1:
                name = thing.look.shape
                sizes = (f"Is the {name} small or large?", f"How large is the {name}?", f"What size has the {name}?")
                asked.append((sizes, thing.size))
                places = (f"Where is the {name}?", f"In which part is the {name}?")
                asked.append((places, place_of(scene, i)))
    return asked


def colour_questions(shape: str) -> tuple[str, ...]:
    """Three wordings of the question for a shape's colour."""
    return f"What colour is the {shape}?", f"Which colour has the {shape}?", f"Tell me the colour of the {shape}."


def shape_questions(colour: str) -> tuple[str, ...]:
    """Three wordings of the question for the shape that has a colour."""
    return f"What shape is {colour}?", f"Which shape is the {colour} one?", f"Tell me the shape of the {colour} object."


def yes_or_no(look: Look) -> tuple[str, ...]:
    """Two wordings of the question whether there is such an object."""
    words = f"{look.colour} {look.shape}"
    return f"Is there {a(words)}?", f"Do you see {a(words)}?"


def place_of(scene: Scene, i: int) -> str:
    """Where object `i` of a single or a pair is."""
    if scene.kind == "single":
        return scene.place
    return {"left": ("left", "right"), "above": ("top", "bottom")}[scene.place][i]


FACTS: Final = {
    "How many sides has a triangle?": "three", "How many sides has a square?": "four", "How many corners has a star?": "five",
    "How many sides has a hexagon?": "six", "How many sides has a pentagon?": "five",
    "How many sides has an octagon?": "eight", "How many sides has a diamond?": "four",
    "How many sides has a circle?": "none", "How many corners has a heart?": "one",
    "Which shape has three sides?": "triangle", "Which shape is quite round?": "circle", "Which shape has a hole?": "ring",
    "Which shape means love?": "heart", "Which shape shines at night?": "star", "Which shape means plus?": "cross",
    "Which shape has four equal sides and angles?": "square", "Which shape is a gem?": "diamond",
    "Which shape is a wheel?": "circle", "Which shape is a wedding gift?": "ring",
    "Which shape is a pyramid's face?": "triangle", "What colour is grass?": "green", "What colour is blood?": "red",
    "What colour is the sky?": "blue", "What colour is a banana?": "yellow", "What colour is snow?": "white",
    "What colour is coal?": "black", "What colour is chocolate?": "brown", "What colour is a carrot?": "orange",
    "What colour is a plum?": "purple", "What colour is a flamingo?": "pink", "What colour is a lemon?": "yellow",
    "What colour is milk?": "white", "What colour is a ripe tomato?": "red", "What colour is a leaf?": "green",
    "What colour is the sea?": "blue", "What colour is a pig?": "pink", "What colour is wood?": "brown",
    "What colour is a pumpkin?": "orange", "What colour is lavender?": "purple", "What colour is an elephant?": "grey",
    "What colour is a crow?": "black", "What colour is a frog?": "green", "What colour is a fire engine?": "red",
    "What colour is the sun?": "yellow", "What do red and yellow make?": "orange", "What do blue and yellow make?": "green",
    "What do red and blue make?": "purple", "What do red and white make?": "pink", "What do black and white make?": "grey",
    "What do red and green make?": "brown", "What is the opposite of large?": "small",
    "What is the opposite of small?": "large", "What is the opposite of left?": "right",
    "What is the opposite of right?": "left", "What is the opposite of top?": "bottom",
    "What is the opposite of bottom?": "top", "What is the opposite of yes?": "no", "What is the opposite of no?": "yes",
    "What is the opposite of above?": "below", "What is the opposite of black?": "white",
    "What is the opposite of white?": "black", "What is the opposite of hot?": "cold", "What is the opposite of cold?": "hot",
    "What is the opposite of day?": "night", "What is the opposite of night?": "day", "What comes after one?": "two",
    "What comes after two?": "three", "What comes after three?": "four", "What comes after four?": "five",
    "What comes after five?": "six", "What comes after six?": "seven", "What comes after seven?": "eight",
    "What comes before two?": "one", "What comes before three?": "two", "What comes before four?": "three",
    "What comes before five?": "four", "What comes before one?": "zero", "How many legs has a dog?": "four",
    "How many legs has a bird?": "two", "How many legs has a spider?": "eight", "How many legs has an ant?": "six",
    "How many legs has a fish?": "none", "How many eyes has a cat?": "two", "How many wheels has a car?": "four",
    "How many wheels has a bicycle?": "two", "How many wheels has a tricycle?": "three", "Which animal barks?": "dog",
    "Which animal purrs?": "cat", "Which animal swims?": "fish", "Which animal flies?": "bird",
}  # fmt: skip
"""Asked without a picture → the answer."""


@dataclass(frozen=True)
class Content:
    """The content of a caption in any phrasing; what it leaves out is empty."""

    colours: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    number: tuple[str, ...] = ()


def read_content(caption: str) -> Content:
    """The colours, shapes, sizes, places or relation, and number that a caption names, each in their order."""
    words = re.findall(r"[a-z]+", caption.lower())
    singular = {plural(shape): shape for shape in SHAPES}
    words = [singular.get(word, word) for word in words]

    def among(known: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word for word in words if word in known)

    return Content(
        among(tuple(COLOURS)), among(SHAPES), among(tuple(RADII)), among((*PLACES, *BESIDE)), among(NUMBERS[2:])
    )

"""The scenes of the demo's pictures before they are drawn: one to three coloured shapes, random from a seed.

Eleven of the 72 combinations of colour and shape, and one in eight pairs of the others, are held out by hash: training never
shows them.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

SIDE: Final = 64
"""Width and height of a picture in pixels."""

COLOURS: Final = {
    "red": (215, 30, 35), "green": (35, 165, 55), "blue": (35, 70, 220), "yellow": (245, 220, 40),
    "orange": (250, 130, 20), "purple": (130, 40, 170), "pink": (250, 140, 190), "brown": (120, 70, 30),
    "white": (250, 250, 250),
}  # fmt: skip
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
RADII: Final = {"small": (6.0, 7.5), "large": (11.0, 13.0)}
PLACES: Final = {"left": (15, 32), "right": (49, 32), "top": (32, 15), "bottom": (32, 49), "centre": (32, 32)}
"""Where a single object's centre lies, ± `WANDER` pixels."""
WANDER: Final = 4.0
KINDS: Final = ("single", "several", "pair")
KIND_SHARES: Final = (0.4, 0.2, 0.4)
UNNAMED_DISTANCE: Final = 65
"""Minimum Euclidean distance in RGB, of 255 levels each, from every named colour and from the ground."""
N_HELD_OUT: Final = 11
HELD_OUT_SHARE: Final = 8
"""One in `HELD_OUT_SHARE` pairs of looks is never seen in training."""


class Look(NamedTuple):
    """The colour and shape that name an object."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Thing:
    """An object of a picture: its centre and radius in pixels, x to the right and y down, and the colour as drawn."""

    look: Look
    size: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    `place` is that of a single object, a key of `PLACES`; of a pair "left" (the first object is left of the second) or
    "above"; of several equal objects empty. `ground` is the grey at the top left and at the bottom right corner.
    """

    kind: str
    things: tuple[Thing, ...]
    place: str
    ground: tuple[float, float]
    noise: float
    noise_seed: int


def hash_of(*words: str) -> int:
    """A number that depends on the words only, the same on every machine."""
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:8], "big")


def held_out_looks() -> frozenset[Look]:
    """The looks that training never shows: the first by hash, with no colour or shape more than twice."""
    looks: list[Look] = []
    for look in sorted(itertools.starmap(Look, itertools.product(COLOURS, SHAPES)), key=lambda look: hash_of(*look)):
        if all(sum(word in other for other in looks) < 2 for word in look):
            looks.append(look)
    return frozenset(looks[:N_HELD_OUT])


HELD_OUT_LOOKS: Final = held_out_looks()


def is_held_out(scene: Scene) -> bool:
    """Whether training never shows such a scene: it has a held-out look, or two looks whose pair is held out."""
    looks = sorted({thing.look for thing in scene.things})
    if any(look in HELD_OUT_LOOKS for look in looks):
        return True
    return len(looks) == 2 and hash_of(*looks[0], *looks[1]) % HELD_OUT_SHARE == 0


class SceneMaker:
    """Makes random scenes: everything about them comes from one generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        """`generator` advances with every scene."""
        self.generator = generator

    def choose(self, among: Any) -> Any:
        """A random element of a sequence."""
        return among[int(self.generator.integers(len(among)))]

    def thing(self, look: Look, size: str, x: float, y: float, radius: float) -> Thing:
        """The object, in its colour with a small random deviation."""
        rgb = np.clip(np.array(COLOURS[look.colour]) + self.generator.uniform(-12, 12, 3), 0, 255)
        return Thing(look, size, x, y, radius, tuple(rgb.tolist()))

    def look(self) -> Look:
        """A random colour and shape."""
        return Look(self.choose(tuple(COLOURS)), self.choose(SHAPES))

    def sized(self) -> tuple[str, float]:
        """A random size and radius."""
        size = self.choose(tuple(RADII))
        return size, self.generator.uniform(*RADII[size])

    def single(self) -> tuple[str, tuple[Thing, ...]]:
        """One object at one of the five places."""
        place = self.choose(tuple(PLACES))
        size, radius = self.sized()
        x, y = (middle + self.generator.uniform(-WANDER, WANDER) for middle in PLACES[place])
        x, y = (min(max(centre, radius + 1), SIDE - radius - 1) for centre in (x, y))
        return place, (self.thing(self.look(), size, x, y, radius),)

    def several(self) -> tuple[str, tuple[Thing, ...]]:
        """Two or three equal objects that do not touch."""
        look, size, number = self.look(), "small", self.choose((2, 3))
        radius = self.generator.uniform(*RADII[size])
        if self.generator.random() < 0.3:
            size, radius, number = "large", RADII["large"][0], 2
        centres: list[np.ndarray] = []
        while len(centres) < number:
            centre = self.generator.uniform(radius + 2, SIDE - radius - 2, 2)
            if all(np.hypot(*(centre - other)) > 2.3 * radius for other in centres):
                centres.append(centre)
            elif self.generator.random() < 0.05:  # the first may leave no room for the others
                centres.clear()
        return "", tuple(self.thing(look, size, *centre.tolist(), radius) for centre in centres)

    def pair(self) -> tuple[str, tuple[Thing, ...]]:
        """Two objects of different looks, one left of the other or above it; they may overlap, either being in front."""
        first, second = self.look(), self.look()
        while second == first:
            second = self.look()
        (one, r), (other, s) = self.sized(), self.sized()
        room = SIDE - 2 - r - s
        apart = self.generator.uniform(min(0.85 * (r + s), room - 1), room)
        begin = 1 + r + self.generator.uniform(0, room - apart)
        across = 32 + self.generator.uniform(-12, 12)
        lean = self.generator.uniform(-0.3, 0.3) * apart
        at = [(begin, across - lean / 2), (begin + apart, across + lean / 2)]
        at = [(along, min(max(a, q + 1), SIDE - 1 - q)) for (along, a), q in zip(at, (r, s), strict=True)]
        place = self.choose(("left", "above"))
        if place == "above":
            at = [(x, y) for y, x in at]
        return place, (self.thing(first, one, *at[0], r), self.thing(second, other, *at[1], s))

    def scene(self) -> Scene:
        """A random scene."""
        kind = str(self.generator.choice(KINDS, p=KIND_SHARES))
        place, things = getattr(self, kind)()
        grey = self.generator.uniform(45, 175)
        ground = (grey, grey + self.generator.uniform(-25, 25))
        noise = self.generator.uniform(6, 22) if self.generator.random() < 0.25 else 0.0
        return Scene(kind, things, place, ground, noise, int(self.generator.integers(2**31)))


def in_unnamed_colours(scene: Scene, generator: np.random.Generator) -> Scene:
    """The scene with every look in a colour that is none of `COLOURS`, nor near one, nor near the ground's grey."""
    taken = np.array([*COLOURS.values(), [sum(scene.ground) / 2] * 3])
    colours: dict[Look, tuple[float, float, float]] = {}
    for look in dict.fromkeys(thing.look for thing in scene.things):
        rgb = taken[0]
        while np.linalg.norm(taken - rgb, axis=1).min() < UNNAMED_DISTANCE:
            rgb = generator.uniform(0, 255, 3)
        colours[look] = (float(rgb[0]), float(rgb[1]), float(rgb[2]))
    return replace(scene, things=tuple(replace(thing, rgb=colours[thing.look]) for thing in scene.things))


def make_scene(seed: int, number: int, held_out: bool = False, kind: str | None = None) -> Scene:
    """Scene `number` of a seed: the first random one that is, or is not, held out."""
    maker = SceneMaker(np.random.default_rng([seed, number]))
    while True:
        scene = maker.scene()
        if is_held_out(scene) == held_out and kind in (None, scene.kind):
            return scene

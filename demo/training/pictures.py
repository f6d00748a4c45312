"""Draws the demo captioner's pictures: one to three coloured shapes on a grey ground, 64 by 64 pixels, and their labels.

    python demo/training/pictures.py FOLDER --number 1000 --seed 0 [--held-out]

makes `FOLDER/000.png` … and `FOLDER/images.jsonl`, one line per picture: image, prompt, caption; the labels kind, shape,
colour, size, place, number, held_out; and objects, each with its box in pixels, `[left, top, right, bottom]`, right and bottom
exclusive. Picture i of a seed is the same whatever the number of pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from picture_words import CAPTIONS, PAPER_PROMPT, PHRASINGS
from PIL import Image
from scenes import KINDS, SIDE, is_held_out, make_scene

if TYPE_CHECKING:
    from scenes import Scene, Thing


def signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The distance of points to a shape of radius about 1 around the origin, negative inside; v points down."""
    if shape == "circle":
        return np.hypot(u, v) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.74) - 0.24
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if shape == "diamond":
        return (1.3 * np.abs(u) + np.abs(v) - 1.1) / math.hypot(1.3, 1)
    if shape == "triangle":
        low = v - 0.2
        return np.maximum(low, math.cos(math.pi / 6) * np.abs(u) - 0.5 * low) - 0.6
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 0.98, b - 0.34), np.maximum(b - 0.98, a - 0.34))
    if shape == "star":  # inside the star is inside at least four of the five half-planes
        turns = 2 * math.pi * np.arange(5) / 5
        planes = np.sin(turns)[:, None, None] * u + np.cos(turns)[:, None, None] * v
        return np.partition(planes, 3, axis=0)[3] - 0.36
    assert shape == "heart"  # a square on its corner, a disc on each of its upper sides
    low = v - 0.1
    a, b = (np.abs(u) + low) / math.sqrt(2), (np.abs(u) - low) / math.sqrt(2)
    square = np.maximum(np.abs(a), np.abs(b)) - 0.6
    return np.minimum(square, np.hypot(a, b - 0.6) - 0.6)


def coverage(thing: Thing) -> tuple[slice, slice, np.ndarray]:
    """The rows and columns around an object, and the share of each pixel there that it covers."""
    reach = 1.2 * thing.radius + 1
    rows = slice(max(0, int(thing.y - reach)), min(SIDE, int(thing.y + reach) + 1))
    columns = slice(max(0, int(thing.x - reach)), min(SIDE, int(thing.x + reach) + 1))
    u = (np.arange(columns.start, columns.stop) + 0.5 - thing.x) / thing.radius
    v = (np.arange(rows.start, rows.stop) + 0.5 - thing.y) / thing.radius
    distance = signed_distance(thing.look.shape, u[None, :], v[:, None]) * thing.radius
    return rows, columns, np.clip(0.5 - distance, 0, 1)


def box(thing: Thing) -> list[int]:
    """The smallest `[left, top, right, bottom]` around all of an object's pixels, hidden ones included."""
    rows, columns, share = coverage(thing)
    y, x = np.nonzero(share)
    left, top = columns.start, rows.start
    return [left + int(x.min()), top + int(y.min()), left + int(x.max()) + 1, top + int(y.max()) + 1]


def draw(scene: Scene) -> np.ndarray:
    """The picture, uint8 of shape [row, column, colour]; later objects cover earlier ones."""
    ramp = np.linspace(0, 1, SIDE)
    ground = scene.ground[0] + (scene.ground[1] - scene.ground[0]) * (ramp[:, None] + ramp[None, :]) / 2
    picture = np.repeat(ground[:, :, None], 3, axis=2)
    for thing in scene.things:
        rows, columns, share = coverage(thing)
        area = picture[rows, columns]
        area += share[:, :, None] * (np.array(thing.rgb) - area)
    if scene.noise:
        picture += scene.noise * np.random.default_rng(scene.noise_seed).standard_normal(picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def things_of_patches(scene: Scene, patch: int) -> np.ndarray:
    """The object on each patch, int of shape [patch row, patch column]: the one with most pixels, -1 for none.

    An object that covers less than an eighth of a patch does not count.
    """
    shares = np.zeros((len(scene.things) + 1, SIDE, SIDE))
    for i, thing in enumerate(scene.things):
        rows, columns, share = coverage(thing)
        shares[:i, rows, columns] *= 1 - share
        shares[i, rows, columns] = share
    n = SIDE // patch
    areas = shares.reshape(-1, n, patch, n, patch).mean(axis=(2, 4))
    areas[-1] = 1 / 8
    largest = areas.argmax(axis=0)
    return np.where(largest == len(scene.things), -1, largest)


def describe(scene: Scene, image: str, prompt: str, caption: str) -> dict[str, Any]:
    """The picture's line of `images.jsonl`; colour, shape and size are the first object's."""
    first = scene.things[0]
    objects = [
        {"shape": thing.look.shape, "colour": thing.look.colour, "size": thing.size, "box": box(thing)}
        for thing in scene.things
    ]
    return {
        "image": image, "prompt": prompt, "caption": caption, "kind": scene.kind, "shape": first.look.shape,
        "colour": first.look.colour, "size": first.size, "place": scene.place, "number": len(scene.things),
        "held_out": is_held_out(scene), "objects": objects,
    }  # fmt: skip


def write_pictures(
    folder: Path, number: int, seed: int = 0, held_out: bool = False, kind: str | None = None, prompt: str | None = None
) -> None:
    """Pictures 0 … number - 1 of a seed and their `images.jsonl`; without a prompt, the phrasings take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    in_turn = [prompts[0] for prompts in PHRASINGS]
    width = max(3, len(str(number - 1)))
    lines = []
    for i in range(number):
        scene = make_scene(seed, i, held_out, kind)
        image, asked = f"{i:0{width}d}.png", prompt or in_turn[i % len(in_turn)]
        Image.fromarray(draw(scene)).save(folder / image)
        lines.append(json.dumps(describe(scene, image, asked, CAPTIONS[asked](scene))) + "\n")
    (folder / "images.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write a folder of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=1000, help="number of pictures")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--held-out", action="store_true", help="only combinations that training never shows")
    parser.add_argument(
        "--kind", choices=KINDS, help="only single objects, several equal ones, or pairs of different ones"
    )
    parser.add_argument("--prompt", default=PAPER_PROMPT, help="prompt of every picture; '' uses all phrasings in turn")
    arguments = parser.parse_args()
    write_pictures(
        arguments.folder, arguments.number, arguments.seed, arguments.held_out, arguments.kind, arguments.prompt or None
    )


if __name__ == "__main__":
    main()

"""Maps of the demo captioner: by the gradient, by what neurons contribute, by bare activations, at random.

python benchmarks/tables/saliency.py [--model FOLDER] [--pictures 60] [--nouns 100] [--seeds 3] [--write]

Each seed draws its own pictures. Pointing game: the map's largest patch lies in the box of an object that the noun names.
Deletion and insertion are `engine.multimodal.faithfulness`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "demo" / "training")]

from picture_words import PAPER_PROMPT, plural  # noqa: E402 - the demo must be importable first
from pictures import write_pictures  # noqa: E402
from scenes import COLOURS, SHAPES  # noqa: E402

from actstore.display import terminal  # noqa: E402 - and the checkout
from actstore.engine.capture.api import capture  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.engine.models.vision.inputs import VisionProcessor  # noqa: E402
from actstore.engine.multimodal.faithfulness import KINDS, every_map, measure_faithfulness  # noqa: E402
from actstore.engine.multimodal.find import find_multimodal  # noqa: E402
from actstore.engine.multimodal.replay import Replay  # noqa: E402
from actstore.engine.multimodal.result import FindSettings  # noqa: E402
from benchmarks.marked import rewrite, spread, table  # noqa: E402
from benchmarks.tables.multimodal import MODEL, box_mask  # noqa: E402

if TYPE_CHECKING:
    from actstore.engine.models.load import LoadedModel

TITLES = {
    "gradient": "gradient of the noun's logit × vision embedding",
    "contribution": "contributions of the noun's neurons",
    "activation": "activations of the noun's neurons, as in the paper",
    "random": "random",
}
COLUMNS = ("pointing game", "inside above outside", "of the mask inside", "deletion", "insertion")


def run(folder: Path, seed: int, arguments: argparse.Namespace, model: LoadedModel) -> dict[str, dict[str, float]]:
    """One seed's figures: kind of map → measure → percent; `random` has the number of nouns and the area of the boxes too."""
    began = time.monotonic()
    write_pictures(folder / "pictures", arguments.pictures, 1000 + seed, prompt=PAPER_PROMPT)
    words = folder / "nouns.txt"
    words.write_text("\n".join([*COLOURS, *SHAPES, *map(plural, SHAPES)]))
    name, pictures = str(arguments.model), folder / "pictures"
    own = capture(name, pictures, folder / "store", generate=True, max_new_tokens=32, exemplars=0)
    result = find_multimodal(own, FindSettings(k=arguments.k, nouns=str(words)))
    lines = [json.loads(line) for line in (pictures / "images.jsonl").read_text().splitlines()]
    boxes = {
        number: box
        for number, noun in enumerate(result.nouns)
        if (box := box_mask(lines[result.captions[noun.caption].document], noun.word)).any()
    }
    drawn = np.random.default_rng(seed).permutation(list(boxes))[: arguments.nouns]
    replay = Replay(model, VisionProcessor.load(name), own)
    maps = every_map(result, replay, sorted(drawn.tolist()), seed)
    faithfulness = measure_faithfulness(result, replay, maps)
    figures: dict[str, dict[str, float]] = {}
    for kind, of_kind in maps.items():
        hits, above, covered = [], [], []
        for number, one in of_kind.items():
            box, pixels, mask = boxes[number], one.pixels(), one.mask()
            hits.append(box[np.unravel_index(np.nanargmax(pixels), pixels.shape)])
            above.append(float(np.nanmean(pixels[box])) > float(np.nanmean(pixels[~box])))
            covered.append(mask[box].sum() / max(mask.sum(), 1))
        shares = np.mean(hits), np.mean(above), np.mean(covered)
        curves = faithfulness[kind].deletion.mean(), faithfulness[kind].insertion.mean()
        figures[kind] = dict(zip(COLUMNS, (100 * float(value) for value in (*shares, *curves)), strict=True))
    n_nouns = len(maps["random"])
    figures["random"] |= {
        "nouns": float(n_nouns), "area": 100 * float(np.mean([boxes[number].mean() for number in maps["random"]]))
    }  # fmt: skip
    terminal.err.print(f"seed {seed}: {n_nouns} nouns, {time.monotonic() - began:.0f} s {figures}", markup=False)
    return figures


def main() -> None:
    """Run all seeds; print the table, and with --write put it between the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the captioner")
    parser.add_argument("--pictures", type=int, default=60, help="number of pictures per seed")
    parser.add_argument("--nouns", type=int, default=100, help="maximum number of nouns per seed")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--k", type=int, default=20, help="number of neurons per noun")
    parser.add_argument("--write", action="store_true", help="put the table between the marks in the documentation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    results = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="actstore-saliency-") as folder:
            results.append(run(Path(folder), seed, arguments, model))
    rows = [
        [TITLES[kind], *(spread([figures[kind][column] for figures in results]) for column in COLUMNS)]
        for kind in KINDS
    ]
    n_nouns, area = (spread([figures["random"][name] for figures in results]) for name in ("nouns", "area"))
    note = (
        f"`{arguments.model.name}`, {arguments.seeds} seeds of {arguments.pictures} pictures, {n_nouns} colours and shapes in "
        f"the captions that it gives, {arguments.k} neurons each; in percent, mean ± standard deviation over seeds. The boxes "
        f"of what a noun names take {area} % of the picture. Pointing game: the map's largest value lies in a box. Deletion, "
        "insertion: the noun's mean probability while patches are taken away, or given back, in the map's order, over that "
        "with all patches; deletion should be small, insertion large."
    )
    text = "\n\n".join([table(["map by", *COLUMNS], rows), note])
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        rewrite("saliency", text)


if __name__ == "__main__":
    main()

"""Multi-modal neurons of the demo captioner and of baselines: properties, causal effect, position of the maps.

python benchmarks/tables/multimodal.py [--model FOLDER] [--pictures 150] [--seeds 3] [--sigma 10] [--write]

Each seed draws its own pictures, noise and random neurons; a figure is the mean over seeds ± their standard deviation.
Nouns are the colours and shapes in the captions that the model itself gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "demo" / "training")]

from picture_words import PAPER_PROMPT, plural  # noqa: E402 - the demo must be importable first
from pictures import write_pictures  # noqa: E402
from scenes import COLOURS, SHAPES, SIDE  # noqa: E402

from actstore.display import terminal  # noqa: E402 - and the checkout
from actstore.engine.capture.api import capture  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.engine.models.vision.inputs import VisionProcessor  # noqa: E402
from actstore.engine.multimodal.causal import CausalSettings, causal_effect, choose_nouns  # noqa: E402
from actstore.engine.multimodal.find import draw_alike, find_multimodal  # noqa: E402
from actstore.engine.multimodal.gradients import rank_by_gradient  # noqa: E402
from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons  # noqa: E402
from actstore.engine.multimodal.permuted import permuted_rankings  # noqa: E402
from actstore.engine.multimodal.properties import measure, region_invariance  # noqa: E402
from actstore.engine.multimodal.replay import Replay  # noqa: E402
from actstore.engine.multimodal.result import FindSettings  # noqa: E402
from actstore.engine.multimodal.shuffle import shuffle_images  # noqa: E402
from benchmarks.marked import rewrite, spread, table  # noqa: E402

if TYPE_CHECKING:
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.multimodal.result import Multimodal
    from actstore.store.reader import Capture

MODEL: Final = ROOT / "demo" / "models" / "shapes-llava"
PATCH: Final = 8
"""Pixels of the captioner's patches."""
RANKINGS: Final = {
    "contribution": "contribution, with the final norm's gain",
    "paper": "contribution, the paper's form (A_gate, no gain)",
    "activation": "activation only",
    "gradient": "activation × gradient",
    "random": "random",
    "alike": "random, of the layers of the first",
}
EMBEDDINGS: Final = "region invariance, embeddings permuted"
PIXELS: Final = "region invariance, pixels shuffled"
PROPERTIES: Final = ("sensitivity", "cross-image invariance", EMBEDDINGS, PIXELS, "specificity", "discrimination")
EFFECTS: Final = ("noun gone", "answer changed", "probability drop")
Figures = dict[str, dict[str, float]]
"""Ranking → measure → value."""


def run(folder: Path, seed: int, arguments: argparse.Namespace, model: LoadedModel) -> tuple[Figures, dict[str, float]]:
    """One seed's figures, and those of its maps."""
    began = time.monotonic()
    write_pictures(folder / "pictures", arguments.pictures, 1000 + seed, prompt=PAPER_PROMPT)
    words = folder / "nouns.txt"
    words.write_text("\n".join([*COLOURS, *SHAPES, *map(plural, SHAPES)]))
    sites = {"sites": ("mlp.post", "mlp.gate"), "exemplars": 0}
    name, pictures = str(arguments.model), folder / "pictures"
    own = capture(name, pictures, folder / "store", name="images", generate=True, max_new_tokens=32, **sites)
    captions = {f"{i:03d}": {"caption": text} for i, text in enumerate(answers(own))}
    shuffle_images(pictures, folder / "shuffled", patch=PATCH, seed=seed, captions=captions)
    shuffled = capture(name, folder / "shuffled", folder / "store", name="shuffled", **sites)
    processor = VisionProcessor.load(name)
    causal = CausalSettings(arguments.sigma, seed, arguments.nouns)
    replays = [Replay(model, processor, part) for part in (own, shuffled)]
    first, second = (rank(part, words, seed + 100 * i, arguments.k) for i, part in enumerate((own, shuffled)))
    for rankings, replay in zip((first, second), replays, strict=True):
        rankings["gradient"] = rank_by_gradient(rankings["contribution"], replay)
    figures: Figures = {
        ranking: {
            PIXELS if name == "region invariance" else name: 100 * summary.mean
            for name, summary in measure(first[ranking], second[ranking]).items()
        }
        for ranking in RANKINGS
    }
    for ranking, again in permute(first, replays[0], seed + 200).items():
        figures[ranking][EMBEDDINGS] = 100 * float(region_invariance(first[ranking], again).mean())
    for ranking, effect in causal_effect(first, replays[0], causal).items():
        shares = effect.gone.mean(), effect.changed.mean(), effect.drop.mean()
        figures[ranking] |= {name: 100 * float(share) for name, share in zip(EFFECTS, shares, strict=True)}
    maps = map_positions(first["contribution"], pictures)
    n_nouns = len(choose_nouns(first["contribution"], causal))
    terminal.err.print(f"seed {seed}: {n_nouns} nouns, {time.monotonic() - began:.0f} s {maps}", markup=False)
    return figures, maps | {"nouns": float(len(first["contribution"].nouns)), "disturbed": float(n_nouns)}


def answers(capture: Capture) -> list[str]:
    """The captions of a capture's documents."""
    return [str(text).strip() for text in capture.documents()["caption"].to_pylist()]


def rank(capture: Capture, words: Path, seed: int, k: int) -> dict[str, Multimodal]:
    """The nouns' neurons by every ranking but the gradient."""
    common: dict[str, Any] = {"k": k, "nouns": str(words), "seed": seed}
    ours = find_multimodal(capture, FindSettings(**common))
    return {
        "contribution": ours,
        "paper": find_multimodal(capture, FindSettings(**common, forms=("gate",), gain=False)),
        "activation": find_multimodal(capture, FindSettings(**common, by="activation")),
        "random": find_multimodal(capture, FindSettings(**common, by="random")),
        "alike": draw_alike(ours, seed),
    }


def permute(rankings: dict[str, Multimodal], replay: Replay, seed: int) -> dict[str, Multimodal]:
    """The same rankings with the patches permuted among the language model's input embeddings."""
    again = permuted_rankings({name: one for name, one in rankings.items() if name != "alike"}, replay, seed)
    return again | {"alike": draw_alike(again["contribution"], seed)}


def map_positions(neurons: Multimodal, pictures: Path) -> dict[str, float]:
    """Shares of the maps whose mean is larger inside the boxes of the objects that the noun names than outside."""
    lines = [json.loads(line) for line in (pictures / "images.jsonl").read_text().splitlines()]
    inside = {
        i: box_mask(lines[neurons.captions[noun.caption].document], noun.word) for i, noun in enumerate(neurons.nouns)
    }
    rows: dict[int, list[int]] = {}
    for i, noun in enumerate(neurons.nouns):
        if inside[i].any():
            rows.setdefault(neurons.captions[noun.caption].document, []).append(i)
    shares = {}
    for kind in ("activation", "contribution"):
        sets = {
            document: [
                NeuronSet(neurons.neurons_of(i), neurons.products_of(i) if kind == "contribution" else None)
                for i in numbers
            ]
            for document, numbers in rows.items()
        }
        above, covered, area = [], [], []
        for document, position, image_map in map_neurons(neurons.capture, sets):
            box, pixels = inside[rows[document][position]], image_map.pixels()
            above.append(float(np.nanmean(pixels[box])) > float(np.nanmean(pixels[~box])))
            mask = image_map.mask()
            covered.append(mask[box].sum() / max(mask.sum(), 1))
            area.append(box.mean())
        shares |= {
            f"{kind}: inside above outside": 100 * float(np.mean(above)),
            f"{kind}: of the mask inside": 100 * float(np.mean(covered)),
            "area of the boxes": 100 * float(np.mean(area)),
        }
    return shares


def box_mask(line: dict[str, Any], word: str) -> np.ndarray:
    """The pixels inside the boxes of the objects of a colour or shape."""
    mask = np.zeros((SIDE, SIDE), bool)
    for thing in line["objects"]:
        if word in (thing["colour"], thing["shape"], plural(thing["shape"])):
            left, top, right, bottom = thing["box"]
            mask[top:bottom, left:right] = True
    return mask


def claims(figures: list[Figures]) -> str:
    """What the table says of the contribution, beside the baselines."""
    of = {
        name: {column: spread([one[name][column] for one in figures]) for column in (*PROPERTIES, *EFFECTS)}
        for name in RANKINGS
    }
    ours, random, activation = (of[name] for name in ("contribution", "random", "activation"))
    return (
        f"Noise on the neurons found by contribution takes the noun from {ours['noun gone']} % of the answers (activation only "
        f"{activation['noun gone']} %, random {random['noun gone']} %). With the patches permuted among the input embeddings, "
        f"as "
        f"published, {ours[EMBEDDINGS]} % of the neurons stay (activation {activation[EMBEDDINGS]} %, random "
        f"{random[EMBEDDINGS]} %); "
        f"with pixels shuffled {ours[PIXELS]} %. Specificity saturates: {ours['specificity']} % beside "
        f"{random['specificity']} % of "
        f"random neurons; discrimination is {ours['discrimination']} beside {random['discrimination']} percentage points."
    )


def main() -> None:
    """Run all seeds; print the tables, and with --write put them between the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the captioner")
    parser.add_argument("--pictures", type=int, default=150, help="number of pictures per seed")
    parser.add_argument(
        "--nouns", type=int, default=150, help="maximum number of nouns per seed whose neurons are disturbed"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--sigma", type=float, default=10.0, help="noise, in root mean squares of a layer's write vectors"
    )
    parser.add_argument("--k", type=int, default=20, help="number of neurons per noun")
    parser.add_argument("--write", action="store_true", help="put the tables between the marks in the documentation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    results = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="actstore-multimodal-") as folder:
            results.append(run(Path(folder), seed, arguments, model))
    columns = (*PROPERTIES, "similarity", *EFFECTS)
    rows = [
        [title, *(spread([figures[name][column] for figures, _ in results]) for column in columns)]
        for name, title in RANKINGS.items()
    ]
    maps = [part for _, part in results]
    means = {key: spread([part[key] for part in maps]) for key in maps[0]}
    notes = (
        f"`{arguments.model.name}`, {arguments.seeds} seeds of {arguments.pictures} pictures, {means['nouns']} colours and "
        f"shapes in the captions that it gives, {arguments.k} neurons each; in percent, mean ± standard deviation over seeds. "
        f"Noise of {arguments.sigma:g} times the root mean square of a layer's write vectors, for {means['disturbed']} nouns.",
        "Maps of the neurons found by contribution, of what they contribute to the noun at each patch: the mean inside the "
        f"named object's box is above the mean outside in {means['contribution: inside above outside']} % of them (maps of "
        f"bare activations: {means['activation: inside above outside']} %); "
        f"{means['contribution: of the mask inside']} % of the mask lies in the box "
        f"({means['activation: of the mask inside']} %), which is {means['area of the boxes']} % of the picture.",
    )
    text = "\n\n".join([claims([figures for figures, _ in results]), table(["neurons by", *columns], rows), *notes])
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        rewrite("multimodal", text)


if __name__ == "__main__":
    main()

"""Knowledge neurons of the embedded protein model: what is lost of a family's residues, and of other families', without them.

python benchmarks/tables/protein.py [--sequences 4] [--residues 3] [--seeds 3] [--write]

The method of Nori, Singireddy and Have (2023, arXiv 2312.10770): neurons of a protein language model by integrated gradients
or by activation, among them those of attention's projections. They fine-tune a model to classify enzymes and keep a share of
the neurons; here the model's own task is what is attributed and measured, a masked residue that its family conserves.

A seed draws the sequences that neurons are found with, those that they are tested on, and random neurons. Neurons are removed,
or all others are, by zeros at all positions of all layers, one site at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "demo" / "training")]

from protein_families import draw_questions, families  # noqa: E402 - the demo must be importable first
from train_proteins import MASK, PAD, encode, padded  # noqa: E402

from actstore.display import terminal  # noqa: E402 - and the checkout
from actstore.engine.attribution.attribute import attribute  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.engine.models.patching import hooked, patch_points, returning  # noqa: E402
from benchmarks.marked import rewrite, spread, table  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import PatchPoint

    Figures = dict[str, float]

MODEL: Final = ROOT / "demo" / "models" / "protein-esm"
SITES: Final = {
    "mlp.post": "feed-forward", "attn.q": "queries", "attn.k": "keys", "attn.v": "values", "attn.z": "attention's output",
}  # fmt: skip
METHODS: Final = {
    "ig": "integrated gradients",
    "specific": "those above other families'",
    "activation": "activation",
    "random": "random",
}
REMOVED: Final = 0.05
"""Share of a site's neurons that are removed."""
KEPT: Final = 0.25
"""Share of a site's neurons that are kept where all others are removed."""
STEPS: Final = 10


@dataclass(frozen=True)
class Prompts:
    """Sequences with one masked residue each."""

    ids: torch.Tensor
    """[prompt, position]"""
    at: torch.Tensor
    """[prompt] Where the mask is."""
    targets: torch.Tensor
    """[prompt]"""
    family: NDArray[np.int64]
    """[prompt]"""


def as_prompts(rows: list[dict[str, Any]]) -> Prompts:
    """The same for the model: one window per masked residue."""
    names = [family.name for family in families()]
    ids, at, targets, family = [], [], [], []
    for row in rows:
        for position in row["position"]:
            window = encode(row["sequence"])
            targets.append(window[position])
            window[position] = MASK
            ids.append(window)
            at.append(position)
            family.append(names.index(row["family"]))
    return Prompts(padded(ids), torch.tensor(at), torch.tensor(targets), np.array(family))


def family_scores(folder: Path, rows: list[dict[str, Any]], site: str) -> dict[str, NDArray[np.float64]]:
    """Kind of score → means over each family's prompts [family, neuron], from attributions over whole sequences."""
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = attribute(
        str(MODEL), folder / "questions.jsonl", folder / site, site=site, scope="sequence", steps=STEPS, max_rows=2048,
        label_columns=("family",),
    )  # fmt: skip
    labels = np.array(made.queries["family"].to_pylist())
    names = [family.name for family in families()]
    found = {}
    for kind in ("ig", "activation"):
        scores = np.concatenate([scores for _, scores in made.query_scores(kind)]).astype(np.float64)
        found[kind] = np.stack([scores[labels == name].mean(0) for name in names])
    return found


def choose(
    scores: dict[str, NDArray[np.float64]], method: str, n_neurons: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """The neurons of every family, flat over the layers of a site."""
    ig = scores["ig"]
    if method == "random":
        return [rng.choice(ig.shape[1], n_neurons, replace=False) for _ in ig]
    if method == "activation":
        ranked = np.abs(scores["activation"])
    elif method == "specific":
        ranked = ig - (ig.sum(0) - ig) / (len(ig) - 1)
    else:
        ranked = ig
    return [np.argsort(-row, kind="stable")[:n_neurons] for row in ranked]


@contextmanager
def zeroed(model: LoadedModel, site: str, neurons: NDArray[np.int64]) -> Iterator[None]:
    """While open, these neurons of a site, flat over its layers, are 0 at all positions of every pass."""
    places = patch_points(model, None, site)
    starts = np.cumsum([0, *(place.neurons for place in places)])
    by_place = {
        place: torch.from_numpy(neurons[(neurons >= start) & (neurons < stop)] - start)
        for place, start, stop in zip(places, starts, starts[1:], strict=False)
    }

    def without(place: PatchPoint, values: torch.Tensor) -> torch.Tensor:
        changed = values.clone()
        entries = by_place[place] if place.features is None else place.features.index(values.device)[by_place[place]]
        changed[..., entries] = 0
        return changed

    inputs = {
        place.owner: lambda _run, args, kwargs, place=place: ((without(place, args[0]), *args[1:]), kwargs)
        for place in places
        if place.side == "input"
    }
    outputs = {
        place.owner: {0: lambda values, place=place: without(place, values)}
        for place in places
        if place.side == "output"
    }
    with hooked(model.model, inputs), returning(model.model, outputs):
        yield


@torch.inference_mode()
def answers(
    model: LoadedModel, prompts: Prompts, site: str, neurons: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """P of the masked residue, and whether it is the most probable one [prompt], without these neurons of a site."""
    with zeroed(model, site, neurons):
        logits = model.model(input_ids=prompts.ids, attention_mask=(prompts.ids != PAD).long()).logits
    of_masks = logits[torch.arange(len(prompts.at)), prompts.at]
    p = of_masks.softmax(-1)[torch.arange(len(prompts.at)), prompts.targets]
    return p.double().numpy(), (of_masks.argmax(-1) == prompts.targets).numpy()


def remove(model: LoadedModel, prompts: Prompts, site: str, chosen: list[NDArray[np.int64]]) -> Figures:
    """What removing each family's neurons does to its prompts and to those of others, in percent; means over families."""
    p, right = answers(model, prompts, site, np.empty(0, np.int64))
    rows = []
    for number, neurons in enumerate(chosen):
        own = prompts.family == number
        after, right_after = answers(model, prompts, site, neurons)
        change = 100 * (after - p)
        rows.append(
            [
                change[own].mean(),
                change[~own].mean(),
                100 * (right_after[own].mean() - right[own].mean()),
                100 * (right_after[~own].mean() - right[~own].mean()),
            ]
        )
    means = np.mean(rows, axis=0).tolist()
    return dict(zip(("own P", "other P", "own accuracy", "other accuracy"), means, strict=True))


def keep(model: LoadedModel, prompts: Prompts, site: str, chosen: list[NDArray[np.int64]], n_neurons: int) -> float:
    """The accuracy on each family's prompts with its neurons alone, in percent; the mean over families."""
    accuracies = []
    for number, neurons in enumerate(chosen):
        own = np.flatnonzero(prompts.family == number)
        of_family = Prompts(prompts.ids[own], prompts.at[own], prompts.targets[own], prompts.family[own])
        _, right = answers(model, of_family, site, np.setdiff1d(np.arange(n_neurons), neurons))
        accuracies.append(100 * right.mean())
    return float(np.mean(accuracies))


def density(scores: dict[str, dict[str, NDArray[np.float64]]]) -> Figures:
    """Site → percent of its neurons that are among the 5 % of all sites' with the largest integrated gradients."""
    every = np.concatenate([of_site["ig"] for of_site in scores.values()], axis=1)
    cutoff = np.sort(every, axis=1)[:, -int(REMOVED * every.shape[1])][:, None]
    return {site: 100 * float((of_site["ig"] >= cutoff).mean()) for site, of_site in scores.items()}


def measure(model: LoadedModel, n_sequences: int, n_residues: int, seed: int) -> dict[str, Figures]:
    """All figures of one seed: "SITE METHOD" → those of `remove`, "SITE kept" → method → accuracy, "density", "all"."""
    found_with = draw_questions(n_sequences, n_residues, f"find {seed}")
    prompts = as_prompts(draw_questions(n_sequences, n_residues, f"test {seed}"))
    with tempfile.TemporaryDirectory() as folder:
        scores = {site: family_scores(Path(folder), found_with, site) for site in SITES}
    rng, figures = np.random.default_rng(seed), {"density": density(scores)}
    for site, of_site in scores.items():
        n_neurons = of_site["ig"].shape[1]
        for method in METHODS:
            chosen = choose(of_site, method, int(REMOVED * n_neurons), rng)
            figures[f"{site} {method}"] = remove(model, prompts, site, chosen)
        kept = {
            method: choose(of_site, method, int(KEPT * n_neurons), rng) for method in ("ig", "activation", "random")
        }
        figures[f"{site} kept"] = {name: keep(model, prompts, site, own, n_neurons) for name, own in kept.items()}
    p, right = answers(model, prompts, "mlp.post", np.empty(0, np.int64))
    figures["all"] = {"P": 100 * float(p.mean()), "accuracy": 100 * float(right.mean())}
    return figures


def report(seeds: list[dict[str, Figures]], n_sequences: int, n_residues: int) -> str:
    """The tables and what they say."""

    def over(key: str, name: str, form: str = "{:.1f}") -> str:
        mean, plus_minus, deviation = spread([of_seed[key][name] for of_seed in seeds], form).partition(" ± ")
        return f"{mean}{plus_minus}{deviation.lstrip('+')}"

    removed = [
        [SITES[site], METHODS[method], *(over(f"{site} {method}", name, "{:+.1f}") for name in seeds[0]["mlp.post ig"])]
        for site in SITES
        for method in METHODS
    ]
    kept = [
        [SITES[site], over("density", site), *(over(f"{site} kept", name) for name in ("ig", "activation", "random"))]
        for site in SITES
    ]
    n_families = len(families())
    n_queries = n_families * n_sequences
    share = f"{100 * REMOVED:.0f} %"

    def of(method: str, name: str) -> str:
        return over(f"mlp.post {method}", name, "{:+.1f}")

    return "\n\n".join(
        [
            f"Without the {share} of the feed-forward's neurons whose integrated gradients for a family are the largest above "
            f"those for other families, P changes by {of('specific', 'own P')} points on held-out sequences of the family, by "
            f"{of('specific', 'other P')} on those of other families; without as many random neurons by "
            f"{of('random', 'own P')}.",
            table(
                [
                    "site", f"{share} removed by", "own family: ΔP", "others: ΔP", "own family: Δ accuracy",
                    "others: Δ accuracy",
                ],
                removed,
                left=2,
            ),
            f"Where a family's neurons are, and its accuracy with {100 * KEPT:.0f} % of a site's neurons alone, which is what "
            f"the paper measures:",
            table(
                [
                    "site", f"% of the site among the largest {share} of all sites", "kept by integrated gradients",
                    "by activation", "random",
                ],
                kept,
            ),
            f"`{MODEL.name}`, {n_families} families: {n_queries} queries (sequences) of {n_residues} conserved residues each, "
            f"one masked at a time, find neurons, and {n_queries} others, held out, are tested; P of the residue is "
            f"{over('all', 'P')} % on these, accuracy {over('all', 'accuracy')} %. Attributions and changes are over whole "
            f"sequences, changes in percent points. Means over families ± standard deviation over {len(seeds)} seeds, each "
            f"with sequences of its own.",
        ]
    )  # fmt: skip


def main() -> None:
    """Attribute, remove, print; with --write put the tables between the marks in the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sequences", type=int, default=4, help="sequences per family that find neurons; as many are tested"
    )
    parser.add_argument("--residues", type=int, default=3, help="masked residues per sequence")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--write", action="store_true", help="put the tables between the marks in the documentation")
    arguments = parser.parse_args()
    model = load_model(MODEL, device="cpu")
    sizes = arguments.sequences, arguments.residues
    text = report([measure(model, *sizes, seed) for seed in range(arguments.seeds)], *sizes)
    terminal.out.print(text, markup=False, soft_wrap=True)
    if arguments.write:
        rewrite("protein", text)


if __name__ == "__main__":
    main()

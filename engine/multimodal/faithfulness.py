"""How faithful maps are: the noun's probability while patches are taken from the model, or given to it, in a map's order.

Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421), on what the language model reads of the patches: a patch that
is taken away is the mean of all of them. With a map that names what the model depends on, the probability falls fast, and rises
fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import torch

from actstore.engine.multimodal.noun_maps import MAPS, map_nouns
from actstore.engine.multimodal.patch_maps import PatchMap
from actstore.engine.multimodal.saliency import entry_of, map_gradients, positions_of, reading
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import Multimodal

GRADIENT: Final = "gradient"
RANDOM: Final = "random"
KINDS: Final = (GRADIENT, *MAPS, RANDOM)
"""The maps that are compared: by the gradient, those of `MAPS`, and patches in random order, which is chance."""
STEPS: Final = 8
"""Parts in which patches are taken away, and given back."""


@dataclass(frozen=True)
class Faithfulness:
    """What the maps of one kind are worth."""

    deletion: NDArray[np.float64]
    """Of each noun, the mean probability while patches are taken away, over that with all of them: small is faithful."""
    insertion: NDArray[np.float64]
    """The same while they are given back, from none: large is faithful."""


def every_map(
    result: Multimodal, replay: Replay, numbers: Sequence[int], seed: int = 0
) -> dict[str, dict[int, PatchMap]]:
    """Kind → number of a noun → its map, for those of some nouns that have all kinds."""
    rng = np.random.default_rng(seed)
    wanted = set(numbers)
    maps: dict[str, dict[int, PatchMap]] = {GRADIENT: dict(map_gradients(result, replay, numbers))}
    for kind in MAPS:
        maps[kind] = {number: one for number, one in map_nouns(result, kind) if number in wanted}
    maps[RANDOM] = {
        number: PatchMap(one.document, one.grid, rng.random(len(one.values)), one.width, one.height)
        for number, one in maps[GRADIENT].items()
    }
    common = sorted(set.intersection(*(set(of_kind) for of_kind in maps.values())))
    if not common:
        raise InvalidInputError(
            f"Capture {result.capture.record.name!r} holds no patch of the images of these nouns: nothing can be mapped. "
            'Capture again with `positions="all"`.'
        )
    return {kind: {number: of_kind[number] for number in common} for kind, of_kind in maps.items()}


def measure_faithfulness(
    result: Multimodal,
    replay: Replay,
    maps: Mapping[str, Mapping[int, PatchMap]],
    on_noun: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, Faithfulness]:
    """Deletion and insertion of the maps of each kind, which have the same nouns in the same order.

    One pass per noun and kind, over a window for every step of both. Patches without a value come last.
    """
    numbers = [*next(iter(maps.values()))]
    measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in maps}
    for done, number in enumerate(numbers):
        for kind, of_kind in maps.items():
            measured[kind].append(_measure(result, replay, number, of_kind[number]))
        on_noun(done + 1, len(numbers))
    return {kind: Faithfulness(*np.array(values).reshape(-1, 2).T) for kind, values in measured.items()}


def faithfulness_table(measured: Mapping[str, Faithfulness]) -> pa.Table:
    """One row per kind of map: map, deletion, deletion_sd, insertion, insertion_sd, n (nouns)."""
    columns: dict[str, list[Any]] = {"map": [*measured]}
    for name in ("deletion", "insertion"):
        curves = [getattr(one, name) for one in measured.values()]
        columns |= {
            name: [float(curve.mean()) for curve in curves],
            f"{name}_sd": [float(curve.std()) for curve in curves],
        }
    return pa.table(columns | {"n": [len(one.deletion) for one in measured.values()]})


def _measure(result: Multimodal, replay: Replay, number: int, patch_map: PatchMap) -> tuple[float, float]:
    noun = result.nouns[number]
    caption = result.captions[noun.caption]
    values = np.where(np.isfinite(patch_map.values), patch_map.values, -np.inf)
    positions = positions_of(caption, patch_map.grid)[np.argsort(-values, kind="stable")]
    # Row i takes away the first i of STEPS parts, row STEPS + 1 + i all but these.
    n_taken = np.rint(np.linspace(0, len(positions), STEPS + 1)).astype(int)
    is_taken = np.zeros((2 * (STEPS + 1), len(positions)), bool)
    for i, n in enumerate(n_taken):
        is_taken[i, :n], is_taken[STEPS + 1 + i, n:] = True, True
    encoded = replay.encode(caption)

    def take(read: torch.Tensor) -> torch.Tensor:
        index = torch.from_numpy(positions).to(read.device)
        of_patches = read[:, index]
        taken = torch.from_numpy(is_taken).to(read.device)[..., None]
        changed = read.clone()
        changed[:, index] = torch.where(taken, of_patches.mean(1, keepdim=True), of_patches)
        return changed

    with torch.inference_mode(), reading(replay.model, entry_of(replay.model), take):
        logits = replay.logits([encoded] * len(is_taken))
    p = logits[:, noun.position].double().softmax(-1)[:, noun.token].cpu().numpy()
    whole = max(float(p[0]), float(np.finfo(np.float64).tiny))
    shares = np.diff(n_taken) / len(positions)
    deletion, insertion = (float((shares * (part[1:] + part[:-1]) / 2).sum()) / whole for part in np.split(p, 2))
    return deletion, insertion

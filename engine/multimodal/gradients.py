"""The baseline that needs gradients: neurons ranked by activation × ∂logit/∂activation where a noun is predicted.

The total derivative, through all later layers, and so another question than the direct contribution. Needs the model.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.models.patching import hooked, places_of, weights_without_gradients
from actstore.kernels.top_k.api import TopK, top_k

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.patching import Hook, Place
    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import Multimodal


def rank_by_gradient(
    found: Multimodal,
    replay: Replay,
    rows: Sequence[int] | None = None,
    on_caption: Callable[[int, int], None] = lambda done, n: None,
) -> Multimodal:
    """The same nouns with the neurons of the largest a · ∂logit/∂a at the position that predicts them, over the same layers.

    Of the nouns given by `rows` only; the others have no neurons.

    One pass forward for each caption, one back for each noun. Raises `InvalidInputError` as `Replay.encode` does, and for
    routed experts.
    """
    places = places_of(replay.model, found.numbering.layers.tolist())
    by_caption: dict[int, list[int]] = defaultdict(list)
    for i in range(len(found.nouns)) if rows is None else rows:
        by_caption[found.nouns[i].caption].append(i)
    k = found.settings.k
    best = TopK(np.full((len(found.nouns), k), -np.inf, np.float32), np.full((len(found.nouns), k), -1, np.int64))
    with weights_without_gradients(replay.model.model), torch.enable_grad():
        for done, (caption, nouns) in enumerate(by_caption.items()):
            encoded = replay.encode(found.captions[caption])
            seen: dict[int, Tensor] = {}
            with hooked(replay.model.model, _hooks(places, seen)):
                logits = replay.logits([encoded])[0]
            inputs = [seen[place.layer] for place in places]
            for i in nouns:
                at, token = found.nouns[i].position, found.nouns[i].token
                gradients = torch.autograd.grad(logits[at, token], inputs, retain_graph=i != nouns[-1])
                scores = np.concatenate([_at(a, at) * _at(g, at) for a, g in zip(inputs, gradients, strict=True)])
                top = top_k(scores[None], np.arange(len(scores)), k)
                best.values[i], best.tokens[i] = top.values[0], top.tokens[0]
            on_caption(done + 1, len(by_caption))
    return found.with_ranking(best)


def _at(values: Tensor, position: int) -> NDArray[np.float32]:
    """The values [neuron] of one window at a position."""
    return values.detach().reshape(-1, values.shape[-1])[position].float().cpu().numpy()


def _hooks(places: list[Place], seen: dict[int, Tensor]) -> dict[str, Hook]:
    """Hooks that keep what each layer's output projection reads; the first begins the graph."""
    by_owner: dict[str, dict[int, Place]] = defaultdict(dict)
    for place in places:
        by_owner[place.owner][place.run] = place

    def hook_of(runs: dict[int, Place]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if run not in runs:
                return None
            name = None if args else next(iter(kwargs))
            values = args[0] if name is None else kwargs[name]
            if not values.requires_grad:
                values = values.detach().requires_grad_()
            seen[runs[run].layer] = values
            return ((values, *args[1:]), kwargs) if name is None else (args, kwargs | {name: values})

        return hook

    return {owner: hook_of(runs) for owner, runs in by_owner.items()}

"""The baseline that needs gradients: neurons ranked by activation × ∂logit/∂activation where a noun is predicted.

The total derivative, through all later layers, where the contribution is the direct effect alone. Needs the model.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.models.patching import hooked, patch_points, weights_without_gradients
from actstore.kernels.top_k.api import TopK, top_k

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.patching import Hook, PatchPoint
    from actstore.engine.multimodal.replay import PatchOrder, Replay
    from actstore.engine.multimodal.result import Multimodal


def rank_by_gradient(
    result: Multimodal,
    replay: Replay,
    numbers: Sequence[int] | None = None,
    on_caption: Callable[[int, int], None] = lambda done, n: None,
    order: PatchOrder | None = None,
) -> Multimodal:
    """The same nouns with the neurons of the largest a · ∂logit/∂a at the position that predicts them, over the same layers.

    Of the nouns with some `numbers` only (None: all); the others have no neurons.

    order: of the patches among the input embeddings; None is their own.
    One forward pass per caption, one backward pass per noun. Raises `InvalidInputError` as `Replay.encode` does, and for
    routed experts.
    """
    places = patch_points(replay.model, result.numbering.layers.tolist())
    by_caption: dict[int, list[int]] = defaultdict(list)
    for i in range(len(result.nouns)) if numbers is None else numbers:
        by_caption[result.nouns[i].caption].append(i)
    k = result.settings.k
    best = TopK(np.full((len(result.nouns), k), -np.inf, np.float32), np.full((len(result.nouns), k), -1, np.int64))
    with weights_without_gradients(replay.model.model), torch.enable_grad():
        for done, (caption, nouns) in enumerate(by_caption.items()):
            encoded = replay.encode(result.captions[caption])
            activations: dict[int, Tensor] = {}
            applied = order.applied(encoded, result.captions[caption].document) if order else nullcontext()
            with hooked(replay.model.model, _hooks(places, activations)), applied:
                logits = replay.logits([encoded])[0]
            inputs = [activations[place.layer] for place in places]
            for i in nouns:
                position, token = result.nouns[i].position, result.nouns[i].token
                gradients = torch.autograd.grad(logits[position, token], inputs, retain_graph=i != nouns[-1])
                pairs = zip(inputs, gradients, strict=True)
                scores = np.concatenate([_at(values, position) * _at(slopes, position) for values, slopes in pairs])
                top = top_k(scores[None], np.arange(len(scores)), k)
                best.values[i], best.tokens[i] = top.values[0], top.tokens[0]
            on_caption(done + 1, len(by_caption))
    return result.with_ranking(best)


def _at(values: Tensor, position: int) -> NDArray[np.float32]:
    """The values [neuron] of one window at a position."""
    return values.detach().reshape(-1, values.shape[-1])[position].float().cpu().numpy()


def _hooks(places: list[PatchPoint], activations: dict[int, Tensor]) -> dict[str, Hook]:
    """Hooks that store the input of each layer's output projection in `activations`; the first one begins the graph."""
    by_owner: dict[str, dict[int, PatchPoint]] = defaultdict(dict)
    for place in places:
        by_owner[place.owner][place.run] = place

    def hook_of(runs: dict[int, PatchPoint]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if run not in runs:
                return None
            name = None if args else next(iter(kwargs))
            values = args[0] if name is None else kwargs[name]
            if not values.requires_grad:
                values = values.detach().requires_grad_()
            activations[runs[run].layer] = values
            return ((values, *args[1:]), kwargs) if name is None else (args, kwargs | {name: values})

        return hook

    return {owner: hook_of(runs) for owner, runs in by_owner.items()}

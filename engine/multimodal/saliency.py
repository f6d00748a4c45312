"""Saliency: which patches of an image a noun of the answer depends on, by the gradient of its logit to what the patches give.

    s[patch](noun) = e[patch] · ∂ logit(noun) / ∂ e[patch]

e is what the language model reads at a patch's position, the vision embedding. The gradient of an output token to the vision
embeddings is the first half of Giulivi and Boracchi's saliency (arXiv 2405.14612), whose second half, alignment with a model
that localises objects, is not here. Needs the model.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.models.patching import hooked, weights_without_gradients
from actstore.engine.multimodal.patch_maps import PatchMap, read_grids
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.sites import HookPoint
    from actstore.engine.multimodal.captions import Caption
    from actstore.engine.multimodal.patch_maps import PatchGrid
    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import Multimodal


def map_gradients(
    result: Multimodal,
    replay: Replay,
    numbers: Sequence[int] | None = None,
    on_caption: Callable[[int, int], None] = lambda done, n: None,
) -> Iterator[tuple[int, PatchMap]]:
    """(number of the noun, map over its image) of the nouns with some `numbers` (None: all) whose image has patches.

    One forward pass per caption, one backward pass per noun. Raises `InvalidInputError` as `Replay.encode` does, and for models
    whose language model is not handed its stream by a module.
    """
    point = entry_of(replay.model)
    by_caption: dict[int, list[int]] = defaultdict(list)
    for number in range(len(result.nouns)) if numbers is None else numbers:
        by_caption[result.nouns[number].caption].append(number)
    with weights_without_gradients(replay.model.model), torch.enable_grad():
        for done, (number_of_caption, nouns) in enumerate(by_caption.items()):
            caption = result.captions[number_of_caption]
            grid = grid_of(result, caption)
            if grid is not None:
                leaf = _Leaf()
                encoded = replay.encode(caption)
                with reading(replay.model, point, leaf.of):
                    logits = replay.logits([encoded])[0]
                for number in nouns:
                    noun = result.nouns[number]
                    (slope,) = torch.autograd.grad(logits[noun.position, noun.token], leaf.read, retain_graph=True)
                    of_positions = (slope * leaf.read.detach()).float().sum(-1)[0].cpu().numpy()
                    values = of_positions[positions_of(caption, grid)].astype(np.float64)
                    yield number, PatchMap(caption.document, grid, values, *_size(result, caption))
            on_caption(done + 1, len(by_caption))


class _Leaf:
    """What the language model read, where the graph of gradients begins."""

    read: Tensor

    def of(self, values: Tensor) -> Tensor:
        self.read = values.detach().requires_grad_()
        return self.read


def entry_of(model: LoadedModel) -> HookPoint:
    """Where the language model's first block is handed its stream; `InvalidInputError` where no module is."""
    for spec in model.spec.layers:
        points = model.layer(spec.layer).hook_points
        if spec.part == "language" and "resid.pre" in points:
            return points["resid.pre"]
    raise InvalidInputError(
        f"Saliency needs the residual stream that enters the language model, and no module of {model.spec.name} is handed it."
    )


@contextmanager
def reading(model: LoadedModel, point: HookPoint, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, what the language model's first block is handed [window, position, d_model] is what `change` makes of it."""

    def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if run != point.run:
            return None
        if isinstance(point.index, str):
            return args, kwargs | {point.index: change(kwargs[point.index])}
        at = point.index or 0
        return (*args[:at], change(args[at]), *args[at + 1 :]), kwargs

    with hooked(model.model, {point.module: hook}):
        yield


def grid_of(result: Multimodal, caption: Caption) -> PatchGrid | None:
    """The patches of a caption's image that the capture holds; None where it has none."""
    patches = result.capture.block_patches(caption.block)
    return read_grids(result.capture, caption.block, patches, {caption.document}).get(caption.document)


def positions_of(caption: Caption, grid: PatchGrid) -> NDArray[np.int64]:
    """The positions of the window at which the language model reads the patches; shape [patch]."""
    at_slot = {slot: position for position, slot in enumerate(caption.offsets.tolist()) if slot >= 0}
    return np.array([at_slot[slot] for slot in grid.slots.tolist()], np.int64)


def _size(result: Multimodal, caption: Caption) -> tuple[int, int]:
    documents = result.capture.documents()
    row = documents.slice(caption.document, 1).to_pylist()[0]
    return int(row["width"]), int(row["height"])

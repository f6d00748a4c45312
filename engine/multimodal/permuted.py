"""The nouns' neurons with the patches in random order among the language model's input embeddings; needs the model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.models.writing.path import WRITE_SCALE
from actstore.engine.models.writing.scales import ScaleFactors
from actstore.engine.multimodal.gradients import rank_by_gradient
from actstore.engine.multimodal.ranker import Ranker, random_ranking
from actstore.engine.multimodal.replay import PatchOrder
from actstore.engine.multimodal.result import FORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import Multimodal


def permuted_activations(
    result: Multimodal,
    order: PatchOrder,
    replay: Replay,
    sites: Sequence[str],
    on_caption: Callable[[int, int], None] = lambda done, n: None,
) -> tuple[dict[str, NDArray[np.float32]], dict[int, NDArray[np.float32]]]:
    """Site → the activations [noun, neuron] where each noun is predicted, its caption's patches in another order.

    And layer → what these positions multiply its write vectors with [noun], of the layers that have such a scale; as in a
    capture, 0 where an expert did not see the position, and where the number is not finite. One pass per caption. Raises
    `InvalidInputError` as `Replay.encode` and `PatchOrder.applied` do.
    """
    numbering, model = result.numbering, order.model
    found = {site: np.full((len(result.nouns), len(numbering)), np.nan, np.float32) for site in sites}
    factors = ScaleFactors(model, numbering.layers.tolist())
    scales = {layer: np.zeros(len(result.nouns), np.float32) for layer in factors.layers}
    by_caption: dict[int, list[int]] = defaultdict(list)
    for number, noun in enumerate(result.nouns):
        by_caption[noun.caption].append(number)
    for done, (caption, nouns) in enumerate(by_caption.items()):
        encoded = replay.encode(result.captions[caption])
        positions = torch.tensor([result.nouns[number].position for number in nouns], device=order.model.device)

        def keep(
            layer: int, site: str, values: Tensor, rows: Tensor | None,
            nouns: list[int] = nouns, positions: Tensor = positions,
        ) -> None:  # fmt: skip
            if site == WRITE_SCALE:
                if (scale := factors.add(layer, values, rows)) is not None:
                    scales[layer][nouns] = scale.at(positions)
                return
            columns = numbering.of_layer(layer)
            for number, position in zip(nouns, positions.tolist(), strict=True):
                # A routed expert has rows for the tokens that were routed to it; of others it has no activation.
                row = position if rows is None else torch.nonzero(rows == position)[:, 0]
                if rows is None or len(row):
                    taken = values[row].reshape(-1).float().cpu().numpy()
                    found[site][number, columns.start : columns.stop] = taken

        ids, mask, extra = replay.processor.collate([encoded])
        factors.begin()
        with order.applied(encoded, result.captions[caption].document):
            model.forward(
                ids, mask, sites=sites, layers=numbering.layers.tolist(), sink=keep, extra=extra,
                scales=bool(factors.layers),
            )  # fmt: skip
        on_caption(done + 1, len(by_caption))
    return found, scales


def rank_activations(
    result: Multimodal,
    activations: Mapping[str, NDArray[np.float32]],
    scales: Mapping[int, NDArray[np.float32]] | None = None,
    seed: int = 0,
) -> Multimodal:
    """The same nouns ranked as `result` is, by other activations [noun, neuron] of its site; seed: of a random ranking.

    scales: layer → what each noun's position multiplies its write vectors with [noun]; of layers without, 1.
    """
    settings = result.settings
    if settings.by == "random":
        return result.with_ranking(
            random_ranking(len(result.nouns), len(result.numbering), replace(settings, seed=seed))
        )
    site = FORMS[settings.forms[0]].site
    ranker = Ranker(
        result, site, with_weights=settings.by == "contribution", activations=activations[site], scales=scales or {}
    )
    return result.with_ranking(ranker.rank(lambda done, n_layers: None))


def permuted_rankings(
    rankings: Mapping[str, Multimodal],
    replay: Replay,
    seed: int = 0,
    on_caption: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, Multimodal]:
    """The rankings of `rankings_of` again, with the patches of every caption in random order among the input embeddings."""
    order, first = PatchOrder(replay.model, seed), next(iter(rankings.values()))
    sites = sorted({FORMS[one.settings.forms[0]].site for one in rankings.values()})
    activations, scales = permuted_activations(first, order, replay, sites, on_caption)
    # Both orders of patches alike: a capture that lacks scales was ranked without them.
    scales = {layer: of_nouns for layer, of_nouns in scales.items() if layer in first.capture.record.write_scale}
    return {
        name: rank_by_gradient(one, replay, order=order)
        if name == "gradient"
        else rank_activations(one, activations, scales, seed)
        for name, one in rankings.items()
    }

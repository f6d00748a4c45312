"""The model calls of Neuron to Graph as published (Foote et al. 2023, arXiv 2305.19911), made for one neuron.

Every call is the whole model to its logits, to read one neuron. For each exemplar to build from: one over the full text, one
for each length tried while it is shortened, one over what is left, two for the importance of its tokens (as they are; each of
them masked), one over the variants in which important tokens are replaced, and one more for each variant that keeps the
activation; at last one over each exemplar to test. Substitutes are random tokens here: the masked language model that proposes
them would add to this, and so would building the graph itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTHS = (5, 10, 15, 20, 25, 30)
"""Tokens up to the activating one that are tried, shortest first."""
FOLLOWING = 5
"""Tokens after it that are kept."""
IMPORTANT = 0.8
SUBSTITUTES = 5


@dataclass
class Published:
    """The procedure over one model, and the number of model calls and tokens it took."""

    model: nn.Module
    projections: list[nn.Module]
    """The output projection of each layer's feed-forward, whose input is the activations."""
    mask: int
    n_vocabulary: int
    calls: int = 0
    tokens: int = 0
    _random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run(self, layer: int, neuron: int, build: list[Tensor], test: list[Tensor]) -> None:
        """All model calls for a neuron with these exemplars, each [position] token ids."""
        for ids in build:
            short, pivot = self._shorten(layer, neuron, ids)
            activations = self._activations(layer, neuron, short[None])[0]
            important = self._importance(layer, neuron, short)[:, pivot] >= IMPORTANT
            variants = self._vary(short, important, pivot)
            if len(variants):
                active = self._activations(layer, neuron, variants)[:, pivot] > activations[pivot] / 2
                for variant in variants[active]:
                    self._masked(layer, neuron, variant)
        for ids in test:
            self._activations(layer, neuron, ids[None])

    def _activations(self, layer: int, neuron: int, ids: Tensor) -> Tensor:
        """One call: the neuron at every position, [text, position]."""
        outputs: list[Tensor] = []

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            outputs.append(inputs[0][..., neuron])

        handle = self.projections[layer].register_forward_pre_hook(hook)
        try:
            self.model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        self.calls += 1
        self.tokens += ids.numel()
        return outputs[0].reshape(ids.shape).float()

    def _shorten(self, layer: int, neuron: int, ids: Tensor) -> tuple[Tensor, int]:
        """The shortest suffix that holds more than half of the activation with its last token still the largest."""
        full = self._activations(layer, neuron, ids[None])[0]
        pivot = int(full.argmax())
        first = 0
        for length in LENGTHS:
            first = max(0, pivot + 1 - length)
            activations = self._activations(layer, neuron, ids[None, first : pivot + 1])[0]
            if activations[-1] > full[pivot] / 2 and int(activations.argmax()) == len(activations) - 1:
                break
        return ids[first : pivot + 1 + FOLLOWING], pivot - first

    def _importance(self, layer: int, neuron: int, ids: Tensor) -> Tensor:
        """1 - activation with a token masked over the activation; [masked token, position]."""
        whole = self._activations(layer, neuron, ids[None])
        return 1 - self._masked(layer, neuron, ids) / whole

    def _masked(self, layer: int, neuron: int, ids: Tensor) -> Tensor:
        masked = ids.repeat(len(ids), 1).fill_diagonal_(self.mask)
        return self._activations(layer, neuron, masked)

    def _vary(self, ids: Tensor, important: Tensor, pivot: int) -> Tensor:
        """The texts in which one important token before or at the pivot is another; [variant, position]."""
        positions = torch.nonzero(important[: pivot + 1])[:, 0].repeat_interleave(SUBSTITUTES)
        variants = ids.repeat(len(positions), 1)
        others = torch.randint(self.n_vocabulary, (len(positions),), generator=self._random)
        variants[torch.arange(len(positions)), positions] = others
        return variants

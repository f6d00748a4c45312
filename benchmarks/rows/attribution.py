"""Integrated gradients of every MLP neuron against the procedure of the published codes.

Those (knowledge neurons, QRNCA) take one layer after another: a clean pass for its activations, then the whole prompt once
per step in one batch, through the entire model, the unembedding of every position, and back. The model is a GPT-2 of its
own size, 12 layers of width 768 with 3,072 neurons each and 50,257 tokens, with random weights: what it computes does not
change how long it takes.

Longer prompts would keep the published procedure busy for many minutes: it is timed on some of the 12 layers, whose mean
depth is that of all (at 512 tokens, one layer half a block below it), and its time is multiplied as its name says.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from actstore.engine.attribution.integrated_gradients import PathSettings, integrated_gradients
from actstore.engine.models.load import LoadedModel
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

STEPS, TARGET = 16, 11


@dataclass(frozen=True)
class Published:
    """The procedure of the published codes."""

    model: GPT2LMHeadModel
    ids: Tensor

    def layer(self, layer: int) -> Tensor:
        """Integrated gradients [neuron] of one layer."""
        projection = self.model.transformer.h[layer].mlp.c_proj
        inputs: list[Tensor] = []
        handle = projection.register_forward_pre_hook(lambda _module, args: inputs.append(args[0][0, -1]))
        with torch.no_grad():
            self.model(self.ids[None])
        handle.remove()
        scaled = (torch.arange(1, STEPS + 1)[:, None] / STEPS * inputs[0]).requires_grad_()

        def patch(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            patched = args[0].clone()
            patched[:, -1] = scaled
            return (patched,)

        handle = projection.register_forward_pre_hook(patch)
        logits = self.model(self.ids.repeat(STEPS, 1)).logits
        handle.remove()
        probabilities = logits[:, -1].softmax(-1)[:, TARGET]
        return inputs[0] * torch.autograd.grad(probabilities.sum(), scaled)[0].mean(0)

    def layers(self, layers: tuple[int, ...]) -> None:
        """The given layers, one after another."""
        for layer in layers:
            self.layer(layer)


def prepare(n_tokens: int, layers: tuple[int, ...]) -> Callable[[bool], AbstractContextManager[dict[str, Candidate]]]:
    """A row of a prompt of `n_tokens` tokens, with the published procedure run on `layers`."""

    @contextmanager
    def prepare_row(quick: bool) -> Iterator[dict[str, Candidate]]:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=2048 if quick else 50_257)).eval()
        loaded = LoadedModel(model, name="gpt2")
        n_positions = min(n_tokens, 32) if quick else n_tokens
        ids = torch.randint(0, model.config.vocab_size, (n_positions,), generator=torch.Generator().manual_seed(0))
        published = Published(model, ids)

        def run(**settings: object) -> None:
            integrated_gradients(loaded, ids, TARGET, settings=PathSettings(steps=STEPS, **settings))  # type: ignore[arg-type]

        if len(layers) > 1:
            agrees(loaded, published)
        times = 12 // len(layers)
        name = "published procedure, " + (
            f"timed on {len(layers)} of 12 layers, × {times}" if times > 1 else "all layers"
        )
        yield {
            "actstore, cached path, all layers": Candidate(lambda: run(path="cached")),
            name: Candidate(lambda: published.layers(layers), times=times),
        }

    return prepare_row


def agrees(loaded: LoadedModel, published: Published) -> None:
    """Check that both give the same results before they are compared."""
    settings = PathSettings(steps=STEPS, layers=(11,), path="cached")
    ours = integrated_gradients(loaded, published.ids, TARGET, settings=settings).attributions[11]
    theirs = published.layer(11).numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


TESTS = ("tests/engine/attribution", "tests/engine/naica", "tests/engine/coverage")
SHAPE = "GPT-2, 12 layers × 3,072 neurons, 16 steps"
ROWS = (
    Row(
        f"integrated gradients, 32-token prompt, {SHAPE}", prepare(32, tuple(range(12))), TESTS, repeats=3, quick=False
    ),
    Row(f"integrated gradients, 128-token prompt, {SHAPE}", prepare(128, (0, 11)), TESTS, repeats=3),
    Row(f"integrated gradients, 512-token prompt, {SHAPE}", prepare(512, (5,)), TESTS, repeats=1, quick=False),
)

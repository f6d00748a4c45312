"""Textbook forms on the tensors of tiny models (`tiny_edits.CONFIGS`), by plain hooks, none of our code. Not a test module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GATED = ("llama", "olmo2")


def blocks_of(model: Any) -> list[Any]:
    """The output projections of the feed-forwards, by layer."""
    if model.config.model_type in GATED:
        return [layer.mlp.down_proj for layer in model.model.layers]
    if model.config.model_type == "gpt2":
        return [layer.mlp.c_proj for layer in model.transformer.h]
    return [layer.mlp.dense_4h_to_h for layer in model.gpt_neox.layers]


def rows_of(model: Any, layer: int) -> torch.Tensor:
    """The write vectors [neuron, d_model]."""
    weight = blocks_of(model)[layer].weight.detach()
    return weight if model.config.model_type == "gpt2" else weight.T


def final_norm(model: Any) -> Any:
    """The norm before the head."""
    if model.config.model_type in GATED:
        return model.model.norm
    return model.transformer.ln_f if model.config.model_type == "gpt2" else model.gpt_neox.final_layer_norm


def towards(model: Any, token: int) -> torch.Tensor:
    """γ ⊙ u, without its mean where the final norm takes that away."""
    direction = final_norm(model).weight.detach() * model.get_output_embeddings().weight.detach()[token]
    return direction if model.config.model_type in GATED else direction - direction.mean()


def run(
    model: Any, ids: torch.Tensor, scale: tuple[int, float] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits at the last position, and activations there by layer; `scale`: (layer, factor) at the last position."""
    activations: list[torch.Tensor] = []
    leaves: list[torch.Tensor] = []

    def hook_of(number: int) -> Any:
        def hook(_module: Any, args: Any) -> Any:
            value = args[0][0, -1].detach()
            activations.append(value)
            if scale is None or scale[0] != number:
                return None
            leaf = (value * scale[1]).requires_grad_()
            leaves.append(leaf)
            return (torch.cat([args[0][:, :-1], leaf[None, None]], dim=1),)

        return hook

    handles = [block.register_forward_pre_hook(hook_of(n)) for n, block in enumerate(blocks_of(model))]
    logits = model(ids[None]).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits, leaves or activations


def textbook_attribution(model: Any, ids: torch.Tensor, target: int, steps: int) -> list[NDArray[np.float64]]:
    """ā/m Σ_k ∂P(k/m · ā)/∂a at the last position, one layer at a time: Dai et al., equation 2."""
    _, clean = run(model, ids)
    found = []
    for layer, activations in enumerate(clean):
        total = torch.zeros_like(activations)
        for step in range(1, steps + 1):
            logits, (leaf,) = run(model, ids, (layer, step / steps))
            total += torch.autograd.grad(logits.softmax(-1)[target], leaf)[0]
        found.append((activations / steps * total).double().numpy())
    return found

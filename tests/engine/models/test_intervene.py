"""A changed activation against the same change made in the weights, and against hooks of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM

from actstore.engine.models.intervene import factors, intervened, replace, scale
from actstore.engine.models.load import LoadedModel
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

TYPES = ("llama", "gpt2", "gpt_neox", "gemma2", "opt", "mpt", "albert")


def tiny(model_type: str) -> LoadedModel:
    from transformers import AutoModelForMaskedLM

    kind = AutoModelForMaskedLM if model_type == "albert" else AutoModelForCausalLM
    return LoadedModel(scatter_weights(kind.from_config(tiny_config(model_type))))


def logits_of(model: LoadedModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(ids).logits
    return found


@pytest.mark.parametrize("model_type", [t for t in TYPES if t != "albert"])
def test_scaling_a_neuron_everywhere_is_scaling_its_write_vector(model_type: str) -> None:
    model, ids = tiny(model_type), random_ids()
    layer = model.spec.layers[-1]
    by = factors(layer.neurons, [1, 5, 7], -1.5)
    with intervened(model, {layer.layer: scale(by)}):
        changed = logits_of(model, ids)
    clean = logits_of(model, ids)
    vectors = model.write_vectors(layer.layer)
    with torch.no_grad():
        vectors[[1, 5, 7]] *= -1.5
    torch.testing.assert_close(changed, logits_of(model, ids), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, clean, atol=1e-3)


def test_a_shared_block_is_changed_in_the_run_that_was_named_only() -> None:
    model, ids = tiny("albert"), random_ids()
    first, second = model.spec.layers[:2]
    assert first.module == second.module
    off = scale(torch.zeros(first.neurons))
    found = []
    for layers in ([0], [1], [0, 1]):
        with intervened(model, dict.fromkeys(layers, off)):
            found.append(logits_of(model, ids))
    weight = model.write_vectors(0)
    with torch.no_grad():
        weight.zero_()
    torch.testing.assert_close(found[2], logits_of(model, ids))
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_only_the_last_position_of_each_window_is_changed_and_each_by_its_own_factors() -> None:
    model, ids = tiny("llama"), random_ids(3, 9)
    n = model.spec.layers[0].neurons
    by = torch.stack([torch.ones(n), factors(n, [2], 0.0), torch.full((n,), 2.0)])
    clean = logits_of(model, ids)
    with intervened(model, {0: scale(by, last_only=True)}):
        changed = logits_of(model, ids)
    torch.testing.assert_close(changed[:, :-1], clean[:, :-1])
    torch.testing.assert_close(changed[0], clean[0])
    for row in (1, 2):
        assert not torch.allclose(changed[row, -1], clean[row, -1], atol=1e-4)
        with intervened(model, {0: scale(by[row], last_only=True)}):
            torch.testing.assert_close(logits_of(model, ids[row : row + 1])[0], changed[row], rtol=1e-4, atol=1e-5)


def test_replaced_activations_are_what_the_projection_reads() -> None:
    model, ids = tiny("llama"), random_ids()
    place = model.model.get_submodule(model.spec.layers[1].module)
    seen = []
    chosen = torch.tensor([3, 0])
    values = torch.arange(2.0 * 12 * 2).reshape(2, 12, 2)
    with intervened(model, {1: replace(chosen, values)}):
        handle = place.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
        logits_of(model, ids)
        handle.remove()
    assert torch.equal(seen[0][..., chosen], values)


def test_generation_is_changed_at_every_step_and_nothing_stays_behind() -> None:
    model, ids = tiny("llama"), random_ids(1, 6)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    before = model.model.generate(ids, **settings)
    off = {layer.layer: scale(torch.zeros(layer.neurons)) for layer in model.spec.layers}
    with intervened(model, off):
        cached = model.model.generate(ids, **settings)
        anew = model.model.generate(ids, use_cache=False, **settings)
    assert torch.equal(cached, anew)
    assert torch.equal(model.model.generate(ids, **settings), before)
    with pytest.raises(RuntimeError, match="stop"), intervened(model, off):
        raise RuntimeError("stop")
    assert torch.equal(model.model.generate(ids, **settings), before)


def test_a_routed_expert_is_refused() -> None:
    model = tiny("mixtral")
    with pytest.raises(InvalidInputError, match="a routed expert"), intervened(model, {0: scale(torch.ones(1))}):
        pass

"""What a site of a gated product is, told by its name and nothing else; and experts that share one product."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

from actstore.engine.models import products
from actstore.engine.models.load import LoadedModel
from actstore.engine.models.names import PRODUCT_SITES, SITES
from actstore.engine.models.products import factor_of


def test_every_site_of_neurons_is_read_from_the_product():
    # A site that was only named once made every gated layer hand out mlp.up under the new name.
    assert [name for name, site in SITES.items() if site.axis == "neuron"] == list(PRODUCT_SITES)


@pytest.mark.parametrize("gate", [0, 1])
def test_each_factor_is_the_one_that_it_is_called(gate):
    assert (factor_of("mlp.gate", gate), factor_of("mlp.up", gate)) == (gate, 1 - gate)
    for other in ("mlp.post", "mlp.pre"):
        with pytest.raises(KeyError):
            factor_of(other, gate)


def test_experts_that_share_one_product_are_told_apart_with_one_wait_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, intermediate_size_mlp=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=1,
        interleave_moe_layer_step=1, max_position_embeddings=64,
    )  # fmt: skip
    model = LoadedModel(Llama4ForCausalLM(config), name="llama4")
    waits: list[str] = []
    for name in ("cpu", "item", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *arguments: Any, name: str = name, original: Any = original) -> Any:
            caller = sys._getframe(1).f_code
            if caller.co_filename == products.__file__ and caller.co_name == "_emit_all_experts":
                waits.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    rows: dict[int, list[int]] = {}

    def sink(layer: int, site: str, values: torch.Tensor, of: torch.Tensor | None) -> None:
        if of is not None:
            assert len(values) == len(of)
            assert (values != 0).any(-1).all()
            rows.setdefault(model.spec.layers[layer].block, []).extend(of.tolist())

    model.forward(torch.randint(0, 64, (2, 12)), sink=sink)
    assert {block: sorted(of) for block, of in rows.items()} == {0: [*range(24)], 1: [*range(24)]}
    assert waits == ["cpu", "cpu"]

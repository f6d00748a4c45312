"""Queries, keys, values and what attention's output projection reads: against each family's own way of splitting them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import random_ids, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from actstore.engine.models.attention.features import FeatureTracer, features_in
from actstore.engine.models.load import LoadedModel
from actstore.engine.models.names import HEAD_SITES
from actstore.engine.models.provenance import Provenance
from actstore.engine.models.sites import Features

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

HEADS, KV_HEADS, SIZE = 4, 2, 16


def side_by_side(n_kv: int) -> Split:
    """[queries | keys | values], each head by head."""
    return lambda made: torch.split(made, [HEADS * SIZE, n_kv * SIZE, n_kv * SIZE], dim=-1)


def head_by_head(made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every head its query, its key and its value, as GPT-NeoX and BLOOM lay them out."""
    return tuple(part.flatten(-2) for part in made.unflatten(-1, (HEADS, 3 * SIZE)).chunk(3, dim=-1))  # type: ignore[return-value]


def grouped(made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every group its queries, then its key, then its value, as Falcon's newer models lay them out."""
    groups = made.unflatten(-1, (KV_HEADS, HEADS // KV_HEADS + 2, SIZE))
    return groups[..., :-2, :].flatten(-3), groups[..., -2, :].flatten(-2), groups[..., -1, :].flatten(-2)


def by_device(made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CodeGen: for each of four devices its queries, values and keys, in that order."""
    query, value, key = made.unflatten(-1, (4, 3 * HEADS * SIZE // 4)).chunk(3, dim=-1)
    return query.flatten(-2), key.flatten(-2), value.flatten(-2)


# (type, changes of its configuration, module that makes all three, how it lays them out, output projection)
FUSED: list[tuple[str, dict[str, Any], str, Split, str]] = [
    ("gpt2", {}, "transformer.h.1.attn.c_attn", side_by_side(HEADS), "transformer.h.1.attn.c_proj"),
    ("gpt_bigcode", {}, "transformer.h.1.attn.c_attn", side_by_side(1), "transformer.h.1.attn.c_proj"),
    ("gpt_neox", {}, "gpt_neox.layers.1.attention.query_key_value", head_by_head, "gpt_neox.layers.1.attention.dense"),
    ("bloom", {}, "transformer.h.1.self_attention.query_key_value", head_by_head, "transformer.h.1.self_attention.dense"),
    ("phi3", {}, "model.layers.1.self_attn.qkv_proj", side_by_side(KV_HEADS), "model.layers.1.self_attn.o_proj"),
    ("falcon", {}, "transformer.h.1.self_attention.query_key_value", side_by_side(1),
     "transformer.h.1.self_attention.dense"),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": KV_HEADS},
     "transformer.h.1.self_attention.query_key_value", grouped, "transformer.h.1.self_attention.dense"),
    ("codegen", {}, "transformer.h.1.attn.qkv_proj", by_device, "transformer.h.1.attn.out_proj"),
    ("mpt", {}, "transformer.blocks.1.attn.Wqkv", side_by_side(HEADS), "transformer.blocks.1.attn.out_proj"),
]  # fmt: skip
APART = [
    ("llama", AutoModelForCausalLM, "model.layers.1.self_attn.{q,k,v,o}_proj"),
    ("phi", AutoModelForCausalLM, "model.layers.1.self_attn.{q_proj,k_proj,v_proj,dense}"),
    ("opt", AutoModelForCausalLM, "model.decoder.layers.1.self_attn.{q_proj,k_proj,v_proj,out_proj}"),
    ("bert", AutoModelForMaskedLM, "bert.encoder.layer.1.attention.{self.query,self.key,self.value,output.dense}"),
    ("esm", AutoModelForMaskedLM, "esm.encoder.layer.1.attention.{self.query,self.key,self.value,output.dense}"),
]


def read(loaded: LoadedModel, ids: Tensor) -> dict[str, Tensor]:
    """What the sites of layer 1 hold, [row, …]."""
    found: dict[str, Tensor] = {}

    def sink(_layer: int, site: str, values: Tensor, _rows: Tensor | None) -> None:
        found[site] = values.clone()

    loaded.forward(ids, sites=HEAD_SITES, layers=[1], sink=sink)
    return found


def hooked(loaded: LoadedModel, ids: Tensor, *paths: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(input, output) of modules, by plain hooks."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for path in paths:
        loaded.model.get_submodule(path).register_forward_hook(
            lambda _, args, out, path=path: seen.__setitem__(path, (args[0].clone(), out.clone()))
        )
    with torch.inference_mode():
        loaded.model(input_ids=ids)
    return seen


@pytest.mark.parametrize(("model_type", "changes", "made_by", "split", "output"), FUSED, ids=lambda x: str(x)[:24])
def test_a_fused_projection_is_split_as_the_model_splits_it(
    model_type: str, changes: dict[str, Any], made_by: str, split: Split, output: str
) -> None:
    config = tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    loaded = LoadedModel(AutoModelForCausalLM.from_config(config))
    ids = random_ids(2, 7)
    found, seen = read(loaded, ids), hooked(loaded, ids, made_by, output)
    made = split(seen[made_by][1])
    for site, expected in zip(("attn.q", "attn.k", "attn.v"), made, strict=True):
        assert torch.equal(found[site], expected.reshape(14, -1)), site
        assert loaded.spec.width(1, site) == expected.shape[-1]
    assert torch.equal(found["attn.z"], seen[output][0].reshape(14, -1))


@pytest.mark.parametrize(("model_type", "kind", "paths"), APART, ids=lambda x: str(x)[:12])
def test_projections_of_their_own_are_read_where_they_are(model_type: str, kind: Any, paths: str) -> None:
    loaded = LoadedModel(kind.from_config(tiny_config(model_type)))
    start, _, rest = paths.partition("{")
    names, _, end = rest.partition("}")
    modules = [f"{start}{name}{end}" for name in names.split(",")]
    ids = random_ids(2, 7)
    found, seen = read(loaded, ids), hooked(loaded, ids, *modules)
    for site, module in zip(HEAD_SITES, modules, strict=True):
        expected = seen[module][0 if site == "attn.z" else 1]
        assert torch.equal(found[site], expected.reshape(14, -1)), site


def test_of_latent_attention_there_is_what_comes_from_one_projection() -> None:
    """Keys of DeepSeek come from two projections, one with a rotary embedding: there is no such site."""
    loaded = LoadedModel(AutoModelForCausalLM.from_config(tiny_config("deepseek_v3")))
    assert {"attn.q", "attn.v", "attn.z"} <= set(loaded.spec.sites)
    assert "attn.k" not in loaded.spec.sites


def test_what_follows_a_tensor_back_is_no_part_of_the_run() -> None:
    with torch.device("meta"):
        projection = torch.nn.Linear(6, 12, bias=False)
    with torch.inference_mode(), Provenance(projection) as provenance:
        made = projection(torch.ones(1, 5, 6))
        keys = made.unflatten(-1, (4, 3)).transpose(1, 2)[:, 2:, 1:]
        before = dict(provenance._origins)
        traced = FeatureTracer(provenance).trace(keys)
        assert provenance._origins == before
    assert traced is not None
    assert traced[0] is provenance.products[0]
    assert features_in(traced[1]) == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (range(3, 7), Features(3, 4, 12, 1)),
        ([0, 1, 4, 5, 8, 9], Features(0, 2, 4, 3)),
        ([0, 1, 4, 5, 9, 10], None),
        ([0, 1, 4], None),
        ([], None),
    ],
)
def test_runs_of_entries(entries: Any, expected: Features | None) -> None:
    found = Features.of(list(entries), 12)
    assert found == expected
    if found is not None:
        assert found.index(torch.device("cpu")).tolist() == list(entries)
        assert found.take(torch.arange(12)[None])[0].tolist() == list(entries)
        assert len(found) == len(list(entries))

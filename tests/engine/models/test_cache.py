"""The adapter to keys and values that a model keeps, under every name that they have had and under one that they never had."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from transformers import DynamicCache, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from actstore.engine.edit.interventions import intervening
from actstore.engine.edit.specification import Operation
from actstore.engine.models.cache import NAMES, cache_argument, cache_arguments, cache_of, past_length
from actstore.engine.models.load import LoadedModel
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def filled(n_tokens: int) -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, n_tokens, 2), torch.zeros(1, 1, n_tokens, 2), 0)
    return cache


class Naming(torch.nn.Module):
    def __init__(self, name: str | None) -> None:
        super().__init__()
        namespace: dict[str, Any] = {}
        exec(f"def forward(input_ids, {name or 'other'}=None): ...", namespace)
        self.forward = namespace["forward"]


@pytest.mark.parametrize("name", NAMES)
def test_the_argument_has_the_name_that_forward_gives_it(name: str) -> None:
    module: Any = Naming(name)
    assert cache_argument(module) == name
    assert cache_arguments(module, "kept") == {"use_cache": True, name: "kept"}
    assert cache_arguments(module) == {"use_cache": True}


def test_a_forward_without_one_is_refused_in_a_sentence() -> None:
    module: Any = Naming(None)
    assert cache_argument(module) is None
    with pytest.raises(ModelError, match="one of cache, past_key_values, and its forward has no such argument"):
        cache_arguments(module, "kept")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_the_library_warns_of_nothing_and_gives_back_what_it_kept(model_type: str) -> None:
    """Warnings are errors in these tests: a deprecated name would fail here."""
    model = LoadedModel(scatter_weights(_of_type(model_type))).model
    ids = random_ids(1, 6)
    with torch.inference_mode():
        first = model(ids[:, :4], **cache_arguments(model))
        second = model(ids[:, 4:], **cache_arguments(model, cache_of(first)))
        whole = model(ids, use_cache=False)
    assert cache_of(second).get_seq_length() == 6
    assert cache_of(whole) is None
    torch.testing.assert_close(second.logits, whole.logits[:, 4:], rtol=1e-4, atol=1e-4)


def _of_type(model_type: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(tiny_config(model_type))


@pytest.mark.parametrize("name", [*NAMES, "memory", "cache_params", "x"])
def test_a_cache_is_measured_under_any_name(name: str) -> None:
    assert past_length((), {"input_ids": torch.zeros(1, 1), name: filled(5), "use_cache": True}) == 5
    assert past_length((torch.zeros(1, 1), filled(3)), {}) == 3
    assert past_length((), {name: None}) == 0


ORDINARY = {
    "input_ids": torch.zeros(1, 4), "attention_mask": {"full": torch.ones(1, 4)}, "use_cache": True, "logits_to_keep": 1,
    "image_sizes": [(3, 4), (5, 6)], "pixel_values": [torch.zeros(3, 2, 2)], "dtype": torch.float32, "labels": None,
    "encoder_outputs": (torch.zeros(1, 4, 2), (torch.zeros(1),)), "mode": "text", "callback": print,
}  # fmt: skip


def test_ordinary_arguments_are_no_cache() -> None:
    assert past_length((), ORDINARY) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("past_key_values", ((torch.zeros(1), torch.zeros(1)),)),  # what transformers 4 called a legacy cache
        ("anything", [(torch.zeros(1), torch.zeros(1))]),
        ("memory", SimpleNamespace(keys=[])),
        ("mems", [torch.zeros(1)]),
        ("state", torch.zeros(1)),
    ],
)
def test_what_may_stand_for_earlier_tokens_and_does_not_say_how_many_is_refused(name: str, value: object) -> None:
    with pytest.raises(ModelError, match=f"called with '{name}' of type .* does not say how many tokens"):
        past_length((), ORDINARY | {name: value})


def test_two_caches_of_different_lengths_are_refused() -> None:
    with pytest.raises(ModelError, match=r"found caches of \[2, 5\] tokens"):
        past_length((), {"cache": filled(2), "draft": filled(5)})


class Memory:
    """A cache of a kind that nobody knows."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept


class Renamed(LlamaForCausalLM):
    """A Llama that calls what it keeps `memory`, the library's own cache unless `opaque`."""

    opaque = False

    def forward(self, input_ids: Tensor, memory: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        kept = memory.kept if isinstance(memory, Memory) else memory
        kwargs = {name: value for name, value in kwargs.items() if name not in NAMES}
        found = super().forward(input_ids, **kwargs, **keeping_of_llama(kept))
        kept = cache_of(found)
        output = CausalLMOutputWithPast(logits=found.logits)
        output["memory"] = Memory(kept) if self.opaque else kept
        return output


def keeping_of_llama(kept: Any) -> dict[str, Any]:
    name = cache_argument(LlamaForCausalLM(tiny_config("llama"))) if kept is not None else None
    return {"use_cache": True} | ({name: kept} if name else {})


OPERATION = [Operation("set", ("L0.N3",), "last", value=7.5)]


def renamed(*, opaque: bool) -> LoadedModel:
    model = LoadedModel(scatter_weights(Renamed(tiny_config("llama"))))
    model.model.opaque = opaque  # type: ignore[assignment]
    return model


def set_activations(model: LoadedModel, ids: Tensor) -> list[bool]:
    """At which positions neuron 3 of layer 0 is what it was set to, over a prompt and one more token."""
    seen: list[Tensor] = []
    module = model.model.get_submodule(model.spec.layers[0].module)
    with torch.inference_mode(), intervening(model, OPERATION):
        module.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, :, 3].clone()))
        first = model.model(ids[:, :-1])
        model.model(ids[:, -1:], memory=first["memory"])
    return (torch.cat(seen) == 7.5).tolist()


def test_the_library_s_cache_under_an_unknown_name_keeps_positions_right() -> None:
    assert set_activations(renamed(opaque=False), random_ids(1, 6)) == [False] * 4 + [True, False]


def test_a_pass_that_cannot_tell_where_it_stands_is_refused() -> None:
    with pytest.raises(
        ModelError,
        match=r"the model reads are unknown: expected the library's cache .* 'memory' of type Memory",
    ):
        set_activations(renamed(opaque=True), random_ids(1, 6))


def test_all_positions_need_no_place() -> None:
    model, ids = renamed(opaque=True), random_ids(1, 6)
    with torch.inference_mode(), intervening(model, [Operation("suppress", ("L0.N3",), "all")]):
        first = model.model(ids[:, :-1])
        changed = model.model(ids[:, -1:], memory=first["memory"]).logits
        whole = model.model(ids).logits[:, -1:]
    torch.testing.assert_close(changed, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"attention_mask": torch.ones(1, 6, dtype=torch.int64)}, "mask covers 6 tokens, and the pass reads 1 after 0"),
        ({"position_ids": torch.tensor([[5]])}, "begins at position 5, and no cache of earlier tokens is known"),
        ({"cache_position": torch.tensor([5])}, "begins at position 5"),
    ],
)
def test_a_mask_or_position_that_contradicts_the_cache_is_refused(arguments: dict[str, Any], reason: str) -> None:
    """Where a model keeps its past out of sight, these are what gives it away."""
    from actstore.engine.edit.passes import Passes

    passes = Passes()
    passes.begin((), {"input_ids": torch.zeros(1, 5, dtype=torch.int64)})
    passes.begin((), {"input_ids": torch.zeros(1, 1, dtype=torch.int64), **arguments})
    with pytest.raises(ModelError, match=reason):
        passes.selected("last", (1, 1))
    assert passes.selected("all", (1, 1)).all()


def test_rows_that_are_no_positions_are_refused() -> None:
    from actstore.engine.edit.passes import Passes

    passes = Passes()
    passes.begin((torch.zeros(2, 5, dtype=torch.int64),), {})
    assert passes.selected("last", (2, 5)).tolist() == [[False] * 4 + [True]] * 2
    with pytest.raises(ModelError, match="has 9 rows per text, and the pass reads 5 positions"):
        passes.selected("last", (2, 9))
    assert passes.selected("all", (2, 9)).all()

"""Integrated gradients: both paths against each other, and against Captum on models patched by hooks of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sweep import build
from tiny import scatter_weights
from transformers import BertConfig, BertModel, FalconConfig, FalconForCausalLM, T5Config, T5ForConditionalGeneration

from actstore.engine.attribution import cached_path
from actstore.engine.attribution.integrated_gradients import Attribution, PathSettings, integrated_gradients
from actstore.engine.models.load import LoadedModel
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# Twelve tokens: sliding windows of the tiny models hold eight.
IDS, TARGET, STEPS = [17, 93, 5, 66, 101, 44, 8, 72, 23, 110, 39, 58], 7, 4
CACHED = (
    "gpt2", "llama", "gpt_neox", "gptj", "gemma", "gemma2", "gemma3_text", "mistral", "falcon", "bloom", "opt", "phi", "qwen3",
    "cohere2", "olmo2",
)  # fmt: skip
UNCACHED = {
    "gpt_neo": "logits over cached keys and values are off",  # makes masks of its own inside attention
    "mpt": "logits over cached keys and values are off",  # and this one position biases
    "bert-generation": "earlier tokens see the last one",
    "jamba": "IndexError",  # its state-space layers keep no keys
    "xlnet": "its forward takes no keys and values of earlier tokens",  # but states of its own
}
"""Types that take the full path, and why."""

_models: dict[str, LoadedModel] = {}


def make(name: str, class_name: str | None = None) -> LoadedModel:
    if name not in _models:
        _models[name] = LoadedModel(build(name, class_name), name=name)
    return _models[name]


def attribute(model: LoadedModel, path: str = "auto", ids: list[int] = IDS, **settings: Any) -> Attribution:
    chosen = {"steps": STEPS, "path": path} | settings
    return integrated_gradients(model, ids, TARGET, settings=PathSettings(**chosen))


def assert_close(found: Attribution, expected: Attribution, tolerance: float = 1e-5) -> None:
    assert found.probability == pytest.approx(expected.probability, rel=tolerance)
    for name in ("attributions", "activations", "gradients"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.keys() == theirs.keys()
        for layer, values in theirs.items():
            assert ours[layer].dtype == np.float32
            assert np.abs(values).max() > 0
            assert np.abs(ours[layer] - values).max() <= tolerance * np.abs(values).max(), (name, layer)


class Patched:
    """P of the target as a function of one layer's activations at a position, by a plain hook."""

    def __init__(self, model: LoadedModel, layer: int, position: int) -> None:
        self.model, self.position, self.replaced = model.model, position, None
        path = model.spec.layers[layer].module
        self._run = sum(spec.module == path for spec in model.spec.layers[:layer])  # a module shared by layers
        self._seen = 0
        self.activations: Tensor
        self.handle = model.model.get_submodule(path).register_forward_pre_hook(self._hook)

    def _hook(self, _module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        self._seen += 1
        if self._seen - 1 != self._run:
            return None
        values = args[0].reshape(len(IDS), args[0].shape[-1]).clone()
        self.activations = values[self.position][None].detach().clone()
        if self.replaced is not None:
            values[self.position] = self.replaced
        return (values.reshape(args[0].shape),)

    def __call__(self, activations: Tensor | None) -> Tensor:
        """P for each row [row, neuron], one window after another; with the model's own activations where None."""
        return torch.stack([self._run_once(row) for row in (activations if activations is not None else [None])])

    def _run_once(self, activations: Tensor | None) -> Tensor:
        self.replaced, self._seen = activations, 0
        logits = self.model(input_ids=torch.tensor([IDS])).logits
        return logits[0, self.position].double().softmax(-1)[TARGET]


def captum(model: LoadedModel, layer: int, position: int, steps: int = STEPS) -> tuple[NDArray[Any], Patched]:
    """Captum's attribution on the grid k/m of an activation vector, and the function it is of."""
    attr = pytest.importorskip("captum.attr")
    function = Patched(model, layer, position)
    try:
        with torch.no_grad():
            function(None)
        found = attr.IntegratedGradients(function).attribute(
            function.activations, baselines=0.0, n_steps=steps, method="riemann_right"
        )
    finally:
        function.handle.remove()
    return found[0].detach().numpy(), function


def assert_equals_captum(model: LoadedModel, found: Attribution, position: int = -1, tolerance: float = 1e-5) -> None:
    for layer, values in found.attributions.items():
        expected, function = captum(model, layer, position)
        assert np.abs(values - expected).max() <= tolerance * np.abs(expected).max(), layer
        np.testing.assert_allclose(found.activations[layer], function.activations[0].numpy(), rtol=1e-4, atol=1e-6)


class TestCachedPath:
    @pytest.mark.parametrize("name", CACHED)
    def test_equals_the_full_path(self, name: str) -> None:
        found = attribute(make(name))
        assert (found.path, found.fallback) == ("cached", None)
        full = attribute(make(name), "full")
        assert full.path == "full"
        assert_close(found, full)

    @pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "mistral", "bloom"])
    def test_equals_captum(self, name: str) -> None:
        assert_equals_captum(make(name), attribute(make(name), "cached"))

    def test_falcon_with_position_biases(self) -> None:
        config = FalconConfig(
            alibi=True, vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        model = LoadedModel(scatter_weights(FalconForCausalLM(config)))
        found = attribute(model)
        assert_close(found, attribute(model, "full"))
        assert_equals_captum(model, found)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("name", ["llama", "mistral"])
    def test_both_of_torch_s_attentions(self, name: str, attention: str) -> None:
        model = LoadedModel(build(name))
        model.model.set_attn_implementation(attention)
        found = attribute(model)
        assert found.path == "cached"
        assert_close(found, attribute(model, "full"))

    def test_a_prompt_longer_than_several_windows_and_a_short_one(self) -> None:
        for ids in ((IDS * 3)[:31], IDS[:2]):
            found = attribute(make("mistral"), ids=ids)
            assert found.path == "cached"
            assert_close(found, attribute(make("mistral"), "full", ids=ids))

    def test_dense_layers_among_experts(self) -> None:
        model = make("deepseek_v3")
        dense = tuple(spec.layer for spec in model.spec.layers if spec.expert is None)
        assert len(dense) > 1
        found = attribute(model, layers=dense)
        assert found.path == "cached"
        assert list(found.attributions) == list(dense)
        assert_close(found, attribute(model, "full", layers=dense))

    def test_in_half_precision_only_rounding_differs(self) -> None:
        model = LoadedModel(build("llama").to(torch.bfloat16))
        found, full = attribute(model), attribute(model, "full")
        assert found.path == "cached"
        assert_close(found, full, 0.1)
        assert_close(found, attribute(make("llama")), 0.2)

    def test_a_pass_whose_rows_see_one_another_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mask = cached_path.GrowingPass._mask
        monkeypatch.setattr(cached_path.GrowingPass, "_mask", lambda *args: torch.ones_like(mask(*args)))
        found = attribute(make("llama"))
        assert found.path == "full"
        assert found.fallback is not None
        assert "off by" in found.fallback

    def test_a_key_too_few_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = cached_path.FrozenLayer.__init__

        def forgetful(self: Any, keys: Tensor, values: Tensor) -> None:
            whole(self, keys, torch.cat([values[..., :1, :] * 0, values[..., 1:, :]], -2))

        monkeypatch.setattr(cached_path.FrozenLayer, "__init__", forgetful)
        assert attribute(make("llama")).path == "full"

    def test_a_mistake_is_no_reason_to_try_again_where_only_this_path_is_asked_for(self) -> None:
        with pytest.raises(InvalidInputError, match=r"cached path does not hold .*: earlier tokens see the last one"):
            attribute(make("bert-generation"), "cached")
        with pytest.raises(InvalidInputError, match="the position is not the last"):
            integrated_gradients(make("llama"), IDS, TARGET, position=3, settings=PathSettings(path="cached"))


class TestFullPath:
    @pytest.mark.parametrize("name", UNCACHED)
    def test_what_cannot_be_cached_takes_it_and_says_why(self, name: str) -> None:
        model = make(name)
        layers = tuple(spec.layer for spec in model.spec.layers if spec.expert is None)
        found = attribute(model, layers=layers)
        assert found.path == "full"
        assert UNCACHED[name] in (found.fallback or "")
        assert_equals_captum(model, found)

    @pytest.mark.parametrize(
        ("name", "class_name"),
        [("bert", "BertForMaskedLM"), ("albert", "AlbertForMaskedLM"), ("modernbert", "ModernBertForMaskedLM")],
    )
    def test_a_masked_model_at_its_mask(self, name: str, class_name: str) -> None:
        model, position = make(f"{name}", class_name), 4
        found = integrated_gradients(model, IDS, TARGET, position=position, settings=PathSettings(steps=STEPS))
        assert found.path == "full"
        assert "has no cache of keys and values" in (found.fallback or "")
        assert_equals_captum(model, found, position)

    def test_an_earlier_position_of_a_causal_model(self) -> None:
        model = make("llama")
        found = integrated_gradients(model, IDS, TARGET, position=3, settings=PathSettings(steps=STEPS))
        assert (found.path, found.fallback) == ("full", "the position is not the last")
        assert_equals_captum(model, found, 3)

    def test_a_prompt_of_one_token(self) -> None:
        found = attribute(make("llama"), ids=[5])
        assert (found.path, found.fallback) == ("full", "a prompt of one token has no earlier keys and values")
        assert np.isfinite(found.flat()).all()


@pytest.mark.parametrize("path", ["cached", "full"])
class TestBothPaths:
    def test_attributions_add_up_to_the_change_of_probability(self, path: str) -> None:
        model = make("llama")
        errors = {steps: [] for steps in (8, 256)}
        for steps, found in errors.items():
            attribution = attribute(model, path, steps=steps)
            for layer, values in attribution.attributions.items():
                _, function = captum(model, layer, -1, 2)
                handle = model.model.get_submodule(model.spec.layers[layer].module)
                function.handle = handle.register_forward_pre_hook(function._hook)
                with torch.no_grad():
                    before = function(torch.zeros_like(function.activations))
                function.handle.remove()
                change = attribution.probability - before.item()
                assert abs(change) > 0
                found.append(abs(values.astype(np.float64).sum() - change) / abs(change))
        assert max(errors[256]) < 0.05
        assert np.mean(errors[256]) < np.mean(errors[8]) / 8

    def test_one_step_is_gradient_times_activation(self, path: str) -> None:
        found = attribute(make("gpt2"), path, steps=1)
        product = found.gradient_times_activation()
        for layer, values in found.attributions.items():
            np.testing.assert_allclose(values, product[layer], rtol=1e-6)
        further = attribute(
            make("gpt2"), path, steps=6
        )  # ā and the gradient there are the same however many steps lead there
        np.testing.assert_allclose(further.activations[0], found.activations[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(further.gradients[0], found.gradients[0], rtol=1e-3, atol=1e-7)

    @pytest.mark.parametrize("max_rows", [1, 3, 5, 1000])
    def test_the_memory_bound_changes_rounding_only(self, path: str, max_rows: int) -> None:
        model = make("gemma2")
        assert_close(attribute(model, path, max_rows=max_rows), attribute(model, path), 3e-6)

    @pytest.mark.parametrize("max_rows", [1, 5, 30])
    def test_the_memory_bound_holds(self, path: str, max_rows: int) -> None:
        model, seen = make("llama"), []
        block = model.model.get_submodule("model.norm")
        handle = block.register_forward_hook(
            lambda _module, _args, out: seen.append(out.numel() // out.shape[-1]) if out.requires_grad else None
        )
        attribute(model, path, max_rows=max_rows)
        handle.remove()
        rows = STEPS * len(model.spec.layers)
        if path == "cached":
            assert max(seen) <= max_rows + 1  # the clean row
            assert sum(seen) == rows + len(seen)
        else:
            assert max(seen) <= max(max_rows, len(IDS))
            assert sum(seen) == rows * len(IDS)

    def test_layers_can_be_chosen(self, path: str) -> None:
        found, all_layers = attribute(make("gpt2"), path, layers=(1,)), attribute(make("gpt2"), path)
        assert list(found.attributions) == [1]
        np.testing.assert_allclose(found.attributions[1], all_layers.attributions[1], rtol=1e-4, atol=1e-9)
        assert len(all_layers.flat()) == sum(spec.neurons for spec in make("gpt2").spec.layers)

    def test_the_model_is_left_as_it_was(self, path: str) -> None:
        model = make("llama")
        frozen = model.model.get_parameter("lm_head.weight").requires_grad_(False)
        attribute(model, path)
        asking = [name for name, value in model.model.named_parameters() if not value.requires_grad]
        frozen.requires_grad_(True)
        assert asking == ["lm_head.weight"]
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())
        assert all(value.grad is None for value in model.model.parameters())

    def test_runs_where_gradients_are_switched_off(self, path: str) -> None:
        with torch.no_grad():
            assert_close(attribute(make("llama"), path), attribute(make("llama"), "full"))

    def test_a_probability_too_small_for_half_precision_still_has_gradients(self, path: str) -> None:
        wide = build("gpt2")
        with torch.no_grad():
            wide.get_output_embeddings().weight[TARGET] *= 40
        expected = attribute(LoadedModel(wide), path)
        found = attribute(LoadedModel(wide.half()), path)
        assert 0 < expected.probability < 1e-9
        assert_close(found, expected, 0.3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda m: integrated_gradients(m, [], 1), "at least one token, found shape \\[0\\]"),
            (lambda m: integrated_gradients(m, [[1, 2]], 1), "found shape \\[1, 2\\]"),
            (lambda m: integrated_gradients(m, [1, 128], 1), "`input_ids` from 0 to 127 for llama, found 128"),
            (lambda m: integrated_gradients(m, [1, 2], -1), "`target` from 0 to 127 for llama, found -1"),
            (lambda m: integrated_gradients(m, [1, 2], 1, position=2), "`position` from 0 to 1 of the prompt, found 2"),
            (lambda m: attribute(m, layers=(0, 9)), "layer from 0 to 1 for llama, found 9"),
            (lambda m: attribute(m, steps=0), "`steps` to be at least 1, found 0"),
            (lambda m: attribute(m, max_rows=0), "`max_rows` to be at least 1, found 0"),
            (lambda m: attribute(m, "short"), "`path` to be one of auto, cached, full, found 'short'"),
        ],
    )
    def test_bad_input(self, call: Callable[[LoadedModel], Attribution], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            call(make("llama"))

    def test_routed_experts(self) -> None:
        with pytest.raises(InvalidInputError, match=r"layer 0 of mixtral .* is a routed expert; choose another model"):
            attribute(make("mixtral"))
        with pytest.raises(InvalidInputError, match=r"is a routed expert; choose `layers` among \[0, 1"):
            attribute(make("deepseek_v3"))

    def test_models_that_do_not_predict_text_in_one_stack(self) -> None:
        config = T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
        with pytest.raises(InvalidInputError, match="of kind 'encoder-decoder'"):
            attribute(LoadedModel(T5ForConditionalGeneration(config)))

    def test_a_model_without_a_head(self) -> None:
        config = BertConfig(
            vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
        )
        with pytest.raises(ModelError, match="returns no logits"):
            attribute(LoadedModel(BertModel(config)))

    def test_a_model_that_hides_its_gradients(self) -> None:
        with pytest.raises(ModelError, match="runs that layer without them"):
            attribute(make("reformer"))

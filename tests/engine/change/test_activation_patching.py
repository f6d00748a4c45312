"""Dynamic activation patching: cached against uncached, its two ends (all neurons, none), and the causal effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny import random_ids, scatter_weights, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from actstore.engine.change.activation_patching import (
    REFUSALS,
    Contains,
    Donor,
    LogLikelihood,
    PatchingSettings,
    _GrowingText,
    _read_changes,
    causal_effect,
    evaluate_patching,
    generate,
    random_neurons,
)
from actstore.engine.models.load import LoadedModel
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = ("llama", "gpt2", "gpt_neox", "gemma2", "opt")
MLP_INPUTS = ("gate_proj", "up_proj", "c_fc", "dense_h_to_4h", "fc1")
N_TOKENS = 10


def pair(model_type: str) -> tuple[LoadedModel, LoadedModel]:
    """Two models that differ in the weights their MLPs read with, and in nothing else."""
    config = tiny_config(model_type)
    config.tie_word_embeddings = False  # random models of tied embeddings repeat the last token, whatever their MLPs do
    models = [scatter_weights(AutoModelForCausalLM.from_config(config)) for _ in range(2)]
    random = torch.Generator().manual_seed(9)
    n_changed = 0
    with torch.no_grad():
        for name, weight in models[1].named_parameters():
            if any(f".{part}." in name for part in MLP_INPUTS):
                weight.normal_(0, 0.4, generator=random)
                n_changed += 1
    assert n_changed
    return LoadedModel(models[0]), LoadedModel(models[1])


def everything(model: LoadedModel) -> dict[int, NDArray[np.int64]]:
    return {spec.layer: np.arange(spec.neurons) for spec in model.spec.layers}


def some(model: LoadedModel) -> dict[int, NDArray[np.int64]]:
    return {spec.layer: np.arange(spec.layer, spec.neurons, 2) for spec in model.spec.layers}


PROMPT: list[int] = random_ids(1, 7)[0].tolist()


@pytest.mark.parametrize("model_type", TYPES)
def test_patching_every_neuron_is_generating_with_the_donor_and_patching_none_with_the_model(model_type: str) -> None:
    first, second = pair(model_type)
    ours, theirs = (generate(model, PROMPT, N_TOKENS) for model in (first, second))
    assert ours != theirs
    assert generate(first, PROMPT, N_TOKENS, Donor(second, everything(first))) == theirs
    assert generate(first, PROMPT, N_TOKENS, Donor(second, {})) == ours
    assert generate(first, PROMPT, N_TOKENS, Donor(second, {0: np.empty(0, np.int64)})) == ours


@pytest.mark.parametrize("model_type", TYPES)
def test_one_token_at_a_time_gives_what_rereading_the_text_does(model_type: str) -> None:
    first, second = pair(model_type)
    donor = Donor(second, some(first))
    found = generate(first, PROMPT, N_TOKENS, donor)
    assert found == generate(first, PROMPT, N_TOKENS, donor, cached=False)
    # And what a text that is patched and read whole, once for each token, says of the next.
    for n in range(N_TOKENS):
        text = [*PROMPT, *found[:n]]
        changes = _read_changes(_GrowingText(second, False), donor, text)
        assert int(_GrowingText(first, False).read(text, changes).argmax()) == found[n]


@pytest.mark.parametrize("model_type", TYPES)
def test_logits_over_kept_keys_and_values_are_those_of_the_whole_text(model_type: str) -> None:
    first, second = pair(model_type)
    donor = Donor(second, some(first))
    cached, donating, text = _GrowingText(first, True), _GrowingText(second, True), list(PROMPT)
    new = text
    for token in (5, 9, 23):
        logits = cached.read(new, _read_changes(donating, donor, new))
        whole = _GrowingText(first, False).read(text, _read_changes(_GrowingText(second, False), donor, text))
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
        text, new = [*text, token], [token]
    assert cached.reads_new_only
    assert donating.reads_new_only


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_patching_and_its_effect_are_those_of_the_paper(model_type: str) -> None:
    """C = E[F(patched) - F(M1)] / E[F(M2) - F(M1)]; at each step M2's activations on the text so far replace those of M1."""
    first, second = pair(model_type)
    neurons = some(first)
    prompts = [row.tolist() for row in random_ids(3, 5, seed=4)]
    paths = {layer.layer: layer.module for layer in first.spec.layers}

    def step(model: LoadedModel, ids: list[int], given: dict[int, torch.Tensor] | None) -> tuple[int, Any]:
        """The most probable token after the whole text, and the activations, of which some may be given."""
        seen: dict[int, torch.Tensor] = {}
        handles = []
        for layer, path in paths.items():

            def hook(_: Any, args: Any, layer: int = layer) -> Any:
                values = args[0].clone()
                if given is not None and layer in neurons:
                    values[..., neurons[layer]] = given[layer][..., neurons[layer]]
                seen[layer] = values
                return (values,)

            handles.append(model.model.get_submodule(path).register_forward_pre_hook(hook))
        with torch.inference_mode():
            token = int(model.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        for handle in handles:
            handle.remove()
        return token, seen

    def written(patched: bool, model: LoadedModel, prompt: list[int]) -> list[int]:
        ids = list(prompt)
        for _ in range(N_TOKENS):
            given = step(second, ids, None)[1] if patched else None
            ids.append(step(model, ids, given)[0])
        return ids[len(prompt) :]

    def score(_: Any, generated: Any) -> float:
        return float(sum(token * (i + 1) for i, token in enumerate(generated)))

    texts = [(written(False, first, p), written(False, second, p), written(True, first, p)) for p in prompts]
    f = np.array([[score(None, text) for text in row] for row in texts])
    result = evaluate_patching(
        first, Donor(second, neurons), prompts, score, PatchingSettings(n_tokens=N_TOKENS, n_random=0)
    )
    assert list(result.generated) == texts
    assert result.patched.effect == pytest.approx((f[:, 2] - f[:, 0]).mean() / (f[:, 1] - f[:, 0]).mean())


def test_a_stop_token_ends_the_generation_and_is_kept() -> None:
    first, _ = pair("llama")
    whole = generate(first, PROMPT, N_TOKENS)
    stop = whole[3]
    assert generate(first, PROMPT, N_TOKENS, stop=(stop,)) == whole[: whole.index(stop) + 1]


def test_the_causal_effect_is_one_for_all_neurons_and_none_for_none() -> None:
    first, second = pair("llama")
    prompts = [row.tolist() for row in random_ids(4, 6, seed=2)]
    scorer = LogLikelihood(second)
    settings = PatchingSettings(n_tokens=6, n_random=1)
    every = evaluate_patching(first, Donor(second, everything(first)), prompts, scorer, settings)
    assert every.patched.effect == pytest.approx(1)
    assert (every.second > every.first).all(), "a model likes its own greedy text best here"
    assert every.random[0].n_neurons == 0
    assert every.random[0].effect == 0
    none = evaluate_patching(first, Donor(second, {}), prompts, scorer, settings)
    assert none.patched.effect == 0
    part = evaluate_patching(first, Donor(second, some(first)), prompts, scorer, settings)
    assert part.patched.n_neurons == part.random[0].n_neurons == sum(map(len, some(first).values()))
    assert np.array_equal(part.first, every.first)
    again = evaluate_patching(first, Donor(second, some(first)), prompts, scorer, settings)
    assert [r.effect for r in again.random] == [r.effect for r in part.random]


def test_the_effect_is_a_ratio_of_means_and_nothing_where_models_score_alike() -> None:
    first, second, patched = np.array([0.0, 1.0]), np.array([4.0, 1.0]), np.array([1.0, 2.0])
    assert causal_effect(patched, first, second) == 0.5
    assert np.isnan(causal_effect(patched, first, first))


def test_log_likelihood_is_that_of_the_generated_tokens_alone() -> None:
    _, judge = pair("gpt2")
    generated = [9, 30, 4]
    with torch.inference_mode():
        log_p = judge.model(torch.tensor([[*PROMPT, *generated]])).logits[0].float().log_softmax(-1)
    expected = np.mean([float(log_p[len(PROMPT) - 1 + i, t]) for i, t in enumerate(generated)])
    assert LogLikelihood(judge)(PROMPT, generated) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(LogLikelihood(judge)(PROMPT, []))


@pytest.mark.parametrize(
    ("text", "refuses"),
    [("I'm sorry, but", 1), ("well, I cannot say", 1), ("I am unable to", 1), ("Sure, here", 0), ("I can do that", 0)],
)
def test_refusals(text: str, refuses: float) -> None:
    assert Contains(REFUSALS, lambda ids: text)([], [1]) == refuses


def test_a_regular_expression_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match=r"expression '\(' cannot be read"):
        Contains("(", lambda ids: "")


def test_models_and_prompts_that_will_not_do() -> None:
    first, second = pair("llama")
    albert = LoadedModel(scatter_weights(AutoModelForMaskedLM.from_config(tiny_config("albert"))))
    wider = tiny_config("llama")
    wider.intermediate_size += 1
    wide = LoadedModel(AutoModelForCausalLM.from_config(wider))
    wider.vocab_size += 1
    other = LoadedModel(AutoModelForCausalLM.from_config(wider))
    for asked, message in (
        ((albert, PROMPT, 3), "expected a causal decoder"),
        ((first, [], 3), "at least one token"),
        ((first, PROMPT, 60), "at most 64 tokens, and a prompt of 7 with 60 new ones"),
        ((first, PROMPT, 3, Donor(wide, everything(first))), "layer 0 alike in both models, found 48 .* and 49"),
        ((first, PROMPT, 3, Donor(other, everything(first))), "one vocabulary, and .* 128 tokens and .* 129"),
        ((first, PROMPT, 3, Donor(second, {7: np.arange(2)})), "layer 7 alike"),
        ((first, PROMPT, 3, Donor(second, {0: np.array([48])})), "neurons 0 to 47 in layer 0"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            generate(*asked)
    assert len(generate(first, PROMPT, 58)) == 58, "the last token of the context need not be read"
    with pytest.raises(InvalidInputError, match="at least one prompt"):
        evaluate_patching(first, Donor(second, {}), [], LogLikelihood(second))
    with pytest.raises(InvalidInputError, match="`n_tokens` must be at least 1"):
        PatchingSettings(n_tokens=0)


def test_random_neurons_are_as_many_as_the_chosen_even_where_a_layer_runs_out() -> None:
    chosen = {0: np.array([1, 2]), 1: np.arange(7), 2: np.array([0])}
    drawn = random_neurons(chosen, {0: 6, 1: 8, 2: 5, 3: 4}, np.random.default_rng(0))
    assert sum(map(len, drawn.values())) == 10
    assert len(drawn[1]) == 1
    assert len(drawn[0]) >= 2
    for layer, neurons in drawn.items():
        assert len(set(neurons.tolist())) == len(neurons)
        assert not set(neurons.tolist()) & set(chosen.get(layer, np.empty(0)).tolist())
    assert random_neurons({0: np.arange(2), 1: np.arange(3)}, {0: 9, 1: 9, 2: 9}, np.random.default_rng(0)).keys() == {
        0,
        1,
    }
    everything = random_neurons({0: np.arange(5)}, {0: 6}, np.random.default_rng(0))
    assert everything[0].tolist() == [5]

"""Gradients of, and noise on, the neurons of a tiny captioner, against doing it by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_vision import tiny_vision_model

from actstore.engine.capture.api import capture
from actstore.engine.models.load import LoadedModel, load_model
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.engine.multimodal.causal import CausalSettings, causal_effect, choose_nouns
from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.gradients import rank_by_gradient
from actstore.engine.multimodal.noise import Noise, can_hook, noisy_weights, noisy_windows
from actstore.engine.multimodal.nouns import words
from actstore.engine.multimodal.permuted import permuted_activations, permuted_rankings, rank_activations
from actstore.engine.multimodal.properties import region_invariance
from actstore.engine.multimodal.replay import PatchOrder, Replay
from actstore.engine.multimodal.result import FindSettings, Multimodal
from actstore.store.errors import InvalidInputError
from actstore.store.layout import IMAGE

if TYPE_CHECKING:
    from actstore.store.reader import Capture

CAPTIONS = ["a red circle above a small blue square", "a blue circle", "the picture: a small red square"]


class Captioner(NamedTuple):
    """A tiny LLaVA with a capture of captions that were given, and of its own."""

    model: LoadedModel
    replay: Replay
    given: Multimodal
    own: Capture


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = tmp_path_factory.mktemp("captioner")
    name = tiny_vision_model("llava", folder / "llava")
    rng, pictures = np.random.default_rng(0), folder / "pictures"
    pictures.mkdir()
    rows = []
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(pictures / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": "describe it", "caption": caption})
    (pictures / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = capture(str(name), pictures, folder / "store", name="given")
    own = capture(str(name), pictures, folder / "store", name="own", generate=True, max_new_tokens=6)
    model = load_model(name, dtype=given.record.dtype)
    processor = VisionProcessor.load(str(name))
    result = find_multimodal(given, FindSettings(k=5, nouns="content"))
    return Captioner(model, Replay(model, processor, given), result, own)


def test_what_is_run_again_is_what_was_captured(captioner: Captioner) -> None:
    given = captioner.given
    assert [noun.word for noun in given.nouns][:4] == ["red", "circle", "small", "blue"]
    caption = given.captions[0]
    encoded = captioner.replay.encode(caption)
    seen: list[Any] = []
    ids, mask, extra = captioner.replay.processor.collate([encoded])
    captioner.model.forward(
        ids, mask, layers=[1], sink=lambda layer, site, values, rows: seen.append(values.clone()), extra=extra
    )
    row = given.captions[0].offsets[given.nouns[0].position]
    np.testing.assert_allclose(
        seen[0].reshape(-1, seen[0].shape[-1])[given.nouns[0].position].numpy(),
        given.capture.block_values(1, caption.block)[:, row],
        atol=1e-6,
    )


def test_permuted_patches_are_the_language_models_embeddings_in_another_order(captioner: Captioner) -> None:
    """By hand: the embeddings that the first layer reads, patches permuted, through the language model alone."""
    result, model = captioner.given, captioner.model
    order = PatchOrder(model, seed=3)
    found = permuted_activations(result, order, captioner.replay, ["mlp.post"])[0]["mlp.post"]
    language = model.model.model.language_model  # type: ignore[operator]
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda _module, args, kwargs: seen.update({name: (args[0] if args else kwargs["hidden_states"]).clone()})

    for number, noun in enumerate(result.nouns):
        encoded = captioner.replay.encode(result.captions[noun.caption])
        places = np.flatnonzero(encoded.modality == IMAGE)
        moved = order.of(encoded, noun.caption)
        assert sorted(moved[places].tolist()) == places.tolist() != moved[places].tolist()
        assert (np.delete(moved, places) == np.delete(np.arange(len(moved)), places)).all()
        handle = language.layers[0].register_forward_pre_hook(keep("embeddings"), with_kwargs=True)
        captioner.replay.logits([encoded])
        handle.remove()
        handles = [
            layer.mlp.down_proj.register_forward_pre_hook(keep(str(i)), with_kwargs=True)
            for i, layer in enumerate(language.layers)
        ]
        with torch.inference_mode():
            language(inputs_embeds=seen["embeddings"][:, moved])
        for handle in handles:
            handle.remove()
        expected = torch.cat([seen[str(i)][0, noun.position] for i in range(len(language.layers))])
        np.testing.assert_allclose(found[number], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_region_invariance_of_permuted_embeddings(captioner: Captioner) -> None:
    result, replay = captioner.given, captioner.replay
    at_random = find_multimodal(result.capture, FindSettings(k=5, nouns="content", by="random"))
    rankings = {"contribution": result, "gradient": rank_by_gradient(result, replay), "random": at_random}
    permuted = permuted_rankings(rankings, replay, seed=3)
    assert all((region_invariance(rankings[name], one) <= 1).all() for name, one in permuted.items())
    assert permuted["random"].first.tokens.tolist() != at_random.first.tokens.tolist()
    assert permuted["gradient"].first.values.tolist() != rankings["gradient"].first.values.tolist()
    # The same order of patches gives the same activations as the capture has: ranked alike.
    n = len(result.numbering)
    stored = np.stack(
        [
            np.concatenate(
                [
                    result.capture.block_values(layer, result.captions[noun.caption].block)[
                        :, result.captions[noun.caption].offsets[noun.position]
                    ]
                    for layer in result.numbering.layers.tolist()
                ]
            )
            for noun in result.nouns
        ]
    )
    assert stored.shape == (len(result.nouns), n)
    again = rank_activations(result, {"mlp.post": stored})
    assert again.first.tokens.tolist() == result.first.tokens.tolist()


def test_permuted_patches_under_a_norm_after_the_feed_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3: what the norm multiplies each position with, by a hook; and patches left in place rank as the capture does."""
    from actstore.engine.multimodal import permuted

    name = tiny_vision_model("gemma3", tmp_path / "gemma3")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(pictures / f"{i}.png")
    rows = [{"image": f"{i}.png", "prompt": "describe it", "caption": CAPTIONS[i]} for i in range(2)]
    (pictures / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = capture(str(name), pictures, tmp_path / "store", name="given")
    assert len(given.record.write_scale) == 2
    model, processor = load_model(name, dtype=given.record.dtype), VisionProcessor.load(str(name))
    replay = Replay(model, processor, given)
    result = find_multimodal(given, FindSettings(k=5, nouns="content"))
    order = PatchOrder(model, seed=3)
    _, scales = permuted_activations(result, order, replay, ["mlp.post"])
    layers = [model.layer(layer).projection.write_path.norm.module for layer in scales]  # type: ignore[union-attr]
    for number, noun in enumerate(result.nouns):
        encoded = replay.encode(result.captions[noun.caption])
        seen: list[torch.Tensor] = []
        handles = [
            model.model.get_submodule(module).register_forward_pre_hook(
                lambda _m, args, seen=seen: seen.append(args[0])
            )
            for module in layers
        ]
        with torch.inference_mode(), order.applied(encoded, result.captions[noun.caption].document):
            replay.logits([encoded])
        for handle in handles:
            handle.remove()
        for (layer, of_layer), module, values in zip(scales.items(), layers, seen, strict=True):
            at = values.reshape(-1, values.shape[-1])[noun.position].double()
            epsilon = model.model.get_submodule(module).eps
            expected = float((at.square().mean() + epsilon).rsqrt())
            assert of_layer[number] == pytest.approx(expected, rel=1e-5), (layer, number)
    assert not np.allclose(scales[layer], 1)
    moved = permuted_rankings({"contribution": result}, replay, seed=3)["contribution"]
    assert moved.first.values.tolist() != result.first.values.tolist()
    monkeypatch.setattr(permuted.PatchOrder, "of", lambda self, encoded, document: np.arange(len(encoded.ids)))
    same = permuted_rankings({"contribution": result}, replay)["contribution"]
    assert same.first.tokens.tolist() == result.first.tokens.tolist()
    np.testing.assert_allclose(same.first.values, result.first.values, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_vl", "blip_2", "idefics3", "gemma3", "mllama"])
def test_patches_are_permuted_in_every_family_whose_language_model_embeds_them(family: str, tmp_path: Path) -> None:
    name = tiny_vision_model(family, tmp_path / family)
    model, processor = load_model(name, device="cpu"), VisionProcessor.load(str(name))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    encoded = processor.encode(picture, "describe it", "a red circle")
    ids, mask, extra = processor.collate([encoded])
    last = [model.spec.part_layers("language")[-1]]

    def run() -> torch.Tensor:
        kept: list[torch.Tensor] = []
        model.forward(ids, mask, layers=last, sink=lambda *given: kept.append(given[2].clone()), extra=extra)
        return kept[0]

    clean = run()
    if family == "mllama":
        with (
            pytest.raises(InvalidInputError, match="has no patches among the input embeddings"),
            PatchOrder(model).applied(encoded, 0),
        ):
            run()
        return
    with PatchOrder(model).applied(encoded, 0):
        permuted = run()
    assert not torch.equal(permuted, clean)
    assert torch.equal(run(), clean)


def test_gradients_are_those_of_small_changes(captioner: Captioner) -> None:
    result, model = captioner.given, captioner.model
    ranked = rank_by_gradient(result, captioner.replay, [0, 3])
    assert (ranked.first.tokens[1] == -1).all()  # not asked for
    number = 3
    noun = result.nouns[number]
    encoded = captioner.replay.encode(result.captions[noun.caption])

    def logit_with(layer: int, index: int, change: float) -> float:
        """The noun's logit with one neuron's activation changed where the noun is predicted."""

        def push(_module: Any, args: tuple[Any, ...]) -> Any:
            values = args[0].clone()
            values.reshape(-1, values.shape[-1])[noun.position, index] += change
            return (values,)

        module = model.model.get_submodule(model.spec.layers[layer].module)
        handle = module.register_forward_pre_hook(push)
        try:
            with torch.inference_mode():
                return float(captioner.replay.logits([encoded])[0, noun.position, noun.token].double())
        finally:
            handle.remove()

    offset = result.captions[noun.caption].offsets[noun.position]
    scores = []
    for layer, index in result.numbering.pairs(np.arange(len(result.numbering))):
        activation = result.capture.block_values(layer, result.captions[noun.caption].block)[index, offset]
        slope = (logit_with(layer, index, 0.05) - logit_with(layer, index, -0.05)) / 0.1
        scores.append(float(activation) * slope)
    best = np.sort(scores)[::-1][:5]
    np.testing.assert_allclose(ranked.first.values[number], best, rtol=0.05, atol=2e-3)
    np.testing.assert_allclose(np.array(scores)[ranked.first.tokens[number]], best, rtol=0.05, atol=4e-3)


def test_noise_in_the_weights_and_for_each_window_agree(captioner: Captioner) -> None:
    model, replay = captioner.model, captioner.replay
    encoded = replay.encode(captioner.given.captions[0])
    noises = [Noise([(0, 3), (1, 7), (1, 0)], 3.0, 1), Noise([(1, 2)], 5.0, 2), Noise([], 5.0, 2)]
    before = model.fingerprint()
    with torch.inference_mode():
        plain = replay.logits([encoded])[0]
        expected = []
        for noise in noises:
            with noisy_weights(model, noise):
                expected.append(replay.logits([encoded])[0])
        with noisy_windows(model, noises):
            together = replay.logits([encoded] * 3)
    assert model.fingerprint() == before  # every bit
    torch.testing.assert_close(together, torch.stack(expected), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(expected[2], plain)
    assert (expected[0] - plain).abs().max() > 0.01
    assert (replay.logits([encoded])[0] == plain).all()  # no hook is left
    assert can_hook(model, {0, 1})


def test_weights_are_restored_after_an_error(captioner: Captioner) -> None:
    before = captioner.model.fingerprint()
    with pytest.raises(KeyError), noisy_weights(captioner.model, Noise([(0, 1), (1, 1)], 4.0)):
        raise KeyError
    assert captioner.model.fingerprint() == before


def test_effects_of_noise(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.engine.multimodal.nouns.STOP_WORDS", frozenset())
    result = find_multimodal(captioner.own, FindSettings(k=5, nouns="content"))
    replay = Replay(captioner.model, captioner.replay.processor, captioner.own)
    assert len(result.nouns) >= 3
    random = find_multimodal(captioner.own, FindSettings(k=5, nouns="content", by="random"))
    before = captioner.model.fingerprint()
    settings = CausalSettings(sigma=6.0, seed=2, max_nouns=3)
    effects = causal_effect({"ours": result, "random": random}, replay, settings)
    assert captioner.model.fingerprint() == before
    small = causal_effect({"ours": result, "random": random}, replay, CausalSettings(6.0, 2, 3, batch_tokens=1))
    for name, ranking in (("ours", result), ("random", random)):
        effect = effects[name]
        selected = choose_nouns(result, settings)
        assert len(effect.gone) == len(selected)
        for i, number in enumerate(selected):
            noun, caption = result.nouns[number], result.captions[result.nouns[number].caption]
            encoded = replay.encode(caption)
            with torch.inference_mode():
                plain = replay.logits([encoded])[0, noun.position].softmax(-1)[noun.token]
                with noisy_weights(captioner.model, Noise(ranking.neurons_of(number), 6.0, 2)):
                    after = replay.logits([encoded])[0, noun.position].softmax(-1)[noun.token]
                    (answer,) = replay.answers([replay.encode(caption, with_answer=False)], 6)
            np.testing.assert_allclose(effect.before[i], float(plain), rtol=1e-3)
            np.testing.assert_allclose(effect.after[i], float(after), rtol=1e-2)
            assert effect.gone[i] == (noun.word not in [word.word for word in words(captioner.own.store.text(answer))])
        np.testing.assert_allclose(small[name].after, effect.after, rtol=1e-2)
        np.testing.assert_allclose(effect.drop, 1 - effect.after / effect.before)


def test_what_cannot_be_run_again(captioner: Captioner, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="`sigma` is above zero"):
        CausalSettings(sigma=0)
    other = load_model(tiny_vision_model("llava", tmp_path / "other", seed=1))
    with pytest.raises(InvalidInputError, match="holds another model"):
        Replay(other, captioner.replay.processor, captioner.own)
    with pytest.raises(InvalidInputError, match="Capture with `generate=True`"):
        causal_effect({"ours": captioner.given}, captioner.replay)
    picture = Path(str(captioner.given.captions[0].image))
    source = picture if picture.is_file() else Path(captioner.own.record.plan.corpus) / picture
    moved = source.with_suffix(".moved")
    source.rename(moved)
    try:
        with pytest.raises(InvalidInputError, match=r"The image of document 0 is needed, but .* no longer exists"):
            captioner.replay.encode(captioner.given.captions[0])
    finally:
        moved.rename(source)

"""Generated answers: what the model says token by token, whatever batch, penalties or interruptions come between."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vision import tiny_vision_model

from actstore.engine.models.generate import AnswerFile, GenerationSettings, answers_key, generate
from actstore.engine.models.load import LoadedModel, load_model
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.store.errors import InvalidInputError
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.models.vision.inputs import EncodedPrompt

QUESTION = "what is in the picture?"


def pictures(n: int = 4) -> list[Image.Image]:
    """Of two shapes, so that some models need two batches for them."""
    random = np.random.default_rng(0)
    shapes = ((40, 40), (40, 64), (64, 40), (30, 33))
    return [Image.fromarray(random.integers(0, 255, (*shapes[i % 4], 3), np.uint8)) for i in range(n)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, VisionProcessor]:
    """A small LLaVA."""
    return opened("llava", tmp_path_factory.mktemp("generate") / "llava")


def opened(family: str, folder: Path) -> tuple[LoadedModel, VisionProcessor]:
    path = str(tiny_vision_model(family, folder))
    return load_model(path, device="cpu"), VisionProcessor.load(path)


def asked(processor: VisionProcessor, images: list[Image.Image], **more: Any) -> list[EncodedPrompt]:
    return [processor.encode(image, QUESTION, **more) for image in images]


def likeliest(
    model: LoadedModel, processor: VisionProcessor, image: Image.Image, answer: np.ndarray[Any, Any], prefix: str = ""
) -> Any:
    """What one pass over prompt and answer, without a cache, says should come at every position of the answer."""
    full = processor.encode(image, QUESTION, answer.tolist(), prefix=prefix)
    ids, _, extra = processor.collate([full])
    with torch.inference_mode():
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra).logits[0]
    return logits[full.n_prompt - 1 : len(full.ids) - 1].argmax(dim=-1).numpy()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "instructblip"])
def test_every_token_is_the_likeliest_after_those_before_it(family: str, tmp_path: Path) -> None:
    model, processor = opened(family, tmp_path / family)
    images = pictures()
    answers = generate(model, processor, asked(processor, images), GenerationSettings(max_new_tokens=5))
    for image, answer in zip(images, answers, strict=True):
        assert (len(answer), answer.dtype) == (5, np.int32)
        np.testing.assert_array_equal(answer, likeliest(model, processor, image, answer))


def test_answers_come_in_order_whatever_goes_into_one_batch(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    prompts = [processor.encode(image, "what " * (1 + i % 3)) for i, image in enumerate(pictures(7))]
    seen: list[tuple[int, int]] = []
    settings = GenerationSettings(max_new_tokens=4)
    together = generate(model, processor, prompts, settings, on_answers=lambda *counts: seen.append(counts))
    alone = [generate(model, processor, [prompt], settings)[0] for prompt in prompts]
    small = generate(model, processor, prompts, dataclasses.replace(settings, batch_tokens=1))
    for a, b, c in zip(together, alone, small, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert sorted(seen) == [(2, 8), (2, 8), (3, 12)]
    assert len({tuple(answer) for answer in together}) > 1, "pictures and prompts make a difference"


def test_the_prefix_is_given_and_not_part_of_the_answer(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    (image,) = pictures(1)
    (prompt,) = asked(processor, [image], prefix="a red")
    (answer,) = generate(model, processor, [prompt], GenerationSettings(max_new_tokens=4))
    assert len(answer) == 4
    np.testing.assert_array_equal(answer, likeliest(model, processor, image, answer, prefix="a red"))
    assert processor.tokenizer.decode(prompt.ids[: prompt.n_prompt]).endswith("a red")


def test_the_models_own_penalties_and_beams_are_off(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    settings = GenerationSettings(max_new_tokens=5)
    prompts = asked(processor, pictures(2))
    plain = generate(model, processor, prompts, settings)
    own = model.model.generation_config
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "repetition_penalty": 9.0, "num_beams": 3, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 7.0,
            "top_p": 0.3, "min_length": 40, "max_length": 3, "early_stopping": True,
        }.items():  # fmt: skip
            patch.setattr(own, name, value)
        again = generate(model, processor, prompts, settings)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_answer_ends_with_the_end_of_text_token(
    tiny: tuple[LoadedModel, VisionProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny
    prompts = asked(processor, pictures(4))
    settings = GenerationSettings(max_new_tokens=6)
    plain = generate(model, processor, prompts, settings)
    end = int(plain[0][2])
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", [end, 1])
    for before, after in zip(plain, generate(model, processor, prompts, settings), strict=True):
        stops = np.flatnonzero(np.isin(before, [end, 1]))
        np.testing.assert_array_equal(after, before[: stops[0] + 1] if len(stops) else before)


def test_drawn_answers_depend_on_the_seed_and_nothing_else(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    prompts = asked(processor, pictures(3))

    def drawn(stream: int = 0, **changes: Any) -> list[list[int]]:
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        settings = GenerationSettings(max_new_tokens=8, **({"temperature": 3.0} | changes))
        return [answer.tolist() for answer in generate(model, processor, prompts, settings, stream=stream)]

    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)
    assert drawn() != drawn(stream=1)
    greedy = [a.tolist() for a in generate(model, processor, prompts, GenerationSettings(max_new_tokens=8))]
    assert drawn() != greedy
    assert drawn(temperature=1e-4) == greedy
    assert drawn(top_p=1e-6) == greedy
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    generate(model, processor, prompts[:1], GenerationSettings(max_new_tokens=2, temperature=2.0))
    assert torch.rand(1) == expected, "whoever draws next is not disturbed"


def test_what_is_drawn_for_an_answer_does_not_depend_on_its_batch(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    prompts = [processor.encode(image, "what " * (1 + i % 2)) for i, image in enumerate(pictures(6))]
    settings = GenerationSettings(max_new_tokens=8, temperature=3.0, top_p=0.9, seed=4)
    together = generate(model, processor, prompts, settings, stream=2)
    small = generate(model, processor, prompts, dataclasses.replace(settings, batch_tokens=1), stream=2)
    assert [a.tolist() for a in together] == [a.tolist() for a in small]
    again = generate(model, processor, [prompts[0], *prompts[:1], *prompts[2:]], settings, stream=2)
    assert [a.tolist() for a in again[2:]] == [a.tolist() for a in together[2:]], "what stands beside them is another"
    same = generate(model, processor, [prompts[0]] * 5, settings)
    assert len({tuple(answer) for answer in same}) == 5, "of one prompt, the answers differ"


def test_tokens_are_drawn_as_often_as_they_are_probable(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    (prompt,) = asked(processor, pictures(1))
    settings = GenerationSettings(max_new_tokens=1, temperature=2.0, batch_tokens=100_000)
    drawn = [int(ids[0]) for ids in generate(model, processor, [prompt] * 400, settings)]
    ids, mask, extra = processor.collate([prompt])
    with torch.inference_mode():
        p = (model.model(input_ids=ids, attention_mask=mask, **extra).logits[0, -1].double() / 2.0).softmax(-1)
    most = p.topk(5).indices.tolist()
    for token in most:
        expected, spread = 400 * float(p[token]), (400 * float(p[token]) * (1 - float(p[token]))) ** 0.5
        assert abs(drawn.count(token) - expected) < 4 * spread + 1


def test_answers_end_at_the_models_context(tiny: tuple[LoadedModel, VisionProcessor]) -> None:
    model, processor = tiny
    (prompt,) = asked(processor, pictures(1))
    spec = dataclasses.replace(model.spec, context=len(prompt.ids) + 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "spec", spec)
        assert len(generate(model, processor, [prompt], GenerationSettings(max_new_tokens=9))[0]) == 3
        patch.setattr(model, "spec", dataclasses.replace(spec, context=len(prompt.ids)))
        with pytest.raises(InvalidInputError, match="leaves no room for an answer"):
            generate(model, processor, [prompt], GenerationSettings())


# What is kept


def test_answers_are_kept_for_the_same_documents_and_settings(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "store", read_only=False)
    answers = [np.array([5, 7, 5], np.int32), np.array([], np.int32)]
    key = answers_key("model", "float32", GenerationSettings(), "An")
    kept = AnswerFile(folder, "corpus", key, resume=False)
    kept.write(0, ["a", "b"], answers)

    def read(key: str = key, group: int = 0, documents: tuple[str, ...] = ("a", "b")) -> Any:
        found = AnswerFile(folder, "corpus", key, resume=True).read(group, documents)
        return None if found is None else [ids.tolist() for ids in found]

    assert read() == [[5, 7, 5], []]
    assert read(group=1) is None
    assert read(documents=("a", "c")) is None
    others = [
        answers_key("other", "float32", GenerationSettings(), "An"),
        answers_key("model", "bfloat16", GenerationSettings(), "An"),
        answers_key("model", "float32", GenerationSettings(seed=1), "An"),
        answers_key("model", "float32", GenerationSettings(), ""),
    ]
    assert [read(key=other) for other in others] == [None] * 4
    file = tmp_path / "store/captures/corpus/generated/0.json"
    file.write_text(file.read_text().replace("[5, 7, 5]", "[5, 6, 5]"))
    assert read() is None
    file.write_text('{"key": ')
    assert read() is None
    kept.write(0, ["a", "b"], answers)
    AnswerFile(folder, "corpus", key, resume=False)
    assert read() is None

"""Generated text: the tokens that the model itself would generate, alone, whatever shares its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_text import save_llama

from actstore.engine.models.generation.sampling import Sampling
from actstore.engine.models.generation.text import Ends, TextPrompt, continue_texts, text_batches
from actstore.engine.models.load import LoadedModel, load_model
from actstore.store.errors import InvalidInputError

GREEDY = Sampling()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A small Llama whose answers do not repeat one token."""
    folder = tmp_path_factory.mktemp("generation") / "llama"
    save_llama(folder)
    return load_model(folder, device="cpu")


def prompts(lengths: tuple[int, ...], n_new: int = 9) -> list[TextPrompt]:
    rng = np.random.default_rng(0)
    return [TextPrompt(rng.integers(3, 300, n).astype(np.int32), (i, 0), n_new) for i, n in enumerate(lengths)]


def of_library(model: LoadedModel, prompt: TextPrompt) -> list[int]:
    """What transformers generates for the prompt alone."""
    ids = torch.from_numpy(prompt.ids.astype(np.int64))[None]
    out = model.model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=prompt.max_new_tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return list(out[0, len(prompt.ids) :].tolist())


def test_greedy_texts_are_those_of_the_library_whatever_shares_their_batch(model: LoadedModel) -> None:
    asked = prompts((5, 7, 6, 5, 20))
    counts: list[tuple[int, int]] = []
    together = continue_texts(model, asked, GREEDY, Ends(), on_texts=lambda *n: counts.append(n))
    alone = continue_texts(model, asked, GREEDY, Ends(), batch_tokens=1)
    for prompt, a, b in zip(asked, together, alone, strict=True):
        assert a.tolist() == b.tolist() == of_library(model, prompt)
    assert counts == [(4, 36), (1, 9)], "like lengths together, others apart"


def test_no_batch_is_larger_than_it_may_be(model: LoadedModel) -> None:
    asked = prompts((5,) * 10)
    assert [len(batch) for batch in text_batches(asked, 14 * 4)] == [4, 4, 2]
    assert sorted(i for batch in text_batches(asked, 1) for i in batch) == list(range(10))


def test_samples_depend_on_the_seed_and_the_prompt_alone(model: LoadedModel) -> None:
    asked = prompts((5, 6, 5, 6))
    sampling = Sampling(temperature=1.0, seed=3)
    together = continue_texts(model, asked, sampling, Ends())
    alone = [continue_texts(model, [prompt], sampling, Ends())[0] for prompt in asked]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    other = continue_texts(model, asked, Sampling(temperature=1.0, seed=4), Ends())
    assert [ids.tolist() for ids in other] != [ids.tolist() for ids in together]


@pytest.mark.parametrize(("temperature", "top_p"), [(None, None), (0.5, None), (2.0, 0.7), (None, 0.5), (1.0, 1e-9)])
def test_tokens_are_drawn_with_the_probabilities_of_the_definition(
    temperature: float | None, top_p: float | None
) -> None:
    logits = torch.tensor([0.3, 1.2, -0.5, 1.2, 2.0])
    p = np.exp(logits.double().numpy() / (temperature or 1))
    p /= p.sum()
    if temperature is None and top_p is None:
        p = np.eye(5)[4]
    kept, total = np.zeros(5), 0.0
    for token in sorted(range(5), key=lambda i: (-p[i], i)):  # nucleus: most probable first, until top_p is reached
        if total < (top_p or 1.0):
            kept[token] = p[token]
        total += p[token]
    sampling = Sampling(temperature, top_p)
    drawn = [sampling.token(logits, draw) for draw in (np.arange(4000) + 0.5) / 4000]
    found = np.bincount(drawn, minlength=5) / 4000
    np.testing.assert_allclose(found, kept / kept.sum(), atol=1e-3)


def test_a_text_ends_with_a_token_or_where_a_text_is_complete(model: LoadedModel) -> None:
    asked = prompts((5, 6))
    whole = [ids.tolist() for ids in continue_texts(model, asked, GREEDY, Ends())]
    third = whole[0][2]
    ended = continue_texts(model, asked, GREEDY, Ends(frozenset({third})))
    assert ended[0].tolist() == whole[0][: whole[0].index(third) + 1]

    def decode(ids: object) -> str:
        return "".join(f"<{i}>" for i in ids)  # type: ignore[attr-defined]

    text = f"{whole[1][1]}><{whole[1][2]}"  # which the third token completes
    assert continue_texts(model, asked, GREEDY, Ends(texts=(text,), decode=decode))[1].tolist() == whole[1][:3]


def test_prompts_that_cannot_be_continued(model: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="prompts of at least one token"):
        continue_texts(model, [TextPrompt(np.empty(0, np.int32), (0, 0), 3)], GREEDY, Ends())
    assert continue_texts(model, prompts((5,), 0), GREEDY, Ends())[0].tolist() == []
